"""The converter as a command: what it writes, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
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


OPTIONS = """--context 3
--keep-directions|--openers direction|--budget 10|--single-turn|--min-chars 2|--keep-all|--copies 2|--similarity 0.8
--interjections 嗯|--no-filter short --no-filter duplicate|--identity-share 0|--val-share 0|--seed 7|--encoding utf-8|--layout colon
--context 2 --context-chars 5"""


@pytest.mark.parametrize("options", OPTIONS.replace("\n", "|").split("|"))
def test_every_option_is_taken(here: Path, options: str) -> None:
    result = run("a.txt", "--persona", "persona.toml", "--out", "out", *options.split())
    assert result.exit_code == 0, result.output
    assert records(here / "out/train.jsonl")


BAD = {
    "missing": (["x.txt", "--character", "甄嬛"], ["x.txt"]),
    "empty folder": (["empty", "--character", "甄嬛"], ["empty"]),
    "empty file": (["empty.txt", "--character", "甄嬛"], ["empty.txt"]),
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
