"""The personas that can be chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from huanhuan.chat.personas import load_personas
from huanhuan.errors import UserError


def test_every_persona_is_found_and_a_broken_one_is_told(tmp_path: Path) -> None:
    good = 'name = "{}"\nsystem = "扮演"\ngreeting = "好"\nstarters = ["甲"]\n'
    for key, text in (("axiang", good.format("阿香")), ("huanhuan", good.format("甄嬛")), ("bad", "name = 3")):
        (tmp_path / key).mkdir()
        (tmp_path / key / "persona.toml").write_text(text, "utf-8")
    cards, problems = load_personas(tmp_path, {})
    assert list(cards) == ["huanhuan", "axiang"] and len(problems) == 4
    cards, problems = load_personas(tmp_path, {"HUANHUAN_PERSONA": "axiang"})
    assert list(cards) == ["axiang", "huanhuan"] and len(problems) == 4
    cards, problems = load_personas(tmp_path, {"HUANHUAN_PERSONA": "gone"})
    assert set(cards) == {"axiang", "huanhuan"}
    assert problems[-1].startswith("HUANHUAN_PERSONA=gone: ") and "axiang, huanhuan" in problems[-1]
    with pytest.raises(UserError, match="no"):
        load_personas(tmp_path / "nowhere")
