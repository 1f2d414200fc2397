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
from huanhuan.text.clean import split_lines
from huanhuan.text.sources import find_files, read_text

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
    for source in find_files([DATA / "huanhuan/script"]):
        for number, line in enumerate(split_lines(read_text(source)[0]), 1):
            if line.strip() and (source.name, number) not in covered:
                left.append(line.strip())
    # 第九幕 is cut by the end of the first file: the prompt stands there, the reply in the second.
    assert [line for line in left if "：" in line.rstrip("：")] == ["老葛：蹲下！莫出声！"]
    assert 50 < len(left) < 75


QUIRKS = {
    "a speech in quotes": ("正因为有七口人，最小的孙女，也是六岁。", "这张纸我收着，不到天亮，绝不点灯。"),
    "mixed brackets": ("小主别吓我。", "我也怕。怕的时候就研墨，墨研匀了，心也就匀了。"),
    "a wrong separator": ("小主当真一根一根都看过了？", "四十六根，字刻得极浅，像是怕人看见，又怕没人看见。"),
    "GB18030 with a character outside GBK": (
        "小主，收手罢。上一个爱数花盆的，如今天天㧟着篮子，在井台上洗衣裳。",
        "那人是谁？",
    ),
    "UTF-16": ("御膳房送来的饺子，小主您数，只有三个。", "三个好，一人一个，不必拿刀切。"),
    "CR line ends": ("想要什么赏，你自己说。", "臣妾想要一个人，从西三所走出来。"),
    "a Word document, wrapped": (
        "墙太高了，我想把它写成栅栏，好看得见花。",
        "由着你写，栅栏也是圆的，花香进得来，人也出得去。",
    ),
    "scenes divided by blank lines": ("朕也在。", "皇上不是花，只好记在页边上了。"),
    "NAME: text": ("神父请娘娘莫碰那个轮子，它会咬人。", "咬人的东西我见得多了，会响的还是头一回。"),
    "Fountain, continued": (
        "神父说：十一，红的，四月。",
        "Twelve. 通事大人，他说的是 twelve，这个数我跟着钟学过。你袖子里的那一颗，等不及要发芽了。",
    ),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_a_quirk_of_the_script_leaves_no_trace_in_the_records(regenerated: Path, quirk: str) -> None:
    prompt, reply = QUIRKS[quirk]
    found = dict(_exchanges(regenerated / "train.jsonl") + _exchanges(regenerated / "val.jsonl"))
    assert found.get(prompt) == reply


def test_scenes_in_english_layouts_are_trained_on(regenerated: Path) -> None:
    """What is held out measures her Chinese."""
    held_out = [json.loads(line) for line in (regenerated / "val.jsonl").read_text("utf-8").splitlines()]
    files = {record["source"]["file"] for record in held_out}
    assert not files & {"script/第六集番外二.txt", "script/第六集番外三.fountain"}


def test_held_out_scenes_are_enough(regenerated: Path) -> None:
    report = Report.from_json((regenerated / "report.json").read_text("utf-8"))
    parts = {part.name: part for part in report.split}
    assert parts["val"].scenes >= 9
    assert parts["train"].identity > 0
    assert parts["val"].identity == 0
