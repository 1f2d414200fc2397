"""What check_data says about files of every format."""

import json
from pathlib import Path

import pytest

from huanhuan.dataset.check import check_files, summary
from huanhuan.dataset.formats import FORMATS, write_records
from huanhuan.dataset.records import Conversation, Exchange, Source
from huanhuan.errors import UserError

RECORDS = [
    Conversation((Exchange("一", "甲"), Exchange("二", "乙")), "你是丙。", Source("a.txt", 1, 4)),
    Conversation((Exchange("三", "丁"),), "你是丙。", Source("a.txt", 7, 8)),
]


@pytest.mark.parametrize("format", FORMATS)
def test_a_record_is_the_same_in_every_format(tmp_path: Path, format):
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + write_records(RECORDS, format), "utf-8")
    (checked,) = check_files([path], system="你是丙。")
    assert checked.validation.errors == []
    assert (checked.validation.records, checked.validation.exchanges) == (2, 3)
    assert [checked.record(number) for number in (1, 2)] == [record.to_json() for record in RECORDS]
    for number in (0, 3, -1):
        with pytest.raises(UserError, match=f"没有第 {number} 条"):
            checked.record(number)
    told = [warning for warning in checked.validation.warnings if "XTuner" in warning]
    assert bool(told) == (format != "xtuner")
    assert len(checked.validation.warnings) == len(told)


def test_a_json_list_is_read_and_said_to_be_no_training_file(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([record.to_json() for record in RECORDS], indent=1), "utf-8")
    (checked,) = check_files([path])
    assert checked.validation.errors == []
    assert ["JSON lines" in warning for warning in checked.validation.warnings] == [True]
    assert "XTuner 2" in summary(checked)[-1]


def test_what_an_import_changes_is_said(tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    roles = ["gpt", "human", "human", "gpt", "human"]
    turns = [{"from": role, "value": str(index)} for index, role in enumerate(roles)]
    turns[3]["weight"] = 0  # pyright: ignore[reportArgumentType]
    path.write_text("\n" + json.dumps({"conversations": turns}), "utf-8")
    (checked,) = check_files([path])
    assert checked.validation.errors == []
    assert checked.validation.exchanges == 1
    for words in (":2: 1 处开头没有提问", ":2: 1 处结尾没有回答", ": 1 条消息与同一角色", ": 1 条标为不训练"):
        assert sum(f"{path}{words}" in warning for warning in checked.validation.warnings) == 1


def test_errors_of_another_format_and_of_the_persona(tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": []}\n{"messages": [{"role": "tool", "content": "x"}]}', "utf-8")
    (checked,) = check_files([path])
    assert [error.removeprefix(f"{path}:")[0] for error in checked.validation.errors] == ["1", "2"]
    path.write_text(write_records(RECORDS, "openai"), "utf-8")
    (checked,) = check_files([path], system="别人")
    assert [error.split(" ")[0] for error in checked.validation.errors] == [f"{path}:1:"]


def test_records_in_two_files_are_told_once(tmp_path: Path):
    train, val = tmp_path / "train.jsonl", tmp_path / "val.jsonl"
    train.write_text(write_records(RECORDS), "utf-8")
    val.write_text(write_records(RECORDS[1:]), "utf-8")
    first, second = check_files([train, val])
    assert first.validation.warnings == []
    assert [warning.split(" ")[0] for warning in second.validation.warnings] == [f"{val}:1:"]


def test_summary_names_the_counts(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_text(write_records(RECORDS), "utf-8")
    lines = summary(check_files([path])[0])
    assert lines[0].startswith(f"{path}: 2 条对话，3 个来回")
    assert "longest record 8" in lines[0]
    assert lines[1].endswith("你是丙。")
    assert lines[2].strip().startswith("2 条注明出处")


def test_nothing_is_summed_up_of_a_file_without_records(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    for name in ("empty.jsonl", "gone.jsonl"):
        (checked,) = check_files([tmp_path / name])
        assert checked.validation.errors
        assert summary(checked) == []
