"""The terminal chat over a real, tiny model, as a person starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

TOOL = Path(__file__).parents[2] / "tools/chat.py"
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
