"""What the page says when something is wrong, and that it goes on afterwards."""

from __future__ import annotations

import itertools
import re
import threading
from pathlib import Path

import pytest
import streamlit as st
from driving import said, send  # type: ignore[import-not-found]
from fake_engine import FakeEngine  # type: ignore[import-not-found]
from streamlit.testing.v1 import AppTest

from huanhuan.chat import select
from huanhuan.chat.desk import Limits
from huanhuan.chat.engine import Timeouts
from huanhuan.chat.page import state as page_state
from huanhuan.chat.page.serving import health
from huanhuan.chat.page.texts import TEXTS
from huanhuan.errors import UserError


@pytest.mark.parametrize("fault", ["raise", "mid", "refuse"])
def test_an_engine_error_is_one_sentence_and_the_next_try_works(page: AppTest, engine: FakeEngine, fault: str) -> None:
    engine.fault = fault
    send(page, "甲")
    assert len(page.error) == 1 and "secret" not in page.error[0].value and "[" in page.error[0].value
    assert said(page)[1:] == (["甲", "回「甲"] if fault == "mid" else ["甲"])
    engine.fault = None
    send(page, "乙")
    assert not page.error
    assert said(page)[-2] == "乙" and said(page)[-1].startswith("回「乙」")


def test_an_engine_that_never_answers_is_given_up(page: AppTest, engine: FakeEngine) -> None:
    desk = page_state.service().desk
    assert desk
    engine.fault = "hang"
    for each in (engine, desk.engine):
        each.timeouts = Timeouts(0.2, 0.2, 1)
    send(page, "甲")
    assert "太久没有回应" in page.error[0].value
    engine.fault = None
    send(page, "乙")
    assert not page.error


def test_a_bad_reply_is_said_once_more(page: AppTest, engine: FakeEngine) -> None:
    answers = iter(["作为一个AI语言模型，我……", "臣妾在。"])
    engine.answer = lambda _: next(answers)
    send(page, "甲")
    assert said(page)[-1] == "臣妾在。" and len(engine.seen) == 2


def test_words_that_may_not_be_said(personas: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    (personas / "words.txt").write_text("毒药\n", "utf-8")
    monkeypatch.setenv("HUANHUAN_WORDS", str(personas / "words.txt"))
    page = AppTest.from_file(str(Path(page_state.__file__).with_name("script.py")), default_timeout=20).run()
    page_state.service().wait(10)
    page.run()
    send(page, "给我毒 药")
    assert not engine.seen and "不能发送" in page.warning[0].value
    engine.answer = lambda _: "这是毒药。"
    send(page, "甲")
    assert said(page)[-1] == "这是＊＊。" and not page.warning


def test_the_hourly_limit_is_one_sentence(page: AppTest) -> None:
    desk = page_state.service().desk
    assert desk
    desk.limits = Limits(hourly=1)
    send(send(page, "甲"), "乙")
    assert "这一小时" in page.error[0].value and said(page)[-1] == "乙"


def test_a_reply_s_markdown_is_shown_not_obeyed(page: AppTest, engine: FakeEngine) -> None:
    engine.answer = lambda _: "*笑* ![x](http://127.0.0.1:9/p.png) <img src=x> [a](javascript:alert(1)) # :red[红] $x$"
    send(page, "甲<b>")
    shown = [each.value for message in page.chat_message for each in message.markdown]
    assert shown[-1].startswith("*笑* \\!\\[x\\]")
    assert not re.search(r"(?<!\\)[\[\]<>$:#(]", shown[-1]) and not re.search(r"(?<!\\)[<>]", shown[-2])


def test_the_start_of_the_engine_is_shown_and_can_be_tried_again(
    personas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, tries = threading.Event(), itertools.count(1)

    def build(*_: object, **__: object) -> FakeEngine:
        if next(tries) == 1:
            ready.wait(5)
            raise UserError("models: 还没有模型 / no model yet")
        return FakeEngine()

    monkeypatch.setattr(select, "build", build)
    st.cache_resource.clear()
    page = AppTest.from_file(str(Path(page_state.__file__).with_name("script.py")), default_timeout=20).run()
    assert "准备模型" in page.info[0].value and not page.chat_input
    ready.set()
    page_state.service().wait(5)
    page.run()
    assert "no model yet" in page.error[0].value
    page.button(key="retry").click().run()
    page_state.service().wait(5)
    page.run()
    assert page.chat_input and not page.error
    st.cache_resource.clear()


def test_what_nobody_foresaw_is_one_sentence(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("huanhuan.chat.page.main.draw_turns", broken)
    page.run()
    assert len(page.error) == 1 and "页面出错了" in page.error[0].value and "secret" not in page.error[0].value
    assert not page.exception


def test_the_health_probe_notices_a_dead_engine(page: AppTest, engine: FakeEngine) -> None:
    status, about = health()
    assert status == 200 and about == {
        "state": "ready",
        "engine": "Fake",
        "model": "fake-model",
        "running": 0,
        "waiting": 0,
        "lost": 0,
    }
    engine.alive = False
    assert health()[0] == 503 and health()[1]["state"] == "ill"


def test_a_forgotten_beginning_and_a_slower_engine_are_told(page: AppTest, engine: FakeEngine) -> None:
    desk = page_state.service().desk
    assert desk
    desk.engine.fallback = "TurboMind is not installed"
    desk.engine.context_tokens = 512 + 60
    send(page, "甲" * 40)
    assert not page.info and any("TurboMind 不可用" in each.value for each in page.caption)
    send(page, "乙" * 10)
    assert "记不得" in page.info[0].value
    assert [each["content"] for each in engine.seen[1][0][1:]] == ["乙" * 10]


def test_every_text_is_used() -> None:
    source = "".join(path.read_text("utf-8") for path in Path(page_state.__file__).parent.glob("*.py"))
    unused = [key for key in TEXTS if len(re.findall(rf"['\"]{key}['\"]", source)) < 2]
    assert unused == []
