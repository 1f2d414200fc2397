"""The page, driven control by control with a fake engine."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator

from driving import button, keys, said, send  # type: ignore[import-not-found]
from fake_engine import FakeEngine  # type: ignore[import-not-found]
from streamlit.testing.v1 import AppTest

from huanhuan.chat.cards import card_json
from huanhuan.chat.conversation import Conversation
from huanhuan.chat.page import state as page_state
from huanhuan.chat.page.sidebar import file_name
from huanhuan.chat.page.texts import TEXTS
from huanhuan.chat.transfer import to_json
from huanhuan.persona import Persona

Until = Callable[[Callable[[], bool]], None]


def test_the_page_greets_and_says_what_answers(page: AppTest) -> None:
    assert page.title[0].value == "阿沅"
    captions = [each.value for each in page.caption]
    assert any("Fake · fake-model" in each for each in captions)
    assert any("人工智能生成" in each for each in captions)
    assert said(page) == ["来者是客，请进园子坐。"]
    assert not page.exception and not page.error


def test_a_starter_is_sent_with_the_system_prompt(page: AppTest, engine: FakeEngine) -> None:
    page.button(key="starter-1").click().run()
    assert engine.seen[0][0] == [
        {"role": "system", "content": "现在你要扮演种花的阿沅"},
        {"role": "user", "content": "今日园中开了什么花？"},
    ]
    assert said(page)[1:] == ["今日园中开了什么花？", "回「今日园中开了什么花？」第1句"]
    assert "starter-0" not in keys(page)


def test_history_goes_along(page: AppTest, engine: FakeEngine) -> None:
    send(send(page, "甲"), "乙")
    assert [each["content"] for each in engine.seen[1][0][1:]] == ["甲", "回「甲」第1句", "乙"]


def test_regenerating_keeps_the_versions_and_they_can_be_flipped(page: AppTest, engine: FakeEngine) -> None:
    answers = itertools.count(1)
    engine.answer = lambda _: f"说法{next(answers)}"
    send(page, "甲")
    button(page, "again-").click().run()
    button(page, "again-").click().run()
    assert said(page)[-1] == "说法3" and "3 / 3" in [each.value for each in page.caption]
    assert button(page, "next-").disabled
    button(page, "previous-").click().run()
    button(page, "previous-").click().run()
    assert said(page)[-1] == "说法1" and button(page, "previous-").disabled
    send(page, "乙")
    assert [each["content"] for each in engine.seen[3][0][1:]] == ["甲", "说法1", "乙"]
    assert len([each for each in keys(page) if each.startswith("again-")]) == 1, "only the last reply can be said again"


def test_editing_sends_again_and_forgets_what_followed(page: AppTest, engine: FakeEngine) -> None:
    send(send(page, "甲"), "乙")
    first = next(each for each in page.button if (each.key or "").startswith("edit-"))
    first.click().run()
    page.text_area(key=f"text-{str(first.key).removeprefix('edit-')}").set_value("丙")
    button(page, "resend-").click().run()
    assert said(page)[1:] == ["丙", "回「丙」第1句"]
    assert [each["content"] for each in engine.seen[-1][0][1:]] == ["丙"]


def test_editing_can_be_given_up(page: AppTest) -> None:
    send(page, "甲")
    button(page, "edit-").click().run()
    button(page, "cancel-").click().run()
    assert said(page)[1:] == ["甲", "回「甲」第1句"]


def test_a_reply_is_continued_in_place(page: AppTest, engine: FakeEngine) -> None:
    send(page, "甲")
    engine.answer = lambda messages: "，还有后话" if messages[-1]["role"] == "assistant" else "错"
    button(page, "more-").click().run()
    assert said(page)[-1] == "回「甲」第1句，还有后话"
    assert engine.seen[-1][0][-1] == {"role": "assistant", "content": "回「甲」第1句"}
    assert "1 / 2" not in [each.value for each in page.caption]


def test_an_exchange_is_deleted(page: AppTest, engine: FakeEngine) -> None:
    send(send(page, "甲"), "乙")
    next(each for each in page.button if (each.key or "").startswith("delete-")).click().run()
    assert said(page)[1:] == ["乙", "回「乙」第2句"]


def test_conversations_are_kept_apart(page: AppTest, engine: FakeEngine) -> None:
    send(page, "甲")
    page.button(key="new").click().run()
    assert said(page) == ["来者是客，请进园子坐。"]
    send(page, "乙")
    assert [each["content"] for each in engine.seen[1][0][1:]] == ["乙"]
    page.selectbox(key="conversation").set_value(0).run()
    assert said(page)[1:] == ["甲", "回「甲」第1句"]
    page.button(key="forget").click().run()
    assert said(page)[1:] == ["乙", "回「乙」第1句"]
    page.button(key="new").click().run()
    page.button(key="new").click().run()
    assert len(page.selectbox(key="conversation").options) == 2, "an unused conversation is taken again"


def test_every_persona_can_be_chosen(page: AppTest, engine: FakeEngine) -> None:
    assert page.selectbox(key="persona").options == ["阿沅", "阿香"]
    page.selectbox(key="persona").set_value("axiang").run()
    assert page.title[0].value == "阿香"
    send(page, "甲")
    assert engine.seen[0][0][0]["content"] == "现在你要扮演种花的阿香"


def test_settings_take_effect_and_can_be_restored(page: AppTest, engine: FakeEngine) -> None:
    page.slider(key="temperature").set_value(0.3)
    page.slider(key="top_p").set_value(0.5)
    page.slider(key="length_limit").set_value(32)
    page.text_area(key="system-huanhuan").set_value("别的人设").run()
    send(page, "甲")
    messages, sampling = engine.seen[0]
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.3, 0.5, 32)
    assert messages[0]["content"] == "别的人设"
    page.button(key="reset").click().run()
    send(page, "乙")
    messages, sampling = engine.seen[1]
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.8, 0.8, 512)
    assert messages[0]["content"] == "现在你要扮演种花的阿沅"


def test_the_speed_is_shown_on_demand(page: AppTest) -> None:
    send(page, "甲")
    assert not any("首字" in each.value for each in page.caption)
    page.toggle(key="speed").set_value(True).run()
    assert any("首字" in each.value and "7 词" in each.value for each in page.caption)


def test_english(page: AppTest) -> None:
    page.selectbox(key="language").set_value("en").run()
    labels = [each.label for each in page.button]
    assert "New conversation" in labels and any("AI-generated" in each.value for each in page.caption)
    assert all(len(texts) == 2 and all(texts) for texts in TEXTS.values())
    for chinese, english in TEXTS.values():
        assert re.findall(r"{\w+}", chinese) == re.findall(r"{\w+}", english) or chinese.count("{") == english.count(
            "{"
        )


def stream(page: AppTest, text: str, meanwhile: Callable[[], None]) -> AppTest:
    """Send ``text`` and run ``meanwhile`` in another thread while the reply is written."""
    other = threading.Thread(target=meanwhile)
    other.start()
    send(page, text)
    other.join(10)
    return page


def test_a_stop_keeps_what_was_said(page: AppTest, engine: FakeEngine, until: Until) -> None:
    engine.answer, engine.delay = (lambda _: "长" * 400), 0.01
    state = page.session_state.page

    def stop() -> None:
        until(lambda: bool(state.running and state.running.reply.text))
        state.running.reply.stop()

    stream(page, "甲", stop)
    assert 0 < said(page)[-1].count("长") < 400
    assert any("已停止" in each.value for each in page.caption)
    assert engine.busy == 0 and "stop" not in keys(page)


def test_a_run_that_is_interrupted_reads_on_from_the_same_reply(page: AppTest, engine: FakeEngine) -> None:
    send(page, "先")
    engine.delay = 0.05
    state, desk = page.session_state.page, page_state.service().desk
    state.send(desk, "甲")
    time.sleep(0.1)
    page.run()
    assert said(page)[3:] == ["甲", "回「甲」第2句"] and len(engine.seen) == 2


def test_a_new_message_stops_the_old_reply(page: AppTest, engine: FakeEngine) -> None:
    send(page, "先")

    def endless() -> Iterator[str]:
        while True:
            yield "长"
            time.sleep(0.05)

    engine.answer = lambda messages: endless() if messages[-1]["content"] == "甲" else "好。"
    state, desk = page.session_state.page, page_state.service().desk
    state.send(desk, "甲")
    send(page, "乙")
    texts = said(page)
    assert texts[3] == "甲" and set(texts[4]) <= {"长"} and texts[5:] == ["乙", "好。"]
    assert [each.finish for turn in state.conversation.turns for each in turn.versions].count("stopped") == 1


def upload(page: AppTest, content: bytes, name: str = "file.json") -> AppTest:
    number = page.session_state.page.imports
    uploader = next(each for each in page.get("file_uploader") if each.key == f"import-{number}")
    uploader.set_value((name, content, "application/json")).run()  # type: ignore[attr-defined]
    return page


def test_a_card_is_imported_and_becomes_the_character(page: AppTest, engine: FakeEngine) -> None:
    upload(page, card_json(Persona("阿云", (), "扮演阿云", "你来了。", ("坐吗？",), ())))
    assert page.title[0].value == "阿云" and said(page) == ["你来了。"]
    page.button(key="starter-0").click().run()
    assert engine.seen[0][0][0]["content"] == "扮演阿云"


def test_a_conversation_is_imported_and_goes_on(page: AppTest, engine: FakeEngine) -> None:
    made = Conversation("axiang")
    made.say("旧话<|im_end|>")
    made.answer().version.text = "旧答"
    upload(page, to_json(made, "阿香", "").encode())
    assert page.title[0].value == "阿香" and said(page)[1:] == ["旧话", "旧答"]
    send(page, "新话")
    assert [each["content"] for each in engine.seen[0][0][1:]] == ["旧话", "旧答", "新话"]


def test_a_file_that_is_neither_is_one_line(page: AppTest) -> None:
    upload(page, b"{}")
    assert len(page.error) == 1 and "not a character card" in page.error[0].value
    upload(page, json.dumps({"format": "huanhuan-conversation", "turns": [1]}).encode())
    assert len(page.error) == 1 and "turns[1]" in page.error[0].value


def test_exports_are_offered(page: AppTest) -> None:
    offered = {each.key for each in page.get("download_button")}
    assert offered == {"export-card_json", "export-card_png"}
    send(page, "甲")
    offered = {each.key for each in page.get("download_button")}
    assert offered == {"export-markdown", "export-json", "export-card_json", "export-card_png"}
    assert file_name("../你好 a/b") == "你好_a_b" and file_name("///") == "huanhuan"
