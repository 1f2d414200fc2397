"""The converter as a command: what it writes, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from huanhuan.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from dialogue_to_jsonl import main  # pyright: ignore[reportMissingImports]

SCRIPT = "第1幕\n皇帝：平身。\n甄嬛：谢皇上。\n皇帝：坐罢。\n甄嬛：臣妾站着就好。\n第2幕\n皇后：来人。\n槿汐：在。\n"
PERSONA = """
name = "甄嬛"
aliases = ["嬛嬛"]
system = "扮演甄嬛"
greeting = "坐罢。"
starters = ["平身。"]
[[identity]]
questions = ["你是谁？"]
answers = ["我是甄嬛。"]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(SCRIPT, "utf-8")
    (tmp_path / "persona.toml").write_text(PERSONA, "utf-8")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_folder_gets_all_files_and_keeps_what_else_is_in_it(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out/mine.txt").write_text("mine", "utf-8")
    (here / "out/train.jsonl").write_text("old", "utf-8")
    result = run("a.txt", "--persona", "persona.toml", "--out", "out")
    assert result.exit_code == 0, result.output
    assert sorted(tree(here / "out")) == ["mine.txt", "report.html", "report.json", "train.jsonl", "val.jsonl"]
    assert records(here / "out/train.jsonl")[0] == {
        "conversation": [
            {"system": "扮演甄嬛", "input": "平身。", "output": "谢皇上。"},
            {"input": "坐罢。", "output": "臣妾站着就好。"},
        ],
        "source": {"file": "a.txt", "lines": [2, 5]},
    }


def test_one_file_gets_all_records_without_a_system_prompt(here: Path) -> None:
    result = run("a.txt", "--character", "甄嬛", "--single-turn", "--out", "new/all.jsonl")
    assert result.exit_code == 0, result.output
    assert [record["conversation"] for record in records(here / "new/all.jsonl")] == [
        [{"input": "平身。", "output": "谢皇上。"}],
        [{"input": "坐罢。", "output": "臣妾站着就好。"}],
    ]
    assert sorted(tree(here / "new")) == ["all.jsonl"]


def test_a_system_prompt_can_be_given(here: Path) -> None:
    assert run("a.txt", "--character", "甄嬛", "--system", "请扮演", "--out", "all.jsonl").exit_code == 0
    assert records(here / "all.jsonl")[0]["conversation"][0]["system"] == "请扮演"


def test_two_runs_give_the_same_bytes(here: Path) -> None:
    for name in ("one", "two"):
        assert run("a.txt", "--persona", "persona.toml", "--out", name).exit_code == 0
    assert tree(here / "one") == tree(here / "two")


def test_no_page_of_another_conversion_is_left(here: Path) -> None:
    assert run("a.txt", "--persona", "persona.toml", "--out", "out").exit_code == 0
    assert run("a.txt", "--persona", "persona.toml", "--out", "out", "--no-html").exit_code == 0
    assert "report.html" not in tree(here / "out")


def test_conversations_of_other_tools_need_no_character(here: Path) -> None:
    (here / "a.json").write_text(json.dumps([{"instruction": "问", "input": "", "output": "答"}]), "utf-8")
    assert run("a.json", "--out", "all.jsonl", "--format", "openai").exit_code == 0
    assert records(here / "all.jsonl")[0]["messages"] == [
        {"role": "user", "content": "问"},
        {"role": "assistant", "content": "答"},
    ]


@pytest.mark.parametrize("format", ["xtuner", "openai", "sharegpt", "alpaca"])
def test_the_reports_are_the_same_in_every_format(here: Path, format: str) -> None:
    for each in ("xtuner", format):
        result = run("a.txt", "--persona", "persona.toml", "--out", each, "--format", each)
        assert result.exit_code == 0, result.output
    plain, other = (json.loads((here / each / "report.json").read_text("utf-8")) for each in ("xtuner", format))
    assert plain.pop("options")["format"] == "xtuner"
    assert other.pop("options")["format"] == format
    assert plain == other


PLAY = """第1幕
（雪夜，殿门半开）
甄嬛：谁在外头？
皇帝：是朕。
甄嬛（起身）：皇上怎么来了？
皇帝：睡不着。
槿汐：皇上的斗篷湿了。
甄嬛：快换下来。
皇帝：不必。
甄嬛：嗯。
皇帝：你冷么？
甄嬛：冷。
第2幕
皇帝：你冷么？
甄嬛：冷。
皇帝：明日一早，朕同你去看梅花，可好？
甄嬛：好，臣妾一定早早起来等着皇上。
第3幕
皇帝：明日一早，朕同你去看梅花，可好？
甄嬛：好，臣妾一定早早起来等着皇上呢。
第4幕
皇帝：梅花开了。
嬛儿：臣妾看见了。
皇帝：你从哪里看见的？
甄嬛：从窗缝里。
"""
IDENTITY = ("你是谁？", "我是甄嬛。")
COME, CLOAK, COLD, HM = (
    ("是朕。", "皇上怎么来了？"),
    ("皇上的斗篷湿了。", "快换下来。"),
    ("你冷么？", "冷。"),
    ("不必。", "嗯。"),
)
PLUM = ("明日一早，朕同你去看梅花，可好？", "好，臣妾一定早早起来等着皇上。")
NEARLY = (PLUM[0], "好，臣妾一定早早起来等着皇上呢。")
WINDOW = ("你从哪里看见的？", "从窗缝里。")
USUAL = [COME, CLOAK, COLD, PLUM, WINDOW, IDENTITY]

Exchanges = list[tuple[str, str]]
# What an option changes in the exchanges of the play: options, those that go, those that come.
EFFECTS: dict[str, tuple[str, Exchanges, Exchanges]] = {
    "min_chars": ("--min-chars 2", [COLD], []),
    "interjections": ("--interjections 冷", [COLD], [HM]),
    "off": ("--no-filter interjection", [], [HM]),
    "off, twice": ("--no-filter duplicate --no-filter near_duplicate", [], [COLD, NEARLY]),
    "keep_all": ("--keep-all", [], [HM, COLD, NEARLY]),
    "copies": ("--copies 2", [], [COLD]),
    "similarity": ("--similarity 1", [], [NEARLY]),
    "openers": ("--openers direction", [], [("（雪夜，殿门半开）", "谁在外头？")]),
    "keep_directions": ("--keep-directions", [COME], [("是朕。", "（起身）皇上怎么来了？")]),
    "identity_share": ("--identity-share 0", [IDENTITY], []),
    "context": (
        "--context 3",
        [COME, CLOAK, COLD, PLUM, WINDOW],
        [
            ("皇帝：是朕。", COME[1]),
            ("皇帝：睡不着。\n槿汐：皇上的斗篷湿了。", CLOAK[1]),
            ("皇帝：你冷么？", COLD[1]),
            (f"皇帝：{PLUM[0]}", PLUM[1]),
            ("皇帝：梅花开了。\n嬛儿：臣妾看见了。\n皇帝：你从哪里看见的？", WINDOW[1]),
        ],
    ),
    "context_chars": (
        "--context 3 --context-chars 20",
        [COME, CLOAK, COLD, PLUM, WINDOW],
        [
            ("皇帝：是朕。", COME[1]),
            ("皇帝：睡不着。\n槿汐：皇上的斗篷湿了。", CLOAK[1]),
            ("皇帝：你冷么？", COLD[1]),
            (f"皇帝：{PLUM[0]}", PLUM[1]),
            ("嬛儿：臣妾看见了。\n皇帝：你从哪里看见的？", WINDOW[1]),
        ],
    ),
}
# Options that other tests, below and above, are about.
ELSEWHERE = {
    *("persona", "character", "aliases", "system", "out", "format", "html", "debug", "help"),
    *("single_turn", "budget", "budget_tokens", "tokenizer", "encoding", "layout", "val_share", "seed"),
}


@pytest.fixture
def play(here: Path) -> Path:
    (here / "play.txt").write_text(PLAY, "utf-8")
    return here


def convert(folder: Path, *options: str, source: str = "play.txt") -> list[Exchanges]:
    """The records that a conversion with ``options`` gives, those of train.jsonl first."""
    result = run(source, "--persona", "persona.toml", "--out", "out", "--no-html", *options)
    assert result.exit_code == 0, result.output
    rows = records(folder / "out/train.jsonl") + records(folder / "out/val.jsonl")
    return [[(each["input"], each["output"]) for each in row["conversation"]] for row in rows]


def test_every_option_has_a_test_of_its_effect() -> None:
    named = {str(option.name) for option in main.params if option.param_type_name == "option"}
    assert named - ELSEWHERE == {name for name in EFFECTS if "," not in name}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_option_changes_the_exchanges(play: Path, name: str) -> None:
    options, gone, come = EFFECTS[name]
    assert sorted(chain(*convert(play))) == sorted(USUAL)
    changed = chain(*convert(play, *options.split()))
    assert sorted(changed) == sorted([*(each for each in USUAL if each not in gone), *come])


def test_records_are_cut_where_asked(play: Path, tiny_base: Path) -> None:
    assert [len(record) for record in convert(play)] == [3, 1, 1, 1]
    assert [len(record) for record in convert(play, "--single-turn")] == [1] * 6
    assert [len(record) for record in convert(play, "--budget", "30")] == [2, 1, 1, 1, 1]
    counted = ["--budget-tokens", "60", "--tokenizer", str(tiny_base)]
    assert [len(record) for record in convert(play, *counted)] == [1] * 6


def test_a_tokenizer_measures_the_records(play: Path, tiny_base: Path) -> None:
    convert(play, "--tokenizer", str(tiny_base))
    lengths = json.loads((play / "out/report.json").read_text("utf-8"))["lengths"]
    assert lengths["record_tokens"]["total"] == lengths["record"]["total"] == 4
    assert lengths["record_tokens"]["unit"] == "tokens"


def test_an_alias_is_her(play: Path) -> None:
    for options, expected in (((), [WINDOW]), (("--alias", "嬛儿"), [("梅花开了。", "臣妾看见了。"), WINDOW])):
        assert run("play.txt", "--character", "甄嬛", *options, "--out", "all.jsonl").exit_code == 0
        last = records(play / "all.jsonl")[-1]["conversation"]
        assert [(each["input"], each["output"]) for each in last] == expected


def test_scenes_are_held_out_by_share_and_seed(play: Path) -> None:
    held_out: set[str] = set()
    for seed in range(6):
        convert(play, "--val-share", "0.3", "--seed", str(seed))
        (record,) = records(play / "out/val.jsonl")
        held_out.add(record["conversation"][0]["input"])
    assert len(held_out) > 1
    convert(play, "--val-share", "0")
    assert records(play / "out/val.jsonl") == []


def test_an_encoding_is_taken_at_its_word(play: Path) -> None:
    (play / "short.txt").write_bytes("甲:乙\n丁:丙\n".encode("gb18030"))
    told = ["short.txt", "--character", "丁", "--out", "all.jsonl"]
    assert run(*told).exit_code == 1
    assert run(*told, "--encoding", "gb18030").exit_code == 0
    assert records(play / "all.jsonl")[0]["conversation"] == [{"input": "乙", "output": "丙"}]


def test_a_layout_is_taken_at_its_word(play: Path) -> None:
    mixed = "皇帝：平身。\n甄嬛：谢皇上。\n皇帝：赐座。\n甄嬛：不敢。\n皇帝\t坐罢。\n甄嬛\t臣妾站着。\n皇帝\t随你。\n甄嬛\t是。\n"
    (play / "mixed.txt").write_text(mixed, "utf-8")
    colon, tab = (convert(play, "--layout", layout, source="mixed.txt")[0] for layout in ("colon", "tab"))
    assert colon[0] == ("平身。", "谢皇上。")
    assert tab == [("坐罢。", "臣妾站着。"), ("随你。", "是。")]


def test_the_page_is_drawn_unless_told_otherwise(play: Path) -> None:
    for options, drawn in (((), True), (("--html",), True), (("--no-html",), False)):
        assert run("play.txt", "--persona", "persona.toml", "--out", "out", *options).exit_code == 0
        assert (play / "out/report.html").exists() is drawn


BAD = {
    "missing": (["x.txt", "--character", "甄嬛"], ["x.txt"]),
    "empty folder": (["empty", "--character", "甄嬛"], ["empty"]),
    "empty file": (["empty.txt", "--character", "甄嬛"], ["empty.txt", "is empty"]),
    "blank file": (["blank.txt", "--character", "甄嬛"], ["blank.txt"]),
    "binary": (["binary.txt", "--character", "甄嬛"], ["binary.txt"]),
    "ambiguous": (["short.txt", "--character", "甄嬛"], ["short.txt", "gb18030", "big5", "--encoding"]),
    "no speaker": (["prose.txt", "--character", "甄嬛"], ["prose.txt", "--layout"]),
    "never speaks": (["a.txt", "--character", "华妃"], ["华妃", "皇帝 (2), 甄嬛 (2), 皇后 (1), 槿汐 (1)"]),
    "never answers": (["a.txt", "--character", "皇后"], ["皇后", "--openers"]),
    "no character": (["a.txt"], ["--persona", "--character"]),
    "empty character": (["a.txt", "--character", " "], ["--character"]),
    "two characters": (["a.txt", "--character", "甄嬛", "--persona", "persona.toml"], ["--persona", "--character"]),
    "no such card": (["a.txt", "--persona", "x.toml"], ["x.toml"]),
    "broken card": (["a.txt", "--persona", "a.txt"], ["a.txt"]),
    "alias and card": (["a.txt", "--persona", "persona.toml", "--alias", "嬛"], ["--alias"]),
    "alias alone": (["a.txt", "--alias", "嬛"], ["--alias"]),
    "system and card": (["a.txt", "--persona", "persona.toml", "--system", "扮演"], ["--system"]),
    "keep all and filter": (
        ["a.txt", "--character", "甄嬛", "--keep-all", "--min-chars", "3"],
        ["--keep-all", "--min-chars"],
    ),
    "identity without card": (["a.txt", "--character", "甄嬛", "--identity-share", "0.1"], ["--identity-share"]),
    "cap without context": (["a.txt", "--character", "甄嬛", "--context-chars", "9"], ["--context-chars"]),
    "two budgets": (
        ["a.txt", "--character", "甄嬛", "--budget", "9", "--budget-tokens", "9", "--tokenizer", "."],
        ["--budget"],
    ),
    "tokens without tokenizer": (["a.txt", "--character", "甄嬛", "--budget-tokens", "9"], ["--tokenizer"]),
    "no tokenizer there": (["a.txt", "--character", "甄嬛", "--tokenizer", "x"], ["x", "--tokenizer"]),
    "unknown encoding": (["a.txt", "--character", "甄嬛", "--encoding", "utf-9"], ["--encoding utf-9"]),
    "wrong encoding": (["a.txt", "--character", "甄嬛", "--encoding", "ascii"], ["a.txt:1", "--encoding"]),
    "unknown layout": (["a.txt", "--character", "甄嬛", "--layout", "x"], ["--layout x"]),
    "broken docx": (["broken.docx", "--character", "甄嬛"], ["broken.docx"]),
    "broken json": (["broken.jsonl"], ["broken.jsonl"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_the_output_stays_as_it_was(here: Path, case: str) -> None:
    for name, data in {
        "empty.txt": b"",
        "blank.txt": b" \n\n",
        "binary.txt": bytes(range(256)),
        "short.txt": b"\xb6\xa1\n",
        "prose.txt": "雪下了一夜。\n天亮时停了。\n".encode(),
        "broken.docx": b"PK",
        "broken.jsonl": b'{"conversation": [}\n',
        "out/train.jsonl": b"old",
    }.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(data)
    (here / "empty").mkdir()
    before = tree(here)
    arguments, named = BAD[case]
    result = run(*arguments, "--out", "out")
    assert result.exit_code == 1
    lines = result.output.strip().split("\n")
    assert len(lines) == 1, lines
    assert lines[0].startswith("错误 / error: ")
    assert [each for each in named if each not in lines[0]] == []
    assert tree(here) == before


@pytest.mark.parametrize("out", ["all.jsonl", "all.JSONL", "new/all.JsonL"])
def test_one_file_whatever_the_case_of_its_ending(here: Path, out: str) -> None:
    assert run("a.txt", "--character", "甄嬛", "--out", out).exit_code == 0
    assert len(records(here / out)) == 1
    assert run("a.txt", "--character", "甄嬛", "--val-share", "0.2", "--out", out).exit_code == 1
    assert "another --out" in run("a.txt", "--character", "甄嬛", "--out", f"{out}/deep").output


@pytest.mark.parametrize(
    ("sources", "out"),
    [
        (["a.jsonl"], "a.jsonl"),
        (["a.jsonl"], "./old/../a.jsonl"),
        (["a.jsonl"], "link.jsonl"),
        (["link.jsonl"], "a.jsonl"),
        (["a.txt", "a.jsonl", "a.jsonl"], "a.jsonl"),
        (["old/train.jsonl"], "old"),
        (["old/report.json"], "old"),
        (["old/val.jsonl"], "old/"),
    ],
)
def test_an_input_is_never_replaced_by_the_output(here: Path, sources: list[str], out: str) -> None:
    (here / "old").mkdir()
    record = json.dumps({"conversation": [{"input": "问", "output": "答"}]}, ensure_ascii=False) + "\n"
    for name in ("a.jsonl", "old/train.jsonl", "old/val.jsonl", "old/report.json"):
        (here / name).write_text(record, "utf-8")
    (here / "link.jsonl").symlink_to("a.jsonl")
    before = tree(here)
    result = run(*sources, "--character", "甄嬛", "--out", out)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith(f"错误 / error: {sources[-1]}: ")
    assert "choose another --out" in line
    assert tree(here) == before


def test_files_beside_an_input_may_be_written(here: Path) -> None:
    (here / "old").mkdir()
    (here / "old/all.jsonl").write_text('{"conversation": [{"input": "问", "output": "答"}]}\n', "utf-8")
    assert run("old/all.jsonl", "--out", "old").exit_code == 0
    assert sorted(tree(here / "old")) == ["all.jsonl", "report.html", "report.json", "train.jsonl", "val.jsonl"]


@pytest.mark.parametrize("out", ["out", "out/all.jsonl", "new/out"])
def test_a_disk_that_is_full_is_named_with_the_file(here: Path, out: str) -> None:
    (here / "out").mkdir()
    (here / "out/train.jsonl").write_text("old", "utf-8")
    (here / "long.txt").write_text("".join(f"皇帝：第{n}句话。\n甄嬛：回第{n}句。\n" for n in range(900)), "utf-8")
    before = tree(here)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))
    try:
        result = run("long.txt", "--character", "甄嬛", "--keep-all", "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    written = out if out.endswith(".jsonl") else f"{out}/train.jsonl"
    assert line.startswith(f"错误 / error: {written}: File too large: ")
    assert "ulimit -f" in line
    assert tree(here) == before
    assert not (here / "new").exists()


def test_a_full_temporary_folder_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(self: object, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", no_space)
    result = run("a.txt", "--character", "甄嬛", "--out", "all.jsonl")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith(f"错误 / error: {tempfile.gettempdir()}: No space left on device: ")
    assert "TMPDIR" in line


def test_files_are_kept_where_the_disk_has_no_hard_links(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    for _ in range(2):
        assert run("a.txt", "--persona", "persona.toml", "--out", "out").exit_code == 0
    assert sorted(tree(here / "out")) == ["report.html", "report.json", "train.jsonl", "val.jsonl"]


@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("a.txt", []),
        ("all.jsonl/x", []),
        ("dir.jsonl", []),
        ("all.jsonl", ["--val-share", "0.2"]),
        ("all.jsonl", ["--html"]),
    ],
)
def test_an_output_that_cannot_be_is_one_line(here: Path, out: str, options: list[str]) -> None:
    (here / "dir.jsonl").mkdir()
    (here / "all.jsonl").write_text("old", "utf-8")
    before = tree(here)
    result = run("a.txt", "--character", "甄嬛", *options, "--out", out)
    assert result.exit_code == 1
    assert len(result.output.strip().split("\n")) == 1
    assert tree(here) == before


def test_several_contradictions_are_told_at_once(here: Path) -> None:
    result = run(
        "a.txt",
        "--character",
        "甄嬛",
        "--persona",
        "persona.toml",
        "--alias",
        "嬛",
        "--keep-all",
        "--copies",
        "2",
        "--out",
        "out",
    )
    assert result.exit_code == 1
    assert len(result.output.strip().split("\n")) == 3


def test_a_failure_while_writing_leaves_every_file_as_it_was(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("a.txt", "--persona", "persona.toml", "--out", "out").exit_code == 0
    before = tree(here)
    renamed: list[Path] = []
    real = Path.replace

    def fail_on_third(self: Path, target: Path) -> Path:
        renamed.append(self)
        if len(renamed) == 3:
            raise OSError(28, "No space left on device", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_third)
    result = run("a.txt", "--character", "甄嬛", "--out", "out", "--single-turn")
    monkeypatch.undo()
    assert result.exit_code == 1
    assert len(renamed) >= 3
    assert tree(here) == before


def test_a_folder_made_for_nothing_is_removed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", fail)
    assert run("a.txt", "--character", "甄嬛", "--out", "new/deep").exit_code == 1
    assert not (here / "new").exists()


def test_it_imports_neither_torch_nor_what_it_does_not_need(here: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['x', 'a.txt', '--character', '甄嬛', '--out', 'all.jsonl'];"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        f"try: runpy.run_path({str(ROOT / 'tools/dialogue_to_jsonl.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([name for name in ('torch', 'docx', 'jinja2', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().split("\n")[-1] == "[]"


def test_help_names_every_option_in_both_languages() -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    for option in main.params:
        if option.param_type_name == "option" and option.name not in ("help", "debug"):
            assert any("一" <= each <= "鿿" for each in option.help or ""), option.name  # type: ignore[attr-defined]
