"""The word filter and its list."""

from __future__ import annotations

from pathlib import Path

import pytest

from huanhuan.chat import filters
from huanhuan.chat.filters import NoFilter, WordFilter, chosen_filter, load_filter
from huanhuan.errors import UserError

EXAMPLE = Path(filters.__file__).with_name("words.example.txt")


def test_the_example_list_filters_what_it_says() -> None:
    words = load_filter(EXAMPLE)
    assert words.blocked("我的身份证号是") and words.blocked("打给 13800138000 吧")
    assert not words.blocked("今日天气甚好，138 两银子。")
    assert words.masked("号码 13800138000。") == "号码 ＊＊＊＊＊＊＊＊＊＊＊。"


def test_spaces_and_case_do_not_hide_a_word() -> None:
    words = WordFilter(["Bad Word"])
    assert words.masked("xBAD\nwordx") == "x＊＊＊＊＊＊＊＊x"
    assert not WordFilter([]).blocked("什么都行")


def test_longer_words_go_first() -> None:
    assert WordFilter(["毒", "毒药"]).masked("毒药") == "＊＊"


def test_wrong_lines_are_all_told(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("好词\n/(/\n/a*/\n", "utf-8")
    with pytest.raises(UserError) as caught:
        load_filter(path)
    assert [line.split(": ")[0] for line in caught.value.problems] == [f"{path}:2", f"{path}:3"]


def test_nothing_is_filtered_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert isinstance(chosen_filter({}), NoFilter)
    assert isinstance(chosen_filter({"HUANHUAN_WORDS": str(EXAMPLE)}), WordFilter)
    with pytest.raises(UserError, match="HUANHUAN_WORDS"):
        chosen_filter({"HUANHUAN_WORDS": str(tmp_path / "none.txt")})
