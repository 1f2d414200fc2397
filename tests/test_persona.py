"""The persona card: what it may hold, and every fault told at once."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from huanhuan.errors import UserError
from huanhuan.paths import DATA
from huanhuan.persona import Identity, load_persona

CARD = """
name = " 林晚 "
aliases = ["晚儿", "林姑娘"]
system = "现在你要扮演江南绣坊的少东家--林晚"
greeting = "来啦？"
starters = ["这幅绣品要绣多久？"]

[[identity]]
questions = ["你是谁？", "你叫什么名字？"]
answers = ["我是林晚。"]
"""


def card(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "persona.toml"
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(UserError) as error:
        load_persona(path)
    assert all(each.startswith(f"{path}: ") and "\n" not in each for each in error.value.problems)
    return [each.removeprefix(f"{path}: ") for each in error.value.problems]


def test_a_card_is_read(tmp_path: Path) -> None:
    persona = load_persona(card(tmp_path, CARD))
    assert persona.name == "林晚"
    assert persona.names == ("林晚", "晚儿", "林姑娘")
    assert persona.system == "现在你要扮演江南绣坊的少东家--林晚"
    assert (persona.greeting, persona.starters) == ("来啦？", ("这幅绣品要绣多久？",))
    assert persona.identity == (Identity(("你是谁？", "你叫什么名字？"), ("我是林晚。",)),)


def test_aliases_and_identity_may_be_left_out(tmp_path: Path) -> None:
    persona = load_persona(card(tmp_path, 'name = "a"\nsystem = "b"\ngreeting = "c"\nstarters = ["d"]\n'))
    assert (persona.names, persona.identity) == (("a",), ())


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    plain = load_persona(card(tmp_path, CARD))
    assert load_persona(card(tmp_path, codecs.BOM_UTF8 + CARD.replace("\n", "\r\n").encode("utf-8"))) == plain


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such persona card"),
        (CARD.encode("gb18030"), "not UTF-8"),
        (CARD.encode("utf-16"), "not UTF-8"),
        ('name = "林晚\n', "not valid TOML"),
        ("name = 1\nname = 2\n", "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: str | bytes | None, said: str) -> None:
    path = tmp_path / "persona.toml" if content is None else card(tmp_path, content)
    (line,) = problems(path)
    assert said in line
    assert line.count(": ") >= 1


def test_a_folder_is_no_card(tmp_path: Path) -> None:
    (line,) = problems(tmp_path)
    assert "cannot read the card" in line


@pytest.mark.parametrize("key", ["name", "system", "greeting", "starters"])
def test_a_key_that_is_missing(tmp_path: Path, key: str) -> None:
    (line,) = problems(card(tmp_path, "\n".join(each for each in CARD.split("\n") if not each.startswith(key))))
    assert line.startswith(f"[{key}] ")
    assert f"add {key} = " in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "5"),
        ("name", '" "'),
        ("system", '["扮演"]'),
        ("greeting", "true"),
        ("starters", '"一句"'),
        ("starters", "[1]"),
        ("starters", '["一句", ""]'),
        ("starters", '["一句", "一句"]'),
        ("aliases", '"晚儿"'),
        ("aliases", '["晚儿", "晚儿"]'),
        ("identity", '"谁"'),
        ("identity", "[1]"),
    ],
)
def test_a_value_of_the_wrong_kind(tmp_path: Path, key: str, value: str) -> None:
    lines = [each for each in CARD.split("\n[[")[0].split("\n") if not each.startswith(key)]
    (line,) = problems(card(tmp_path, "\n".join([*lines, f"{key} = {value}"])))
    assert line.startswith(f"[{key}] ")


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ('questions = ["你是谁？"]', "[identity #2.answers]"),
        ('questions = []\nanswers = ["我。"]', "[identity #2.questions]"),
        ('questions = "谁"\nanswers = ["我。"]', "[identity #2.questions]"),
        ('questions = ["谁", "谁"]\nanswers = ["我。"]', "[identity #2.questions]"),
        ('questions = ["谁"]\nanswers = ["我。"]\nanswer = "我。"', "[identity #2]"),
    ],
)
def test_an_identity_table_with_a_fault_is_named_by_its_number(tmp_path: Path, table: str, place: str) -> None:
    (line,) = problems(card(tmp_path, f"{CARD}\n[[identity]]\n{table}\n"))
    assert line.startswith(f"{place} ")


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    content = 'nmae = "林晚"\nsystem = ""\ngreeting = 1\nstarters = []\naliases = [""]\n[[identity]]\nquestions = [1]\n'
    places = [line.split(" ")[0] for line in problems(card(tmp_path, content))]
    assert sorted(places) == [
        "[aliases]",
        "[greeting]",
        "[identity",
        "[identity",
        "[name]",
        "[nmae]",
        "[starters]",
        "[system]",
    ]


def test_the_example_s_card_borrows_no_published_answer() -> None:
    """One published set answers with her father's full name; she says it in her own words."""
    persona = load_persona(DATA / "huanhuan/persona.toml")
    assert persona.name == "甄嬛"
    assert persona.system == "现在你要扮演皇帝身边的女人--甄嬛"
    answers = [answer for identity in persona.identity for answer in identity.answers]
    assert not any("甄远道" in answer or "大理寺少卿" in answer for answer in answers)
