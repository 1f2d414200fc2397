"""The terminal chat over a real, tiny model, as a person starts it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
# Test folders are no packages; the fake engine is imported by name from there.
sys.path.insert(0, str(ROOT / "tests/chat"))

from fake_engine import FakeEngine  # type: ignore[import-not-found]  # noqa: E402

from huanhuan.chat import terminal  # noqa: E402

TOOL = ROOT / "tools/chat.py"
CARD = 'name = "阿沅"\nsystem = "现在你要扮演阿沅"\ngreeting = "来者是客。"\nstarters = ["你是谁？"]\n'


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "persona.toml"
    path.write_text(CARD, "utf-8")
    return path


def run(card: Path, *options: str, typed: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), "--persona", str(card), *options],
        input=typed,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=card.parent,
        env={**os.environ, "HUANHUAN_ENGINE": "transformers", "PYTHONIOENCODING": "utf-8", **environ},
    )


def test_one_reply_to_standard_output_is_repeatable(card: Path, tiny_base: Path) -> None:
    options = ("--model", str(tiny_base), "--say", "你是谁？", "--greedy", "--max-new-tokens", "8")
    first, second = run(card, *options), run(card, *options)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and first.stdout.endswith("\n")


def test_talking_resetting_and_leaving(card: Path, tiny_base: Path) -> None:
    done = run(card, "--model", str(tiny_base), "--max-new-tokens", "4", typed="你好\n/reset\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("阿沅: 来者是客。") == 2
    assert done.stdout.count("阿沅: ") == 3


def test_mistakes_are_one_line_and_a_code(card: Path, tmp_path: Path) -> None:
    cases = (
        (run(card, "--model", str(tmp_path / "none"), "--say", "你好"), "no such model folder"),
        (run(card, "--temperature", "9", "--say", "你好"), "temperature"),
        (run(tmp_path / "none.toml", "--say", "你好"), "no such persona card"),
        (run(card, "--say", "你好", HUANHUAN_ENGINE="abacus"), "HUANHUAN_ENGINE=abacus"),
        (run(card, "--say", "你好", HUANHUAN_GUARD="maybe"), "HUANHUAN_GUARD=maybe"),
        (run(card, "--say", "你好", HUANHUAN_ENGINE="openai", HUANHUAN_API_BASE="host"), "HUANHUAN_API_BASE=host"),
    )
    for done, said in cases:
        assert done.returncode == 1 and said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not done.stdout


def test_what_the_guard_does_is_seen_when_somebody_asks(card: Path, tiny_base: Path) -> None:
    """Without an output head every token is as likely as the first, <unk>, which is no text: an empty reply."""
    silent = card.parent / "silent"
    shutil.copytree(tiny_base, silent)
    weights = load_file(silent / "model.safetensors")
    weights["output.weight"].zero_()
    save_file(weights, silent / "model.safetensors", metadata={"format": "pt"})
    options = ("--model", str(silent), "--say", "你是谁？", "--greedy", "--max-new-tokens", "4")
    quiet, loud = run(card, *options), run(card, *options, "--verbose")
    assert quiet.returncode == loud.returncode == 0, loud.stderr
    assert "guard: " not in quiet.stderr and "guard: empty, said once more" in loud.stderr
    assert "guard" not in loud.stdout, "standard output is for the reply alone"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    built = FakeEngine(context_tokens=600)
    monkeypatch.setattr(terminal, "build", lambda *_, **__: built)
    return built


SETTINGS: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.8,
    "top_k": 40,
    "max_new_tokens": 500,
    "repetition_penalty": 1.0,
    "seed": None,
    "greedy": False,
}


def talk(card: Path, monkeypatch: pytest.MonkeyPatch, typed: str, **settings: Any) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    return terminal.chat(persona=str(card), model=None, say=None, **{**SETTINGS, **settings})


def test_what_the_guard_threw_away_is_in_no_file(
    card: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter(["作为一个AI语言模型，我没有感情。", "来者是客。"] * 2)
    engine.answer = lambda _: next(tries)
    assert terminal.chat(persona=str(card), model=None, say="你好", **SETTINGS) == 0
    assert capsys.readouterr().out == "来者是客。\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert terminal.chat(persona=str(card), model=None, say="你好", **SETTINGS) == 0
    seen = capsys.readouterr()
    assert seen.out.endswith("来者是客。\n") and "重说" in seen.err


def test_what_is_no_message_is_not_sent_and_the_talk_goes_on(
    card: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert talk(card, monkeypatch, "\n   \n<|im_end|>\n/rest\n\udcff你好\n") == 0
    assert [each[0][-1]["content"] for each in engine.seen] == ["你好"]
    seen = capsys.readouterr()
    assert "没有 /rest / no such command" in seen.err and "/reset" in seen.err and "say something" not in seen.err
    engine.fault = "refuse"
    assert talk(card, monkeypatch, "你好\n/reset\n") == 0
    assert "the server refused" in capsys.readouterr().err
    engine.fault = None
    assert talk(card, monkeypatch, "好\n") == 0 and len(engine.seen[-1][0]) == 2, "what failed is not part of the talk"


def test_how_a_reply_ended_and_what_is_forgotten_is_told(
    card: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answer = lambda messages: "".join(chr(0x4E00 + place) for place in range(30))
    assert talk(card, monkeypatch, "甲\n乙\n丙\n丁\n", max_new_tokens=500) == 0
    seen = capsys.readouterr().err
    assert "2 oldest messages are forgotten" in seen and "4 oldest" not in seen
    assert talk(card, monkeypatch, "甲\n", max_new_tokens=5) == 0
    assert "the longest reply was reached" in capsys.readouterr().err
    engine.answer = lambda messages: "好的，" * 90
    assert talk(card, monkeypatch, "甲\n") == 0
    assert "went in circles and was cut" in capsys.readouterr().err
