"""Bytes to text: the right encoding or an error, and never mojibake."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huanhuan.errors import UserError
from huanhuan.text.encoding import decode

SIMPLIFIED = (
    "甄嬛：臣妾给皇上请安，今日的雪下得这样大，皇上怎么一个人来了？\n皇帝：朕来看看你，宫里的人都说你病了。\n" * 3
)
TRADITIONAL = (
    "甄嬛：臣妾給皇上請安，今日的雪下得這樣大，皇上怎麼一個人來了？\n皇帝：朕來看看你，宮裡的人都說你病了。\n" * 3
)


@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "gbk"]
)
def test_simplified_text_is_recognised(codec: str) -> None:
    assert decode(SIMPLIFIED.encode(codec), "a.txt")[0] == SIMPLIFIED


@pytest.mark.parametrize("codec", ["utf-8", "utf-16", "gb18030", "gbk", "big5", "cp950", "big5hkscs"])
def test_traditional_text_is_recognised(codec: str) -> None:
    assert decode(TRADITIONAL.encode(codec), "a.txt")[0] == TRADITIONAL


def test_characters_that_strict_gbk_lacks_are_read() -> None:
    text = SIMPLIFIED + "㐂\U00020000€\n"
    with pytest.raises(UnicodeEncodeError):
        text.encode("gbk")
    assert decode(text.encode("gb18030"), "a.txt") == (text, "gb18030")
    assert decode(text.encode("gb18030"), "a.txt", "gbk")[0] == text


def test_ascii_and_windows_quotes() -> None:
    assert decode(b"ROMEO: Ay.\n", "a.txt") == ("ROMEO: Ay.\n", "ascii")
    english = "ROMEO: \u201cIt is the east,\u201d she said \u2013 no more.\n" * 8
    assert decode(english.encode("cp1252"), "a.txt") == (english, "cp1252")


@pytest.mark.parametrize("data", ["丁：我".encode("gbk"), b"\xb6\xa1\n"])
def test_too_little_to_tell_is_an_error_that_names_the_way_out(data: bytes) -> None:
    with pytest.raises(UserError) as error:
        decode(data, "第一集.txt")
    (line,) = error.value.problems
    assert line.startswith("第一集.txt: ")
    assert "gb18030" in line
    assert "big5" in line
    assert "--encoding" in line


def test_what_was_ambiguous_is_read_as_told() -> None:
    assert decode("甄嬛：是".encode("gbk"), "a.txt", "gbk") == ("甄嬛：是", "gbk")
    assert decode("臣妾".encode("big5"), "a.txt", "Big5")[0] == "臣妾"
    assert decode("\ufeff臣妾".encode("utf-16-le"), "a.txt", "utf-16-le")[0] == "臣妾"
    assert decode("臣妾".encode("utf-8-sig"), "a.txt", "utf-8")[0] == "臣妾"


def test_wrong_bytes_name_the_line() -> None:
    with pytest.raises(UserError, match=r"^a\.txt:2: .*--encoding"):
        decode("甄嬛：是\n".encode() + b"\xff\xfe\xfd", "a.txt", "utf-8")


@pytest.mark.parametrize("name", ["utf-9", "rot13", "base64", "hex"])
def test_no_such_encoding(name: str) -> None:
    with pytest.raises(UserError, match=f"--encoding {name}"):
        decode(b"abc", "a.txt", name)


BINARIES = {
    "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)),
    "elf": b"\x7fELF" + bytes(200),
    "zip": b"PK\x03\x04" + bytes(range(30)) * 9,
    "control": bytes(range(1, 32)) * 20,
}


@pytest.mark.parametrize("data", BINARIES.values(), ids=BINARIES)
def test_binaries_are_refused(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^a\.txt: "):
        decode(data, "a.txt")


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 30),
    st.sampled_from(
        [
            (SIMPLIFIED, "gb18030"),
            (TRADITIONAL, "big5"),
            (TRADITIONAL, "gbk"),
            (SIMPLIFIED, "utf-8"),
            (TRADITIONAL, "utf-16"),
        ]
    ),
    st.integers(0, 60),
)
def test_a_part_is_read_right_or_not_at_all(length: int, text_and_codec: tuple[str, str], start: int) -> None:
    text, codec = text_and_codec
    part = text[start : start + length]
    try:
        found, _ = decode(part.encode(codec), "a.txt")
    except UserError:
        return
    assert found == part


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_text_or_an_error(data: bytes) -> None:
    try:
        decode(data, "a.txt")
    except UserError as error:
        assert all("\n" not in line for line in error.problems)
