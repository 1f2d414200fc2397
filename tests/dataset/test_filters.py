"""Each filter: what it drops, what it keeps, and that it can be adjusted and switched off."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huanhuan.dataset.filters import NAMES, FilterOptions, Filters

LONG = "臣妾昨夜在灯下补完了那一册花谱，今早便送到寿康宫去了。"


def reasons(*said: tuple[str, str], **options: object) -> list[str | None]:
    filters = Filters(FilterOptions(**options))  # type: ignore[arg-type]
    return [filters.reason(*each) for each in said]


@pytest.mark.parametrize("reply", ["……", "！", "——。", "“”"])
def test_replies_without_a_word_are_short(reply: str) -> None:
    assert reasons(("去不去？", reply)) == ["short"]


def test_the_shortest_reply_is_adjustable() -> None:
    assert reasons(("去不去？", "不去。"), ("去？", "我不去。"), min_chars=3) == ["short", None]


@pytest.mark.parametrize("reply", ["嗯。", "啊！", "哎呀……", "哼，", "嗯，嗯。", "Oh!", "Hm...", "ha ha"])
def test_pure_interjection(reply: str) -> None:
    assert reasons(("去不去？", reply)) == ["interjection"]


@pytest.mark.parametrize("reply", ["是。", "嗯，去。", "啊？什么？", "Aye.", "O Romeo!", "no"])
def test_what_only_has_an_interjection_in_it(reply: str) -> None:
    assert reasons(("去不去？", reply)) == [None]


def test_the_interjections_are_adjustable() -> None:
    assert reasons(("去？", "喵。"), ("去？", "嗯。"), interjections="喵") == ["interjection", None]
    assert reasons(("去？", "嗯。"), interjections="") == [None]


def test_the_same_exchange_twice() -> None:
    said = [("去不去？", "不去。"), ("去不去!", "不去"), ("去不去？", "去。"), ("你去不去？", "不去。")]
    assert reasons(*said) == [None, "duplicate", None, None]
    assert reasons(*said[:2], copies=2) == [None, None]


def test_nearly_the_same_exchange() -> None:
    near = LONG.replace("今早", "今晨")
    assert reasons(("花谱补好了么？", LONG), ("花谱补好了么？", near)) == [None, "near_duplicate"]
    assert reasons(("花谱补好了么？", LONG), ("花谱补好了么？", near), similarity=0.99) == [None, None]
    assert reasons(("花谱补好了么？", LONG), ("皇上昨日说的是哪一件事，你可还记得清楚？", LONG)) == [None, None]


def test_short_exchanges_are_never_nearly_the_same() -> None:
    assert reasons(("是么？", "是。"), ("是么？", "不是。")) == [None, None]


@pytest.mark.parametrize("name", NAMES)
def test_each_filter_is_off_by_name(name: str) -> None:
    said = {
        "short": [("去？", "……")],
        "interjection": [("去？", "嗯。")],
        "duplicate": [("去？", "去。"), ("去？", "去。")],
        "near_duplicate": [("花谱？", LONG), ("花谱？", LONG.replace("今早", "今晨"))],
    }[name]
    assert reasons(*said)[-1] == name
    assert reasons(*said, off=frozenset((name,)))[-1] is None
    assert reasons(*said, off=frozenset(NAMES) - {name})[-1] == name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=60)), max_size=20))
def test_any_text_passes_when_all_are_off(said: list[tuple[str, str]]) -> None:
    assert reasons(*said, off=frozenset(NAMES)) == [None] * len(said)
    filters = Filters(FilterOptions())
    assert {filters.reason(*each) for each in said} <= {None, *NAMES}


def test_time_grows_with_the_number_of_exchanges() -> None:
    def seconds(count: int) -> float:
        # All of one phrase, which is the worst: each shares a hash with each.
        said = [(f"第{n}件事如何？", f"{LONG}{n * 7919 % 100003}") for n in range(count)]
        filters = Filters(FilterOptions())
        start = time.process_time()
        for each in said:
            filters.reason(*each)
        return time.process_time() - start

    small, large = seconds(500), seconds(4000)
    assert large < 30 * max(small, 0.01)
