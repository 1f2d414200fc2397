"""The committed training data is what the committed script gives, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from huanhuan.dataset.report import Report
from huanhuan.paths import DATA, ROOT
from huanhuan.persona import load_persona

FILES = ("train.jsonl", "val.jsonl", "report.json")


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs made from the sample script, from another current folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, str(ROOT / "tools/dialogue_to_jsonl.py"), str(DATA / "huanhuan/script")]
    command += ["--persona", str(DATA / "huanhuan/persona.toml"), "--out", "made"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "made"


@pytest.mark.parametrize("name", FILES)
def test_committed_file_is_what_the_script_gives(regenerated: Path, name: str) -> None:
    command = "python tools/dialogue_to_jsonl.py data/huanhuan/script --persona data/huanhuan/persona.toml --out data/huanhuan"
    assert (DATA / "huanhuan" / name).read_bytes() == (regenerated / name).read_bytes(), f"run: {command}"


def _exchanges(path: Path) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [(row["input"], row["output"]) for record in records for row in record["conversation"]]


def test_every_starter_is_a_prompt_of_a_training_scene(regenerated: Path) -> None:
    persona = load_persona(DATA / "huanhuan/persona.toml")
    train = {prompt for prompt, _ in _exchanges(regenerated / "train.jsonl")}
    held_out = {prompt for prompt, _ in _exchanges(regenerated / "val.jsonl")}
    assert [starter for starter in persona.starters if starter not in train] == []
    assert not held_out & set(persona.starters)


def test_every_record_carries_the_persona_prompt_first_only(regenerated: Path) -> None:
    persona = load_persona(DATA / "huanhuan/persona.toml")
    for name in ("train.jsonl", "val.jsonl"):
        for line in (regenerated / name).read_text("utf-8").splitlines():
            rows = json.loads(line)["conversation"]
            assert rows[0]["system"] == persona.system
            assert all("system" not in row for row in rows[1:])


def test_every_line_of_the_script_is_used_a_heading_or_listed(regenerated: Path) -> None:
    report = Report.from_json((regenerated / "report.json").read_text("utf-8"))
    covered: set[tuple[str, int]] = set()
    for skipped in report.skipped:
        covered.update((skipped.file, line) for line in range(skipped.line, skipped.last + 1))
    for name in ("train.jsonl", "val.jsonl"):
        for text in (regenerated / name).read_text("utf-8").splitlines():
            source = json.loads(text)["source"]
            covered.update((source["file"], line) for line in range(source["lines"][0], source["lines"][1] + 1))
    left: list[str] = []
    for path in sorted((DATA / "huanhuan/script").iterdir()):
        for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
            if line.strip() and (f"script/{path.name}", number) not in covered:
                left.append(line.strip())
    # 第九幕 is cut by the end of the first file: the prompt stands there, the reply in the second.
    assert [line for line in left if "：" in line.rstrip("：")] == ["老葛：蹲下！莫出声！"]
    assert 50 < len(left) < 75


def test_held_out_scenes_are_enough(regenerated: Path) -> None:
    report = Report.from_json((regenerated / "report.json").read_text("utf-8"))
    parts = {part.name: part for part in report.split}
    assert parts["val"].scenes >= 8
    assert parts["train"].identity > 0
    assert parts["val"].identity == 0
