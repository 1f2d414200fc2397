"""Every format in and out: exact records, round trips, and one line per thing that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huanhuan.dataset.formats import FORMATS, Format, format_records, read_file, read_records, write_records
from huanhuan.dataset.records import Conversation, Exchange, Source
from huanhuan.dataset.report import REASONS
from huanhuan.dataset.validate import validate_file
from huanhuan.errors import UserError

SCENE = Conversation(
    (Exchange("明日出发吗？", "自然。"), Exchange("几时？", "卯时。")), system="你是甲。", source=Source("a.txt", 3, 9)
)
WRITTEN = {
    "xtuner": {
        "conversation": [
            {"system": "你是甲。", "input": "明日出发吗？", "output": "自然。"},
            {"input": "几时？", "output": "卯时。"},
        ],
    },
    "openai": {
        "messages": [
            {"role": "system", "content": "你是甲。"},
            {"role": "user", "content": "明日出发吗？"},
            {"role": "assistant", "content": "自然。"},
            {"role": "user", "content": "几时？"},
            {"role": "assistant", "content": "卯时。"},
        ],
    },
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "你是甲。"},
            {"from": "human", "value": "明日出发吗？"},
            {"from": "gpt", "value": "自然。"},
            {"from": "human", "value": "几时？"},
            {"from": "gpt", "value": "卯时。"},
        ],
    },
    "alpaca": {
        "instruction": "几时？",
        "input": "",
        "output": "卯时。",
        "system": "你是甲。",
        "history": [["明日出发吗？", "自然。"]],
    },
}


@pytest.fixture
def write(tmp_path: Path):
    def to_file(content: Any, name: str = "data.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
        return path

    return to_file


def pairs(path: Path) -> list[tuple[tuple[str, str], ...]]:
    return [tuple((each.input, each.output) for each in record.exchanges) for record in read_records(path)]


@pytest.mark.parametrize("format", FORMATS)
def test_what_each_format_looks_like(format: Format):
    text = write_records([SCENE], format)
    assert text.endswith("\n")
    assert json.loads(text) == {**WRITTEN[format], "source": {"file": "a.txt", "lines": [3, 9]}}
    assert json.loads(write_records([SCENE], format, source=False)) == WRITTEN[format]


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="xtuner, openai, sharegpt, alpaca"):
        write_records([SCENE], "csv")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_is_read_like_json_lines(write, format: Format, indent):
    records = [json.loads(line) for line in format_records([SCENE, SCENE], format)]
    assert read_records(write(json.dumps(records, indent=indent))) == [SCENE, SCENE]


def test_a_record_without_source_gets_its_lines(write):
    path = write(json.dumps([WRITTEN["openai"], WRITTEN["alpaca"]], indent=1, ensure_ascii=False))
    lines = path.read_text("utf-8").split("\n")
    sources = [record.source for record in read_records(path)]
    assert [source.file for source in sources if source] == [str(path)] * 2
    spans = [(source.first, source.last) for source in sources if source]
    assert [lines[first - 1].strip() for first, _ in spans] == ["{", "{"]
    assert [lines[last - 1].strip() for _, last in spans] == ["},", "}"]
    assert read_file(path).lines == [first for first, _ in spans]
    (one,) = read_records(write("\n\n" + json.dumps(WRITTEN["xtuner"])))
    assert one.source == Source(str(path), 3, 3)


def test_a_source_of_another_kind_is_not_taken_for_lines(write):
    for source in (
        "wiki",
        {"file": 3, "lines": [1, 2]},
        {"file": "a", "lines": [1]},
        {"file": "a", "lines": [True, 2]},
    ):
        path = write({**WRITTEN["openai"], "source": source})
        assert [record.source for record in read_records(path)] == [Source(str(path), 1, 1)]


def test_formats_may_be_mixed_and_are_counted(write):
    path = write("\n".join(json.dumps(record) for record in [*WRITTEN.values(), WRITTEN["openai"]]))
    imported = read_file(path)
    assert imported.formats == {"xtuner": 1, "openai": 2, "sharegpt": 1, "alpaca": 1}
    assert {record.exchanges for record in imported.conversations} == {SCENE.exchanges}
    assert {record.system for record in imported.conversations} == {SCENE.system}


def test_messages_of_one_role_in_a_row_become_one(write):
    path = write(
        {"conversations": [{"from": "human", "value": text} for text in "一二"] + [{"from": "gpt", "value": "三"}] * 2}
    )
    assert pairs(path) == [(("一\n二", "三\n三"),)]
    assert read_file(path).merged == 2


def test_a_greeting_and_an_unanswered_question_are_left_out_with_a_reason(write):
    roles = ["assistant", "user", "assistant", "user", "user"]
    path = write(
        [
            {"messages": [{"role": role, "content": text} for role, text in zip(roles, "一二三四五", strict=True)]},
            {"messages": [{"role": "assistant", "content": "六"}]},
        ]
    )
    imported = read_file(path)
    assert [record.exchanges for record in imported.conversations] == [(Exchange("二", "三"),)]
    assert [(skipped.reason, skipped.text) for skipped in imported.skipped] == [
        ("no_prompt", "一"),
        ("not_prompt", "四\n五"),
        ("no_prompt", "六"),
    ]
    assert {skipped.reason for skipped in imported.skipped} <= REASONS.keys()
    assert {(skipped.file, skipped.line) for skipped in imported.skipped} == {(str(path), 1)}


def test_a_file_without_any_exchange_is_an_error(write):
    for content in ([], [{"messages": [{"role": "user", "content": "在吗？"}]}]):
        with pytest.raises(UserError, match="没有一个来回"):
            read_records(write(content))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "翻译", "input": "hello", "output": "你好"}, (("翻译\nhello", "你好"),)),
        ({"instruction": "", "input": "hello", "output": "你好"}, (("hello", "你好"),)),
        ({"instruction": "问", "output": "答", "history": None, "system": ""}, (("问", "答"),)),
        ({"input": "问", "output": "答"}, (("问", "答"),)),
        ({"instruction": "二", "output": "2", "history": [["一", "1"]]}, (("一", "1"), ("二", "2"))),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "问"}]},
                    {"role": "assistant", "content": "答"},
                ]
            },
            (("问", "答"),),
        ),
        (
            {"conversations": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
            (("问", "答"),),
        ),
    ],
)
def test_variants_seen_in_the_field(write, record, expected):
    assert pairs(write([record])) == [expected]


def test_system_messages_of_either_place_become_one(write):
    turns = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
    system = {"from": "system", "value": "你是甲。"}
    for record in (
        {"system": "你是甲。", "conversations": turns},
        {"system": "你是甲。", "conversations": [system, *turns]},
    ):
        assert [each.system for each in read_records(write(record))] == ["你是甲。"]
    path = write({"messages": [{"role": "system", "content": "一"}, {"role": "developer", "content": "二"}, *turns]})
    assert [each.system for each in read_records(path)] == ["一\n二"]


def test_replies_excluded_from_training_are_counted(write):
    messages = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答", "weight": 0}]
    exchange = {"input": "问", "output": "答", "output_with_loss": False}
    assert read_file(write([{"messages": messages}, {"conversation": [exchange]}])).unmasked == 2
    assert read_file(write(list(WRITTEN.values()))).unmasked == 0


def turn(role: str = "user", content: Any = "问") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (5, ""),
        ({}, ""),
        ({"text": "甲"}, ""),
        (turn(), ""),
        ({"messages": []}, "messages"),
        ({"messages": "甲"}, "messages"),
        ({"messages": [turn(), "甲"]}, "messages[1]"),
        ({"messages": [turn("tool"), turn("assistant")]}, "messages[0].role"),
        ({"messages": [turn(), {"content": "答"}]}, "messages[1].role"),
        ({"messages": [{"role": ["user"], "content": "问"}]}, "messages[0].role"),
        ({"messages": [turn(), turn("assistant", None)]}, "messages[1].content"),
        ({"messages": [turn(), turn("assistant", " ")]}, "messages[1].content"),
        ({"messages": [turn(content=[{"type": "image_url"}])]}, "messages[0].content"),
        ({"messages": [turn(), turn("system"), turn("assistant")]}, "messages[1].content"),
        ({"conversations": [{"from": "human"}]}, "conversations[0].value"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "conversations[0].from"),
        ({"conversation": [{"input": "问"}]}, "conversation[0].output"),
        ({"conversation": ["问"]}, "conversation[0]"),
        (
            {"conversation": [{"input": "问", "output": "答"}, {"system": "甲", "input": "问", "output": "答"}]},
            "conversation[1].system",
        ),
        ({"instruction": "", "output": "答"}, "instruction"),
        ({"instruction": 5, "output": "答"}, "instruction"),
        ({"instruction": "问", "output": ""}, "output"),
        ({"instruction": "问", "output": "答", "history": "旧"}, "history"),
        ({"instruction": "问", "output": "答", "history": [["只有问"]]}, "history[0]"),
        ({"instruction": "问", "output": "答", "history": [["问", ""]]}, "history[0][1]"),
        ({"instruction": "问", "output": "答", "system": ["甲"]}, "system"),
    ],
)
def test_an_error_names_line_record_and_field(write, record, field):
    for path in (
        write("\n".join(json.dumps(each) for each in (WRITTEN["openai"], record))),
        write("[" + json.dumps(WRITTEN["openai"]) + ",\n" + json.dumps(record) + "]"),
    ):
        with pytest.raises(UserError) as caught:
            read_records(path)
        (problem,) = caught.value.problems
        assert problem.startswith(f"{path}:2: 第 2 条 / record 2: " + (f"[{field}] " if field else ""))
        assert "\n" not in problem


def test_all_errors_come_in_one_pass(write):
    lines = ["{", json.dumps({"messages": [turn(content="")]}), json.dumps({"conversation": [{}]}), '{"a": 1, "a": 2}']
    with pytest.raises(UserError) as caught:
        read_records(write("\n".join(['{"messages": []}', *lines]), "data.jsonl"))
    places = [problem.split("data.jsonl:")[1].split(":")[0] for problem in caught.value.problems]
    assert places == ["1", "2", "3", "4", "4", "5"]
    with pytest.raises(UserError) as caught:
        read_records(write("[" + ",\n".join(lines[1:]) + ",\n{]"))
    places = [problem.split("data.json:")[1].split(":")[0] for problem in caught.value.problems]
    assert places == ["1", "2", "2", "3", "4"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "空文件"),
        ("甲：你好。".encode(), "不是 JSON"),
        (b"\x00\x01", "二进制"),
        (b'[{"messages": []', "JSON"),
        (b'[{"a": 1} {"a": 2}]', "JSON"),
        (b'[{"a": 1}] {', "列表之后"),
        (b"[" * 100_000, "记录|record"),
        (b'[{"a": ' + b"9" * 5000 + b"}]", "record 1"),
        (b'[\n{"a": "\\ud800"}]', ":2: .*代理码位"),
        ('[\n{"a": "甲"}]'.encode("gb18030"), ":2: 不是 UTF-8"),
        ('{"a": "甲"}'.encode("gb18030"), ":1: 不是 UTF-8"),
    ],
)
def test_files_that_are_not_json(tmp_path, content, words):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_records(path)
    assert str(path) in caught.value.problems[0]
    assert not any("\n" in problem for problem in caught.value.problems)


def test_files_that_cannot_be_opened(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError, match=str(path)):
            read_records(path)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "big5"])
def test_another_encoding_can_be_named(tmp_path, encoding):
    path = tmp_path / "data.json"
    for text in (write_records([SCENE], "alpaca"), json.dumps([WRITTEN["openai"]], indent=1, ensure_ascii=False)):
        path.write_bytes(text.encode(encoding, "replace"))
        assert len(read_records(path, encoding=encoding)) == 1
    with pytest.raises(UserError, match="没有 nope 这种编码"):
        read_records(path, encoding="nope")
    with pytest.raises(UserError, match="换一个 --encoding"):
        read_records(path, encoding="ascii")


def test_byte_order_mark_and_crlf(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + write_records([SCENE, SCENE]).replace("\n", "\r\n").encode())
    assert read_records(path) == [SCENE, SCENE]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
CONVERSATIONS = st.lists(
    st.builds(
        Conversation,
        st.lists(st.builds(Exchange, TEXT, TEXT), min_size=1, max_size=4).map(tuple),
        st.none() | TEXT,
        st.builds(Source, TEXT, st.integers(1, 9999), st.integers(1, 9999)),
    ),
    min_size=1,
    max_size=4,
)


@given(CONVERSATIONS, st.sampled_from(FORMATS), st.sampled_from(["lines", "list", "indented"]))
@settings(deadline=None)
def test_round_trip(tmp_path_factory, conversations, format, layout):
    path = tmp_path_factory.mktemp("round") / "data.json"
    text = write_records(conversations, format)
    if layout != "lines":
        records = [json.loads(line) for line in text.split("\n")[:-1]]
        text = json.dumps(records, ensure_ascii=False, indent=2 if layout == "indented" else None)
    path.write_text(text, "utf-8", newline="")
    imported = read_file(path)
    assert imported.conversations == conversations
    assert imported.formats == {format: len(conversations)}
    assert (imported.skipped, imported.merged) == ([], 0)


@given(CONVERSATIONS)
@settings(deadline=None, max_examples=30)
def test_through_all_formats_and_back_to_a_valid_training_file(tmp_path_factory, conversations):
    folder = tmp_path_factory.mktemp("chain")
    read = conversations
    order: list[Format] = [*FORMATS[1:], FORMATS[0]]
    for format in order:
        path = folder / f"{format}.jsonl"
        path.write_text(write_records(read, format), "utf-8", newline="")
        read = read_records(path)
    assert read == conversations
    assert not [error for error in validate_file(path).errors if "控制符" not in error]


KEYS = ["conversation", "messages", "conversations", "role", "content", "from", "value"]
KEYS += ["instruction", "input", "output", "history", "system"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["user", "gpt", "system", "甲", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.lists(VALUES, max_size=4), st.booleans())
@settings(deadline=None)
def test_no_json_makes_it_crash(tmp_path_factory, values, as_list):
    path = tmp_path_factory.mktemp("fuzz") / "data.json"
    lines = [json.dumps(value) for value in values]
    path.write_text("[" + ",\n".join(lines) + "]" if as_list else "\n".join(lines), "utf-8")
    try:
        assert read_file(path).conversations
    except UserError as error:
        assert error.problems
        assert not any("\n" in problem for problem in error.problems)


@given(st.binary(max_size=200), st.sampled_from([b"", b"[", b"{\n", b'[{"messages":', b'{"conversation":']))
@settings(deadline=None)
def test_no_bytes_make_it_crash(tmp_path_factory, content, start):
    path = tmp_path_factory.mktemp("fuzz") / "data.json"
    path.write_bytes(start + content)
    with pytest.raises(UserError) as caught:
        read_file(path)
    assert not any("\n" in problem for problem in caught.value.problems)
