"""The page, driven control by control with a fake engine."""

from __future__ import annotations

from fake_engine import FakeEngine  # type: ignore[import-not-found]
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Text


def texts(page: AppTest) -> list[str]:
    return [each.value for message in page.chat_message for each in message.children.values() if isinstance(each, Text)]


def test_the_page_greets_and_says_what_answers(page: AppTest) -> None:
    assert page.title[0].value == "阿沅"
    assert any("Fake · fake-model" in each.value for each in page.caption)
    assert "来者是客，请进园子坐。" in texts(page)
    assert not page.exception


def test_a_starter_is_sent_with_the_system_prompt(page: AppTest, engine: FakeEngine) -> None:
    page.button(key="starter-1").click().run()
    assert engine.seen[0][0] == [
        {"role": "system", "content": "现在你要扮演种花的阿沅"},
        {"role": "user", "content": "今日园中开了什么花？"},
    ]
    assert texts(page)[-2:] == ["今日园中开了什么花？", "回「今日园中开了什么花？」第1句"]
    assert "starter-0" not in [button.key for button in page.button]


def test_history_goes_along_and_clearing_forgets_it(page: AppTest, engine: FakeEngine) -> None:
    page.chat_input[0].set_value("甲").run()
    page.chat_input[0].set_value("乙").run()
    assert [each["content"] for each in engine.seen[1][0][1:]] == ["甲", "回「甲」第1句", "乙"]
    page.button(key="clear").click().run()
    assert texts(page) == ["来者是客，请进园子坐。"]
    page.chat_input[0].set_value("丙").run()
    assert [each["content"] for each in engine.seen[2][0][1:]] == ["丙"]


def test_an_engine_error_is_one_sentence_and_the_next_try_works(page: AppTest, engine: FakeEngine) -> None:
    engine.fault = "mid"
    page.chat_input[0].set_value("甲").run()
    assert len(page.error) == 1 and "请重试" in page.error[0].value and "secret" not in page.error[0].value
    assert "回「甲" in texts(page)
    engine.fault = None
    page.chat_input[0].set_value("乙").run()
    assert not page.error
    assert texts(page)[-1] == "回「乙」第2句"
