"""What the page says when something is wrong, that nothing is lost by it, and that it goes on afterwards."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from driving import button, keys, opened, said, send, small_print  # type: ignore[import-not-found]
from fake_engine import FakeEngine  # type: ignore[import-not-found]
from streamlit.testing.v1 import AppTest

from huanhuan.chat import conversation as limits
from huanhuan.chat import select
from huanhuan.chat.desk import Limits
from huanhuan.chat.engine import Timeouts
from huanhuan.chat.filters import WordFilter
from huanhuan.chat.model_folder import NoModel
from huanhuan.chat.page import running, serving, sessions
from huanhuan.chat.page import state as page_state
from huanhuan.chat.page.serving import health
from huanhuan.chat.page.texts import TEXTS
from huanhuan.errors import UserError


def one_error(page: AppTest) -> str:
    """The one sentence that is shown, which ends in an id."""
    assert len(page.error) == 1 and not page.exception
    assert re.search(r"\[[0-9a-f]{8}\\\]$", page.error[0].value), page.error[0].value
    return page.error[0].value


def alternating(engine: FakeEngine) -> bool:
    """Whether the model never heard two messages of one side in a row."""
    return all(
        first["role"] != second["role"]
        for messages, _ in engine.seen
        for first, second in itertools.pairwise(messages[1:])
    )


@pytest.mark.parametrize("fault", ["raise", "mid", "refuse"])
def test_an_engine_error_is_one_sentence_and_the_next_try_works(page: AppTest, engine: FakeEngine, fault: str) -> None:
    engine.fault = fault
    send(page, "甲")
    assert "secret" not in one_error(page)
    assert said(page)[1:] == (["甲", "回「甲"] if fault == "mid" else ["甲"])
    engine.fault = None
    button(page, "again-").click().run()
    assert not page.error and said(page)[1:] == ["甲", "回「甲」第1句"]
    send(page, "乙")
    assert said(page)[-2:] == ["乙", "回「乙」第2句"] and alternating(engine)


def test_another_message_after_one_that_was_not_answered(page: AppTest, engine: FakeEngine) -> None:
    engine.fault = "raise"
    send(page, "甲")
    assert "还没有回答" in small_print(page) and button(page, "again-").label == "再试一次"
    engine.fault = None
    send(page, "乙")
    assert said(page)[1:] == ["乙", "回「乙」第1句"] and alternating(engine)
    assert "2 / 2" in small_print(page), "the first one can be had back"


def test_a_failed_continuation_leaves_the_reply_as_it_was(page: AppTest, engine: FakeEngine) -> None:
    send(page, "甲")
    page.toggle(key="speed").set_value(True).run()
    before = small_print(page)
    engine.fault = "raise"
    button(page, "more-").click().run()
    one_error(page)
    assert said(page)[-1] == "回「甲」第1句" and small_print(page) == before and "7 词" in before
    desk = sessions.service().desk
    assert desk
    desk.limits = Limits(hourly=1)
    button(page, "more-").click().run()
    one_error(page)
    assert said(page)[-1] == "回「甲」第1句" and small_print(page) == before


def test_a_failed_regeneration_leaves_the_chosen_version(page: AppTest, engine: FakeEngine) -> None:
    answers = itertools.count(1)
    engine.answer = lambda _: f"说法{next(answers)}"
    send(page, "甲")
    for _ in range(2):
        button(page, "again-").click().run()
    button(page, "previous-").click().run()
    button(page, "previous-").click().run()
    engine.fault = "raise"
    button(page, "again-").click().run()
    one_error(page)
    assert said(page)[-1] == "说法1" and "1 / 3" in small_print(page)


def edit_first(page: AppTest, text: str) -> AppTest:
    first = page.session_state.page.conversation.turns[0].id
    page.button(key=f"menu-{first}").click().run()
    page.button(key=f"edit-{first}").click().run()
    next(each for each in page.text_area if (each.key or "").startswith("text-")).set_value(text)
    return button(page, "resend-").click().run()


@pytest.mark.parametrize("refusal", ["hour", "word", "blank"])
def test_an_edit_that_is_refused_changes_nothing_and_keeps_its_text(
    page: AppTest, engine: FakeEngine, refusal: str
) -> None:
    send(send(page, "甲"), "乙")
    desk, state = sessions.service().desk, page.session_state.page
    assert desk
    if refusal == "hour":
        desk.limits = Limits(hourly=1)
    elif refusal == "word":
        state.words = WordFilter(["毒药"])
    edit_first(page, " " if refusal == "blank" else "毒药")
    assert [turn.text for turn in state.conversation.turns] == ["甲", "回「甲」第1句", "乙", "回「乙」第2句"]
    editor = next(each for each in page.text_area if (each.key or "").startswith("text-"))
    assert (editor.value or "").strip() == ("" if refusal == "blank" else "毒药") and "undo" not in keys(page)
    assert not page.chat_input[0].proto.value
    button(page, "cancel-").click().run()
    assert said(page)[1:] == ["甲", "回「甲」第1句", "乙", "回「乙」第2句"] and len(engine.seen) == 2


def test_an_edit_whose_reply_fails_can_be_undone(page: AppTest, engine: FakeEngine) -> None:
    send(send(page, "甲"), "乙")
    engine.fault = "raise"
    edit_first(page, "丙")
    assert said(page)[1:] == ["丙"]
    page.button(key="undo").click().run()
    assert said(page)[1:] == ["甲", "回「甲」第1句", "乙", "回「乙」第2句"]


def test_an_engine_that_never_answers_is_given_up(page: AppTest, engine: FakeEngine) -> None:
    desk = sessions.service().desk
    assert desk
    engine.fault = "hang"
    for each in (engine, desk.engine):
        each.timeouts = Timeouts(0.2, 0.2, 1)
    send(page, "甲")
    assert "太久没有回应" in one_error(page)
    engine.fault = None
    send(page, "乙")
    assert not page.error


def test_a_bad_reply_is_said_once_more(page: AppTest, engine: FakeEngine) -> None:
    answers = iter(["作为一个AI语言模型，我……", "臣妾在。"])
    engine.answer = lambda _: next(answers)
    send(page, "甲")
    assert said(page)[-1] == "臣妾在。" and len(engine.seen) == 2


def test_what_can_grow_no_further_says_so(page: AppTest, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_VERSIONS", 2)
    send(page, "甲")
    button(page, "again-").click().run()
    button(page, "again-").click().run()
    assert "不能再多" in page.warning[0].value and "2 / 2" in small_print(page) and len(engine.seen) == 2
    monkeypatch.setattr(limits, "MOST_TURNS", 2)
    send(page, "乙")
    assert "写满" in page.warning[0].value and said(page)[1:] == ["甲", "回「甲」第1句"]
    assert page.chat_input[0].proto.value == "乙"
    monkeypatch.setattr(page_state, "MOST_REPLY", 4)
    button(page, "more-").click().run()
    assert "太长" in page.warning[0].value and len(engine.seen) == 2
    monkeypatch.setattr(limits, "MOST_TURNS", 2000)
    monkeypatch.setattr(page_state, "MOST_WEIGHT", 10)
    send(page, "丙")
    assert "先删掉" in page.warning[0].value and said(page)[-1] == "丙" and len(engine.seen) == 2


def test_a_reply_is_cut_where_a_file_would_be_too_long(
    page: AppTest, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "MOST_REPLY", 10)
    engine.answer = lambda messages: "一二三四五六七八" if messages[-1]["role"] == "user" else "九十百千万"
    send(page, "甲")
    button(page, "more-").click().run()
    assert said(page)[-1] == "一二三四五六七八九十" and "话长" in small_print(page)


def filtered(personas: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    (personas / "words.txt").write_text("毒药\n", "utf-8")
    monkeypatch.setenv("HUANHUAN_WORDS", str(personas / "words.txt"))
    return opened()


def test_words_that_may_not_be_said(personas: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    page = filtered(personas, monkeypatch)
    send(page, "给我毒 药")
    assert not engine.seen and "不能发送" in page.warning[0].value
    engine.answer = lambda _: "这是毒药。"
    send(page, "甲")
    assert said(page)[-1] == "这是＊＊。" and not page.warning
    button(page, "edit-").click().run()
    next(each for each in page.text_area if (each.key or "").startswith("text-")).set_value("真是毒药")
    button(page, "resend-").click().run()
    assert "不能发送" in page.warning[0].value
    button(page, "cancel-").click().run()
    page.text_area(key="system-huanhuan").set_value("你卖毒药").run()
    send(page, "乙")
    assert "系统提示" in page.warning[0].value and len(engine.seen) == 1
    page.button(key="reset").click().run()
    button(page, "again-").click().run()
    assert len(engine.seen) == 2


def test_a_wrong_word_list_is_one_sentence_and_the_probe_says_so(
    personas: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUANHUAN_WORDS", str(personas / "nowhere.txt"))
    page = opened()
    shown = one_error(page)
    assert str(personas) not in shown and "nowhere" not in shown and not page.chat_input
    assert str(personas) in caplog.text and re.findall(r"\[([0-9a-f]{8})", shown)[0] in caplog.text
    assert health() == (503, {"state": "failed"})
    monkeypatch.delenv("HUANHUAN_WORDS")
    page.button(key="retry").click().run()
    sessions.service().wait(10)
    page.run()
    assert page.chat_input and health()[0] == 200


@pytest.mark.parametrize("setting", ["HUANHUAN_KEEP", "HUANHUAN_HOURLY_ADDRESS", "HUANHUAN_QUEUE"])
def test_a_wrong_setting_is_one_sentence(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(setting, "-3")
    assert setting not in one_error(opened()) and health()[0] == 503


def test_no_persona_is_one_sentence(
    engine: FakeEngine, personas: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for path in personas.glob("*/persona.toml"):
        path.write_text("name = 3", "utf-8")
    assert str(personas) not in one_error(opened()) and str(personas) in caplog.text


def test_the_hourly_limit_is_one_sentence_and_the_message_stays(page: AppTest, engine: FakeEngine) -> None:
    desk = sessions.service().desk
    assert desk
    desk.limits = Limits(hourly=1)
    send(send(page, "甲"), "乙")
    assert "这一小时" in one_error(page) and said(page)[-1] == "乙" and "还没有回答" in small_print(page)
    desk.limits = Limits()
    button(page, "again-").click().run()
    assert said(page)[-1] == "回「乙」第2句"


def test_a_full_queue_is_one_sentence(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = sessions.service().desk
    assert desk
    desk.limits = Limits(queue=0)
    send(page, "甲")
    assert "排队" in one_error(page)


def test_a_reply_s_markdown_is_shown_not_obeyed(page: AppTest, engine: FakeEngine) -> None:
    engine.answer = lambda _: "*笑* ![x](http://127.0.0.1:9/p.png) <img src=x> [a](javascript:alert(1)) # :red[红] $x$"
    send(page, "甲<b>")
    shown = [each.value for message in page.chat_message for each in message.markdown]
    assert shown[-1].startswith("*笑* \\!\\[x\\]")
    assert not re.search(r"(?<!\\)[\[\]<>$:#(]", shown[-1]) and not re.search(r"(?<!\\)[<>]", shown[-2])


def starting(monkeypatch: pytest.MonkeyPatch, *errors: BaseException) -> Iterator[threading.Event]:
    """The first starts end in ``errors``, the one after them succeeds; the first waits for the event."""
    ready, tries = threading.Event(), iter(errors)

    def build(*_: object, report: Callable[[str, float | None], None], **__: object) -> FakeEngine:
        error = next(tries, None)
        report("加载_*一个*", 0.25)
        ready.wait(5)
        if error:
            raise error
        return FakeEngine()

    monkeypatch.setattr(select, "build", build)
    st.cache_resource.clear()
    yield ready
    ready.set()
    st.cache_resource.clear()


@pytest.fixture
def start(personas: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., threading.Event]]:
    begun: list[Iterator[threading.Event]] = []

    def begin(*errors: BaseException) -> threading.Event:
        begun.append(starting(monkeypatch, *errors))
        return next(begun[-1])

    yield begin
    for each in begun:
        next(each, None)


@pytest.mark.parametrize(
    "error", [UserError("/srv/models/x: 坏了 / broken"), RuntimeError("/srv/models/x"), SystemExit("/srv/models/x")]
)
def test_the_start_of_the_engine_is_shown_and_can_be_tried_again(
    start: Callable[..., threading.Event], error: BaseException
) -> None:
    ready = start(error)
    page = AppTest.from_file(serving.SCRIPT, default_timeout=20).run()
    assert not page.chat_input and health()[0] == 200
    progress = page.get("progress")
    assert progress and progress[0].proto.value == 25 and "\\*" in progress[0].proto.text  # type: ignore[attr-defined]
    ready.set()
    sessions.service().wait(5)
    page.run()
    assert "/srv" not in one_error(page) and health()[0] == 503
    page.button(key="retry").click().run()
    sessions.service().wait(5)
    page.run()
    assert page.chat_input and not page.error


def test_without_a_model_the_page_explains_three_ways(start: Callable[..., threading.Event], tmp_path: Path) -> None:
    start(NoModel(tmp_path)).set()
    page = opened()
    assert page.title[0].value == "还没有模型" and not page.error
    assert [each.value[:2] for each in page.subheader] == ["1.", "2.", "3."]
    commands = [each.value for each in page.code]
    assert len(commands) == 3 and "make character" in commands[0]
    assert "HUANHUAN_MODEL=" in commands[1] and "HUANHUAN_API_BASE=" in commands[2]
    assert str(tmp_path) not in str(page.main)
    page.selectbox(key="language").set_value("en").run()
    assert page.title[0].value == "There is no model yet" and "Take one of these" in page.markdown[0].value
    page.button(key="retry").click().run()
    sessions.service().wait(5)
    page.run()
    assert page.chat_input


def test_what_nobody_foresaw_is_one_sentence(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("huanhuan.chat.page.main.draw_turns", broken)
    page.run()
    assert "页面出错了" in one_error(page) and "secret" not in page.error[0].value


def test_the_health_probe_notices_a_dead_engine(
    page: AppTest, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert health()[0] == 200, "one look serves every probe for a while"
    monkeypatch.setattr(serving, "FRESH", 0.0)
    assert health()[0] == 503 and health()[1]["state"] == "ill"


def test_probes_do_not_pile_up_before_an_engine_that_hangs(
    page: AppTest, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = [], threading.Event()

    def slow() -> bool:
        asked.append(1)
        go_on.wait(10)
        return True

    assert health()[0] == 200
    monkeypatch.setattr(serving, "FRESH", 0.05)
    monkeypatch.setattr(engine, "healthy", slow)
    threading.Event().wait(0.1)
    first = threading.Thread(target=health)
    first.start()
    threading.Event().wait(0.1)
    assert [health()[0] for _ in range(5)] == [200] * 5 and len(asked) == 1
    go_on.set()
    first.join(5)


def test_a_forgotten_beginning_and_a_slower_engine_are_told(page: AppTest, engine: FakeEngine) -> None:
    engine.fallback = "TurboMind is not installed"
    engine.context_tokens = 512 + 60
    # No letter twice: the guard would have a loop said again.
    send(page, "".join(chr(0x4E00 + number) for number in range(40)))
    assert not page.info and "TurboMind 不可用" in small_print(page)
    send(page, "乙" * 10)
    assert "记不得" in page.info[0].value
    assert [each["content"] for each in engine.seen[1][0][1:]] == ["乙" * 10]


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server that does what ``mood`` says: answer, refuse, garbage, vanish."""

    mood = "answer"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Answers(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": [{"id": "far", "object": "model"}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        mood = self.server.mood
        if mood == "refuse":
            self._send(401, b'{"error": {"message": "secret key sk-123 is wrong"}}')
        elif mood == "garbage":
            self._send(200, b'data: {"choices": [{"delta"\n\ndata: <html>secret</html>\n\n', "text/event-stream")
        else:
            pieces = "远方来的话。"
            events = [{"choices": [{"index": 0, "delta": {"content": each}, "finish_reason": None}]} for each in pieces]
            events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            if mood == "vanish":
                events = events[:2]
            text = "".join(
                f"data: {json.dumps({'id': 'x', 'object': 'chat.completion.chunk', **e})}\n\n" for e in events
            )
            if mood == "vanish":
                # Promised and never sent.
                self._send(200, text.encode(), "text/event-stream", 9999)
                self.connection.close()
            else:
                self._send(200, (text + "data: [DONE]\n\n").encode(), "text/event-stream")

    def _send(self, status: int, content: bytes, kind: str = "application/json", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def far(personas: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AppTest, Server]]:
    """The page over a server of its own."""
    server = Server()
    monkeypatch.setenv("HUANHUAN_ENGINE", "openai")
    monkeypatch.setenv("HUANHUAN_API_BASE", server.url)
    monkeypatch.setenv("HUANHUAN_API_KEY", "sk-test")
    monkeypatch.setenv("HUANHUAN_GUARD", "off")
    st.cache_resource.clear()
    page = opened()
    yield page, server
    sessions.service().close()
    server.shutdown()
    server.server_close()
    st.cache_resource.clear()


@pytest.mark.parametrize("mood", ["refuse", "garbage", "vanish", "gone"])
def test_a_server_that_fails_is_one_sentence_and_is_asked_again(far: tuple[AppTest, Server], mood: str) -> None:
    page, server = far
    send(page, "甲")
    assert said(page)[-1] == "远方来的话。" and not page.error
    port = server.server_port
    if mood == "gone":
        server.shutdown()
        server.server_close()
    else:
        server.mood = mood
    send(page, "乙")
    shown = one_error(page)
    assert "secret" not in shown and "sk-" not in shown and str(port) not in shown
    if mood == "gone":
        return
    server.mood = "answer"
    button(page, "again-").click().run()
    assert said(page)[-1] == "远方来的话。" and not page.error


def test_every_text_is_used() -> None:
    source = "".join(path.read_text("utf-8") for path in Path(page_state.__file__).parent.glob("*.py"))
    unused = [key for key in TEXTS if len(re.findall(rf"['\"]{key}['\"]", source)) < 2]
    assert unused == []
