"""A page that is loaded again: what was said is still there, for the one who said it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from driving import button, interrupted, keys, opened, said, send, upload  # type: ignore[import-not-found]
from fake_engine import FakeEngine  # type: ignore[import-not-found]
from streamlit.testing.v1 import AppTest

from huanhuan.chat.cards import Card, card_json
from huanhuan.chat.page import sessions, turns
from huanhuan.chat.page import state as page_state
from huanhuan.chat.page.visitors import AddressCap

ME, YOU = "0" * 32, "1" * 32


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on, pages are opened by the browser with this cookie; none is shown in a window any more."""
    monkeypatch.setattr(sessions, "_in_use", lambda page: False)

    def use(cookie: str) -> None:
        monkeypatch.setattr(sessions, "visitor_cookie", lambda: cookie)

    return use


def key_of(page: AppTest) -> str:
    return str(page.query_params[sessions.KEY])


def test_a_reload_finds_everything_again(page: AppTest, engine: FakeEngine) -> None:
    assert sessions.KEY not in page.query_params, "an address without anything said can be passed on"
    upload(page, card_json(Card("阿云", (), "扮演阿云", "你来了。", ("坐吗？",), ())))
    send(page, "甲")
    page.slider(key="temperature").set_value(0.3)
    page.toggle(key="speed").set_value(True)
    page.selectbox(key="language").set_value("en")
    page.text_area(key="system-imported-0").set_value("改过的人设").run()
    again = opened(chat=key_of(page))
    assert again.title[0].value == "阿云" and said(again) == ["你来了。", "甲", "回「甲」第1句"]
    assert again.slider(key="temperature").value == 0.3 and again.toggle(key="speed").value is True
    assert again.selectbox(key="language").value == "en"
    send(again, "乙")
    messages, sampling = engine.seen[-1]
    assert [each["content"] for each in messages] == ["改过的人设", "甲", "回「甲」第1句", "乙"]
    assert sampling.temperature == 0.3 and key_of(again) == key_of(page)


def test_a_reload_in_the_middle_of_a_reply_reads_on(
    page: AppTest, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.delay = 0.03
    interrupted(page, monkeypatch, lambda: send(page, "甲"))
    again = opened(chat=key_of(page))
    assert said(again)[1:] == ["甲", "回「甲」第1句"] and len(engine.seen) == 1


def test_a_link_alone_opens_nobody_else_s_page(engine: FakeEngine, browser: Callable[[str], None]) -> None:
    browser(ME)
    mine = send(opened(), "甲")
    for cookie in (YOU, ""):
        browser(cookie)
        other = opened(chat=key_of(mine))
        assert said(other) == ["来者是客，请进园子坐。"]
        send(other, "乙")
        assert key_of(other) != key_of(mine)
    browser(ME)
    assert said(opened(chat=key_of(mine)))[1:] == ["甲", "回「甲」第1句"]


def test_a_browser_that_comes_back_without_the_link_finds_its_last_page(
    engine: FakeEngine, browser: Callable[[str], None]
) -> None:
    browser(ME)
    mine = send(opened(), "甲")
    again = opened()
    assert said(again)[1:] == ["甲", "回「甲」第1句"] and key_of(again) == key_of(mine)
    browser(YOU)
    assert len(said(opened())) == 1
    browser("")
    assert len(said(opened())) == 1


def test_a_second_window_begins_anew_while_the_first_is_open(
    engine: FakeEngine, browser: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    browser(ME)
    send(opened(), "甲")
    monkeypatch.setattr(sessions, "_in_use", lambda page: True)
    assert len(said(opened())) == 1


def test_a_page_that_two_windows_want_is_shown_by_one(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    send(page, "甲")
    page.session_state.page.holder = "another window"
    page.run()
    assert "另一个窗口" in page.info[0].value and keys(page) == ["bring-here"] and not page.chat_input
    page.button(key="bring-here").click().run()
    assert said(page)[1:] == ["甲", "回「甲」第1句"] and not page.info


def test_a_reply_is_read_on_where_the_page_is_shown_now(
    page: AppTest, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.delay = 0.02
    draw = turns._draw_progress
    state = page.session_state.page

    def moved(*arguments: object) -> None:
        draw(*arguments)  # type: ignore[arg-type]
        state.holder = "another window"

    with monkeypatch.context() as patch:
        patch.setattr(turns, "_draw_progress", moved)
        send(page, "甲")
    assert state.running and not state.running.reply.stop_requested
    page.run()
    page.button(key="bring-here").click().run()
    assert said(page)[1:] == ["甲", "回「甲」第1句"]


def test_nothing_is_kept_if_that_is_wanted(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUANHUAN_KEEP", "0")
    page = send(opened(), "甲")
    assert sessions.KEY not in page.query_params and len(sessions.service().shelf) == 0
    assert len(said(page)) == 3


def test_a_reload_does_not_renew_the_hour(engine: FakeEngine, browser: Callable[[str], None]) -> None:
    browser(ME)
    desk = sessions.service().wait(10) and sessions.service().desk
    assert desk
    desk.limits = type(desk.limits)(hourly=1)
    send(opened(), "甲")
    sessions.service().shelf = sessions.Shelf(0)
    again = send(opened(), "乙")
    assert "这一小时" in again.error[0].value
    browser(YOU)
    assert not send(opened(), "丙").error


def test_an_address_has_an_hour_too(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_state, "address", lambda: "93.184.216.34")
    assert sessions.service().wait(10)
    sessions.service().addresses = AddressCap(2)
    for text in "甲乙":
        assert not send(opened(), text).error
    refused = send(opened(), "丙")
    assert "网络" in refused.error[0].value and said(refused)[-1] == "丙"
    sessions.service().addresses.hourly = 9
    assert not button(refused, "again-").click().run().error


def test_the_address_keeps_its_key_only_for_what_was_said(page: AppTest) -> None:
    page.button(key="new").click().run()
    page.slider(key="temperature").set_value(0.3).run()
    assert sessions.KEY not in page.query_params
