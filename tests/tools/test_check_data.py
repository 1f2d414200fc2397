"""tools/check_data.py as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from huanhuan.dataset.formats import write_records
from huanhuan.dataset.records import Conversation, Exchange

TOOL = Path(__file__).resolve().parents[2] / "tools/check_data.py"
RECORD = Conversation((Exchange("你是谁？", "我是园子里种花的人。"),), "你是丙。")
PERSONA = 'name = "丙"\nsystem = "你是丙。"\ngreeting = "你好。"\nstarters = ["在吗？"]\naliases = []\n'


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    environment.pop("HUANHUAN_BASE", None)
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env=environment,
        timeout=100,
        check=False,
    )


def test_a_sound_file(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text(write_records([RECORD]), "utf-8")
    (tmp_path / "persona.toml").write_text(PERSONA, "utf-8")
    done = run("train.jsonl", "--persona", "persona.toml", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("train.jsonl: 1 条对话，1 个来回")


def test_every_error_of_every_file_and_exit_code_1(tmp_path: Path):
    (tmp_path / "one.jsonl").write_text(write_records([RECORD]) + '{\n{"conversation": [{"input": ""}]}\n', "utf-8")
    (tmp_path / "two.jsonl").write_text('{"messages": 1}\n', "utf-8")
    done = run("one.jsonl", "two.jsonl", "three.jsonl", folder=tmp_path)
    assert done.returncode == 1
    places = [line.removeprefix("错误 / error: ").split(" ")[0] for line in done.stderr.splitlines()]
    assert places == ["one.jsonl:2:", "one.jsonl:3:", "one.jsonl:3:", "two.jsonl:1:", "three.jsonl:"]
    assert "Traceback" not in done.stderr


def test_show_marks_what_is_supervised_without_colours_in_a_pipe(tmp_path: Path, tiny_base: Path):
    # A list of records: the tool reads what the converter reads.
    (tmp_path / "data.json").write_text(json.dumps([RECORD.to_json()]), "utf-8")
    done = run("data.json", "--show", "1", "--tokenizer", tiny_base, "--max-length", "400", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line[:6].strip().isdigit()]
    assert [row[-1] for row in rows][:4] == ["<s>", "<|im_start|>", "system", "\\n"]
    marked = [row for row in rows if "●" in row]
    assert marked[-1][-1] == "<|im_end|>"
    assert 2 <= len(marked) < len(rows)
    assert "400 个 token 放得下 1 个来回中的 1 个" in done.stdout


def test_contradictory_options_are_one_line(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text(write_records([RECORD]), "utf-8")
    for arguments in (["train.jsonl", "train.jsonl", "--show", "1"], ["train.jsonl", "--max-length", "5"]):
        done = run(*arguments, folder=tmp_path)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
    done = run("train.jsonl", "--show", "9", folder=tmp_path)
    assert done.returncode == 1
    assert "没有第 9 条" in done.stderr


def test_no_file_and_record_zero_are_usage_errors(tmp_path: Path):
    assert run(folder=tmp_path).returncode == 2
    assert run("train.jsonl", "--show", "0", folder=tmp_path).returncode == 2
