"""The contract of a training file, one broken line at a time."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huanhuan.dataset.records import Conversation, Exchange, Source
from huanhuan.dataset.validate import WARNING_PLACES, shared_records, validate_file, validate_records
from huanhuan.errors import UserError
from huanhuan.template import CONTROL_TOKENS


def exchange(prompt: str = "明日出发吗？", reply: str = "自然。", **more: Any) -> dict[str, Any]:
    return {"input": prompt, "output": reply, **more}


def line(*exchanges: Any, **more: Any) -> str:
    return json.dumps({"conversation": list(exchanges), **more}, ensure_ascii=False)


@pytest.fixture
def write(tmp_path: Path):
    def to_file(*lines: str | bytes, name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"\n".join(each.encode() if isinstance(each, str) else each for each in lines) + b"\n")
        return path

    return to_file


def test_a_sound_file_has_counts_and_nothing_else(write):
    path = write(
        line(
            {"system": "你是甲。", **exchange("一", "二二")},
            exchange("三", "四"),
            source={"file": "a", "lines": [1, 4]},
        ),
        "",
        line({"system": "你是甲。", **exchange("五", "六")}),
    )
    result = validate_file(path, system="你是甲。")
    assert (result.errors, result.warnings) == ([], [])
    assert (result.records, result.exchanges, result.sources) == (2, 3, 1)
    assert (result.prompt_characters, result.reply_characters, result.longest) == (3, 4, len("你是甲。") + 5)
    assert result.systems == {"你是甲。": 2}
    assert list(result.fingerprints.values()) == [1, 3]
    result.raise_if_errors()


@pytest.mark.parametrize(
    ("broken", "field", "words"),
    [
        ('{"conversation": [', "", "JSON 语法错误"),
        ("[]", "", "不是 JSON 对象"),
        ("{}", "conversation", "非空列表"),
        ('{"conversation": "甲"}', "conversation", "非空列表"),
        ('{"conversation": []}', "conversation", "非空列表"),
        ('{"conversation": ["甲"]}', "conversation[0]", "不是 JSON 对象"),
        (line({"input": "问"}), "conversation[0].output", "缺少"),
        (line({"output": "答"}), "conversation[0].input", "缺少"),
        (line(exchange("")), "conversation[0].input", "是空的"),
        (line(exchange("　\n")), "conversation[0].input", "是空的"),
        (line(exchange(reply="<s> </s>")), "conversation[0].output", "没有文字"),
        (line({"input": 5, "output": "答"}), "conversation[0].input", "number"),
        (line({"input": "问", "output": None}), "conversation[0].output", "null"),
        (line({"input": "问", "output": ["答"]}), "conversation[0].output", "list"),
        (line(exchange(system=3)), "conversation[0].system", "number"),
        (line(exchange(), exchange("二", system="甲")), "conversation[1].system", "第一个来回"),
        ('{"conversation": [{"input": "问", "input": "二", "output": "答"}]}', "", "[input] 在同一个对象里写了两次"),
        (line(exchange()).replace("自然", "\\ud800"), "", "代理码位"),
        ('{"a": ' + "[" * 100_000, "", "嵌套太深"),
        ('{"conversation": [{"input": "问", "output": "答"}], "n": ' + "9" * 5000 + "}", "", "4300"),
        ('{"a\\n": 1, "a\\n": 2}', "", "[a\\u000a] 在"),
        (line(exchange()).encode("gb18030"), "", "不是 UTF-8"),
    ],
)
def test_an_error_names_line_and_field(write, broken, field, words):
    path = write(line(exchange()), broken, line(exchange("后来呢？")))
    result = validate_file(path)
    assert len(result.errors) == 1
    assert result.errors[0].startswith(f"{path}:2: " + (f"[{field}] " if field else ""))
    assert words in result.errors[0]
    assert "\n" not in result.errors[0]
    assert result.records == 3
    with pytest.raises(UserError, match=":2: "):
        result.raise_if_errors()


def test_every_error_is_reported_in_one_pass(write):
    path = write(line(exchange("")), "{", line({"input": "", "output": ""}, exchange(system="甲")))
    assert [error.removeprefix(f"{path}:").split(":")[0] for error in validate_file(path).errors] == list("12333")


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_every_control_token_is_warned_about(write, token):
    path = write(line(exchange(reply=f"好{token}吧")))
    result = validate_file(path)
    assert result.errors == []
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith(f"{path}:1: [conversation[0].output] ")
    assert token in result.warnings[0]


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        ([line(exchange("一")), line(exchange("二")), line(exchange("一"))], ":3: ", "与第 1 行重复"),
        ([line(exchange(system="甲")), line(exchange("二", system="乙"))], ":2: ", "系统提示有 2 种"),
        ([line(exchange(system="甲")), line(exchange("二"))], ":2: ", "系统提示有 2 种"),
        ([line(exchange("同", "同"))], ":1: [conversation[0]]", "与提问相同"),
        ([line(exchange("锟\ufffd"))], ":1: [conversation[0].input]", "U+FFFD"),
        ([line(exchange(output_with_loss=False))], ":1: [conversation[0].output_with_loss]", "不读"),
        ([line(exchange(system=" "))], ":1: [conversation[0].system]", "是空的"),
    ],
)
def test_a_warning_names_line_and_field(write, lines, place, words):
    path = write(*lines)
    result = validate_file(path)
    assert result.errors == []
    assert len(result.warnings) == 1
    assert result.warnings[0].startswith(f"{path}{place}")
    assert words in result.warnings[0]


def test_null_system_is_no_system(write):
    result = validate_file(write(line(exchange(system=None), exchange("二", system=None))))
    assert (result.errors, result.warnings) == ([], [])


def test_many_warnings_of_a_kind_become_a_count(write):
    result = validate_file(write(*[line(exchange("一"))] * 100))
    assert len(result.warnings) == WARNING_PLACES + 1
    assert f"还有 {99 - WARNING_PLACES} 处" in result.warnings[-1]


def test_records_of_another_system_prompt_than_the_persona(write):
    path = write(line(exchange(system="甲")), line(exchange("二", system="乙")), line(exchange("三")))
    result = validate_file(path, system=" 甲 ")
    assert result.warnings == []
    assert len(result.errors) == 1
    assert result.errors[0].startswith(f"{path}:2: [conversation[0].system] 2 条")


def test_a_key_whose_type_changes_cannot_be_loaded(write):
    path = write(
        line(exchange("一"), source={"file": "a", "lines": [1, 2]}),
        line(exchange("二"), source="a"),
        line(exchange("三"), source={"file": 1}),
        line(exchange("四"), source=None),
    )
    errors = validate_file(path).errors
    assert [error.removeprefix(str(path)).split(" ")[1] for error in errors] == ["[source]", "[source.file]"]
    assert [error.removeprefix(f"{path}:")[0] for error in errors] == list("23")


@pytest.mark.parametrize(
    ("key", "name"), [("messages", "OpenAI"), ("conversations", "ShareGPT"), ("instruction", "Alpaca")]
)
def test_another_format_is_one_error(write, key, name):
    path = write(line(exchange()), *[json.dumps({key: "x"})] * 1000)
    errors = validate_file(path).errors
    assert len(errors) == 1
    assert errors[0].startswith(f"{path}:2: 1000 条是 {name}")
    assert "dialogue_to_jsonl" in errors[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "空文件"),
        (b"\xef\xbb\xbf \n\n", "空文件"),
        (b"\x7fELF\0\0", "二进制"),
        (line(exchange()).encode("utf-16"), "UTF-16"),
        ("甲：你好。\n乙：你好。".encode(), "不是 JSON"),
        (json.dumps([{"conversation": [exchange()]}], indent=1).encode(), "JSON lines"),
        (json.dumps({"conversation": [exchange()]}, indent=1).encode(), "JSON lines"),
    ],
)
def test_a_file_that_is_not_json_lines_is_one_error(tmp_path, content, words):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    errors = validate_file(path).errors
    assert len(errors) == 1
    assert errors[0].startswith(f"{path}:")
    assert words in errors[0]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        errors = validate_file(path).errors
        assert len(errors) == 1
        assert errors[0].startswith(f"{path}: ")


def test_a_byte_order_mark_is_one_error(write):
    path = write(b"\xef\xbb\xbf" + line(exchange("一")).encode(), line(exchange("二")))
    result = validate_file(path)
    assert result.records == 2
    assert [error.split(" ")[0] for error in result.errors] == [f"{path}:1:"]
    assert "BOM" in result.errors[0]


def test_crlf_and_unicode_line_ends_are_no_problem(write):
    text = "一\u2028二\u0085三"
    path = write(line(exchange(text)) + "\r", line(exchange("四")) + "\r")
    result = validate_file(path)
    assert (result.errors, result.warnings, result.records) == ([], [], 2)


def test_records_shared_by_two_files(write):
    train = validate_file(write(line(exchange("一")), line(exchange("二")), name="train.jsonl"))
    val = validate_file(write(line(exchange("三")), line(exchange("二", system="甲")), name="val.jsonl"))
    other = validate_file(write(line(exchange("四")), name="other.jsonl"))
    assert shared_records([train, other]) == []
    warnings = shared_records([train, val, other])
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{val.path}:2: 1 条对话也在 {train.path} 里")


def test_records_of_another_format_are_checked_where_they_stand():
    records = [Conversation((Exchange("一", "二"),)), Conversation((Exchange("三", "四<s>"), Exchange("五", "六")))]
    result = validate_records("data.json", records, [1, 40])
    assert result.errors == []
    assert [warning.split(" ")[:2] for warning in result.warnings] == [["data.json:40:", "[conversation[0].output]"]]
    assert (result.records, result.exchanges) == (2, 3)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), min_size=1).filter(
    lambda text: bool(text.strip()) and not any(token in text for token in CONTROL_TOKENS)
)


@given(st.lists(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), min_size=1, max_size=5), TEXT)
@settings(deadline=None)
def test_whatever_the_converter_writes_is_valid(tmp_path_factory, scenes, system):
    path = tmp_path_factory.mktemp("valid") / "train.jsonl"
    conversations = [
        Conversation(tuple(Exchange(*pair) for pair in scene), system, Source("a.txt", 1, 2)) for scene in scenes
    ]
    path.write_text(
        "".join(json.dumps(each.to_json(), ensure_ascii=False) + "\n" for each in conversations), "utf-8", newline="\n"
    )
    result = validate_file(path, system=system)
    assert result.errors == []
    assert result.records == len(scenes)


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: ("{" + text).encode("utf-8", "replace")))
@settings(deadline=None)
def test_no_bytes_make_it_crash(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "train.jsonl"
    path.write_bytes(content)
    result = validate_file(path)
    assert result.errors
    assert all("\n" not in error for error in result.errors)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["conversation", "system", "input", "output", "source", "messages"]), inner)
    ),
    max_leaves=15,
)


@given(st.lists(VALUES | st.fixed_dictionaries({"conversation": st.lists(VALUES)}), min_size=1, max_size=4))
@settings(deadline=None)
def test_no_json_makes_it_crash(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("fuzz") / "train.jsonl"
    path.write_text("{}\n" + "".join(json.dumps(value) + "\n" for value in values), "utf-8")
    result = validate_file(path)
    assert result.errors[0].startswith(f"{path}:1: [conversation]")


def test_100_000_records_in_a_few_seconds_without_torch(tmp_path):
    path = tmp_path / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(100_000):
            file.write(
                line(
                    exchange(f"第{number}回说到哪里了？" * 3, "且听下回分解。" * 3), source={"file": "a", "lines": [1]}
                )
            )
            file.write("\n")
    code = (
        "import sys; from huanhuan.dataset.validate import validate_file;"
        "result = validate_file(sys.argv[1]); assert result.records == 100_000 and not result.errors;"
        "assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert time.perf_counter() - start < 15
