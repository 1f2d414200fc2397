"""The shelf of kept pages: bounded in every way, and for their owners only."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from huanhuan.chat.page.shelf import Shelf, keep_hours
from huanhuan.errors import UserError


@dataclass
class Page:
    key: str
    owner: str = ""
    holder: str = ""
    weight: int = 1


def nobody(page: Page) -> bool:
    return False


def test_a_page_is_found_by_its_key_and_by_nobody_else() -> None:
    shelf: Shelf[Page] = Shelf()
    mine, open_to_all = Page("a", "me"), Page("b")
    assert shelf.keep(mine) and shelf.keep(open_to_all)
    assert shelf.find("a", "me") is mine and shelf.find("b", "") is open_to_all
    assert shelf.find("a", "") is shelf.find("a", "you") is shelf.find("b", "you") is shelf.find("c", "me") is None


def test_the_latest_page_of_a_browser_that_no_window_shows() -> None:
    shelf: Shelf[Page] = Shelf()
    for key, owner in (("a", "me"), ("b", "me"), ("c", "you"), ("d", "")):
        shelf.keep(Page(key, owner))
    found = shelf.latest("me", nobody)
    assert found and found.key == "b"
    found = shelf.latest("me", lambda page: page.key == "b")
    assert found and found.key == "a"
    assert shelf.latest("me", lambda page: True) is shelf.latest("", nobody) is None


def test_the_least_recently_used_makes_room() -> None:
    shelf: Shelf[Page] = Shelf(pages=2)
    first, second, third = Page("a"), Page("b"), Page("c")
    for page in (first, second, first, third):
        shelf.keep(page)
    assert len(shelf) == 2 and shelf.find("b", "") is None and shelf.find("a", "") is first


def test_letters_are_bounded_as_pages_grow() -> None:
    shelf: Shelf[Page] = Shelf(weight=10)
    pages = [Page(key, weight=4) for key in "abc"]
    for page in pages:
        shelf.keep(page)
    assert [shelf.find(key, "") is not None for key in "abc"] == [False, True, True]
    pages[2].weight = 9
    assert shelf.keep(pages[2]) and len(shelf) == 1
    assert not shelf.keep(Page("d", weight=11)), "what is too large alone is not kept"


def test_a_page_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf: Shelf[Page] = Shelf(hours=1)
    shelf.keep(Page("a"))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3601)
    assert shelf.find("a", "") is None and len(shelf) == 0


def test_nothing_is_kept_if_that_is_wanted() -> None:
    shelf: Shelf[Page] = Shelf(hours=0)
    assert not shelf.keep(Page("a")) and shelf.find("a", "") is None


def test_the_hours_come_from_the_environment() -> None:
    assert (
        keep_hours({}) == 12 and keep_hours({"HUANHUAN_KEEP": "0.5"}) == 0.5 and keep_hours({"HUANHUAN_KEEP": "0"}) == 0
    )
    for wrong in ("-1", "soon", "721", "nan", "inf"):
        with pytest.raises(UserError, match="HUANHUAN_KEEP"):
            keep_hours({"HUANHUAN_KEEP": wrong})
