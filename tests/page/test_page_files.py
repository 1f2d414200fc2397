"""What is taken along and what is brought: every download's contents, every kind of upload, and hostile ones."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driving import (  # type: ignore[import-not-found]
    Downloads,
    button,
    interrupted,
    keys,
    plain,
    said,
    send,
    upload,
)
from fake_engine import FakeEngine  # type: ignore[import-not-found]
from PIL import Image
from streamlit.testing.v1 import AppTest

from huanhuan.chat.cards import Card, card_json, card_png, read_card
from huanhuan.chat.conversation import Conversation
from huanhuan.chat.filters import WordFilter
from huanhuan.chat.page import running
from huanhuan.chat.page import state as page_state
from huanhuan.chat.portrait import portrait_png
from huanhuan.chat.transfer import from_json, to_json

YUN = Card("阿云", ("云儿",), "扮演阿云", "你来了。", ("坐吗？", "走吗？"), (), ("又是你。",))


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Downloads:
    return Downloads(monkeypatch)


def test_every_download_holds_what_it_says(downloads: Downloads, page: AppTest) -> None:
    offered = {each.key for each in page.get("download_button")}
    assert offered == {"export-card_json", "export-card_png"}
    send(page, "甲")
    button(page, "again-").click().run()
    offered = {each.key for each in page.get("download_button")}
    assert offered == {"export-markdown", "export-json", "export-card_json", "export-card_png"}
    for each in page.get("download_button"):
        each.click().run()  # type: ignore[attr-defined]
    assert not page.exception and not page.error

    text = downloads.content("markdown").decode()
    assert downloads.name("markdown") == "阿沅-甲.md" and "人工智能生成" in text
    assert text.index("来者是客") < text.index("> 甲") < text.index("回「甲」") and "**你**" in text
    back = from_json(downloads.content("json"))
    assert [len(turn.versions) for turn in back.conversation.turns] == [1, 2]
    assert back.conversation.turns[1].version.model == "fake-model"
    assert back.card and (back.card.name, back.card.aliases) == ("阿沅", ("沅儿",))
    assert downloads.name("card_json") == "阿沅.json"
    card = read_card(downloads.content("card_json"))
    assert (card.name, card.system, card.greeting) == ("阿沅", "现在你要扮演种花的阿沅", "来者是客，请进园子坐。")
    image = Image.open(io.BytesIO(downloads.content("card_png")))
    image.load()
    assert image.size == (400, 600)
    assert read_card(downloads.content("card_png")).texts == card.texts
    page.selectbox(key="language").set_value("en").run()
    assert "**You**" in downloads.content("markdown").decode()


def test_an_export_in_the_middle_of_a_reply_holds_what_was_said(
    downloads: Downloads, page: AppTest, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    engine.delay = 0.05
    interrupted(page, monkeypatch, lambda: send(page, "甲"))
    until(lambda: len(page.session_state.page.running.reply.text) > 2)
    back = from_json(downloads.content("json"))
    assert back.conversation.turns[1].text.startswith("回「")
    page.run()
    assert said(page)[-1] == "回「甲」第1句"


def test_the_card_carries_the_changed_prompt_only_if_asked(downloads: Downloads, page: AppTest) -> None:
    assert not [each for each in page.checkbox if each.key == "card-edited"]
    page.text_area(key="system-huanhuan").set_value("改过的人设").run()
    assert read_card(downloads.content("card_json")).system == "现在你要扮演种花的阿沅"
    page.checkbox(key="card-edited").check().run()
    for key in ("card_json", "card_png"):
        assert read_card(downloads.content(key)).system == "改过的人设"


def test_everything_the_page_does_to_a_conversation_comes_back(
    downloads: Downloads, page: AppTest, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(page, "甲")
    engine.fault = "raise"
    send(page, "没人答")
    send(page, "也没人答")
    button(page, "again-").click().run()
    engine.fault = "mid"
    button(page, "again-").click().run()
    engine.fault = None
    for _ in range(22):
        button(page, "again-").click().run()
    for module in (page_state, running):
        monkeypatch.setattr(module, "MOST_REPLY", 60)
    for _ in range(8):
        button(page, "more-").click().run()
    send(page, "乙")
    state = page.session_state.page
    before = [(turn.role, turn.chosen, [each.text for each in turn.versions]) for turn in state.conversation.turns]
    assert len(before[3][2]) == 20
    upload(page, downloads.content("json"))
    assert page.success and len(state.conversations) == 2 and state.place == 1
    after = [(turn.role, turn.chosen, [each.text for each in turn.versions]) for turn in state.conversation.turns]
    assert after == before and state.conversation.persona == "huanhuan", "the same character is not added twice"


@pytest.mark.parametrize("kind", ["json", "png"])
def test_a_card_is_imported_and_becomes_the_character(page: AppTest, engine: FakeEngine, kind: str) -> None:
    upload(page, card_json(YUN) if kind == "json" else card_png(YUN, portrait_png("阿云")), f"card.{kind}")
    assert page.title[0].value == "阿云" and said(page) == ["你来了。"] and "阿云" in page.success[0].value
    page.button(key="starter-0").click().run()
    assert engine.seen[0][0][0]["content"] == "扮演阿云"


def test_a_png_card_brings_its_picture_and_takes_it_along(downloads: Downloads, page: AppTest) -> None:
    red = io.BytesIO()
    Image.new("RGB", (300, 450), "#c00000").save(red, "PNG")
    upload(page, card_png(YUN, red.getvalue()), "card.png")
    assert page.image[0].proto.imgs[0].url.endswith(".jpg")  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(downloads.content("card_png"))) as image:
        pixel = image.convert("RGB").getpixel((150, 200))
        assert image.format == "PNG" and isinstance(pixel, tuple) and pixel[0] > 150 > 60 > pixel[1]


def test_a_card_s_greetings_can_be_chosen_and_are_exported(
    downloads: Downloads, page: AppTest, engine: FakeEngine
) -> None:
    assert "next_greeting" not in keys(page)
    upload(page, card_json(YUN))
    assert page.button(key="previous_greeting").disabled
    page.button(key="next_greeting").click().run()
    assert said(page) == ["又是你。"] and page.button(key="next_greeting").disabled
    page.button(key="previous_greeting").click().run()
    page.button(key="next_greeting").click().run()
    send(page, "甲")
    assert said(page)[0] == "又是你。" and "next_greeting" not in keys(page)
    assert all("又是你" not in each["content"] for each in engine.seen[0][0])
    assert "> 又是你。" in downloads.content("markdown").decode()
    upload(page, downloads.content("json"))
    assert said(page)[0] == "又是你。"


def exported(card: Card, persona: str, system: str | None = None, **change: Any) -> bytes:
    made = Conversation(persona)
    made.say("旧话")
    made.answer().version.text = "旧答"
    made.turns[-1].version.model = "old-model"
    value = json.loads(to_json(made, card, card.system if system is None else system))
    return json.dumps({**value, **change}).encode()


def test_a_conversation_is_imported_and_goes_on(page: AppTest, engine: FakeEngine) -> None:
    axiang = page.session_state.page.cards["axiang"]
    upload(page, exported(axiang, "axiang"))
    assert page.title[0].value == "阿香" and said(page)[1:] == ["旧话", "旧答"]
    assert len(page.selectbox(key="persona").options) == 2
    send(page, "新话")
    assert [each["content"] for each in engine.seen[0][0][1:]] == ["旧话", "旧答", "新话"]
    assert page.session_state.page.conversation.turns[1].version.model == "old-model"


@pytest.mark.parametrize("persona", ["nobody", "huanhuan", "imported-0"])
def test_a_conversation_brings_its_character(page: AppTest, engine: FakeEngine, persona: str) -> None:
    upload(page, exported(YUN, persona))
    assert page.title[0].value == "阿云" and said(page) == ["你来了。", "旧话", "旧答"]
    assert page.selectbox(key="persona").options == ["阿沅", "阿香", "阿云"]
    send(page, "新话")
    assert engine.seen[0][0][0]["content"] == "扮演阿云"
    upload(page, exported(YUN, persona))
    assert len(page.selectbox(key="persona").options) == 3, "who is here already is not added again"
    page.button(key="new").click().run()
    assert [each.label for each in page.button if (each.key or "").startswith("starter-")] == ["坐吗？", "走吗？"]


def test_a_changed_prompt_comes_along_and_changes_no_other_conversation(page: AppTest, engine: FakeEngine) -> None:
    send(page, "甲")
    card = page.session_state.page.cards["huanhuan"]
    upload(page, exported(card, "huanhuan", "改过的人设"))
    send(page, "新话")
    assert engine.seen[-1][0][0]["content"] == "改过的人设"
    page.selectbox(key="conversation").set_value(0).run()
    send(page, "乙")
    assert engine.seen[-1][0][0]["content"] == "现在你要扮演种花的阿沅"


def test_a_file_of_the_first_version_finds_its_character(page: AppTest) -> None:
    value = json.loads(exported(YUN, "axiang", "现在你要扮演种花的阿香", character="阿香", version=1))
    del value["card"]
    upload(page, json.dumps(value).encode())
    assert page.title[0].value == "阿香" and len(page.selectbox(key="persona").options) == 2
    upload(page, json.dumps({**value, "character": "阿远", "system": "扮演阿远"}).encode())
    assert page.title[0].value == "阿远"


def test_a_long_prompt_of_a_card_is_not_cut(page: AppTest, engine: FakeEngine) -> None:
    upload(page, card_json(replace(YUN, system="长" * 8000)))
    page.run()
    send(page, "甲")
    page.toggle(key="speed").set_value(True).run()
    button(page, "again-").click().run()
    assert [len(messages[0]["content"]) for messages, _ in engine.seen] == [8000, 8000] or page.error
    assert page.text_area(key="system-imported-0").max_chars == 8000


def test_a_file_that_is_neither_is_one_line(page: AppTest) -> None:
    upload(page, b"{}")
    assert len(page.error) == 1 and "not a character card" in page.error[0].value
    upload(page, json.dumps({"format": "huanhuan-conversation", "turns": [1]}).encode())
    assert len(page.error) == 1 and "turns[1]" in plain(page.error[0].value)


def test_forbidden_words_are_not_imported(personas: Path, page: AppTest) -> None:
    state = page.session_state.page
    state.words = WordFilter(["毒药"])
    for card in (
        replace(YUN, name="毒药"),
        replace(YUN, system="你卖毒药"),
        replace(YUN, greeting="毒 药？"),
        replace(YUN, alternates=("毒药！",)),
        replace(YUN, starters=("有毒药吗？",)),
    ):
        upload(page, card_json(card))
        assert "没有导入" in page.warning[0].value and len(state.cards) == 2
    upload(page, exported(YUN, "nobody", "卖毒药的"))
    assert "没有导入" in page.warning[0].value
    upload(page, exported(YUN, "nobody", title="毒药"))
    assert "没有导入" in page.warning[0].value and len(state.conversations) == 1
    turns = json.loads(exported(YUN, "x"))["turns"]
    turns[1]["versions"][0]["text"] = "这是毒药。"
    upload(page, exported(YUN, "nobody", turns=turns))
    assert said(page)[-1] == "这是＊＊。", "replies are masked, as in the chat"
    turns[0]["versions"][0]["text"] = "给我毒药"
    upload(page, exported(YUN, "nobody", turns=turns))
    assert "没有导入" in page.warning[0].value


def test_there_is_a_most_of_imported_cards_and_one_in_use_is_never_dropped(
    page: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_state, "MOST_IMPORTED", 2)
    for name in ("一", "二"):
        upload(page, card_json(replace(YUN, name=name)))
        send(page, name)
    upload(page, card_json(replace(YUN, name="三")))
    assert "都还在对话里" in page.warning[0].value
    assert page.selectbox(key="persona").options == ["阿沅", "阿香", "一", "二"]
    page.button(key="forget").click().run()
    page.selectbox(key="conversation").set_value(0).run()
    upload(page, card_json(replace(YUN, name="三")))
    assert page.title[0].value == "三"


def test_imported_conversations_have_limits_too(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_state, "MOST_WEIGHT", 100)
    upload(page, exported(YUN, "nobody"))
    assert "先删掉" in page.warning[0].value and len(page.session_state.page.conversations) == 1
    monkeypatch.setattr(page_state, "MOST_CONVERSATIONS", 1)
    upload(page, exported(YUN, "nobody"))
    assert "已有 1 个对话" in page.warning[0].value


HOSTILE = "![x](http://evil/p.png) :red[<img src=http://evil/q.png>] **b** `c` $d$ [e](http://evil)"


def test_nothing_of_a_card_is_live_markdown(page: AppTest) -> None:
    card = replace(YUN, name=HOSTILE[:60], greeting=HOSTILE, starters=(HOSTILE, "*a*", "# b"), alternates=(HOSTILE,))
    upload(page, exported(card, "nobody", title=HOSTILE[:40]))
    send(page, HOSTILE)
    page.button(key="new").click().run()
    upload(page, b"{}")
    shown = [each.value for kind in (page.title, page.caption, page.success, page.error, page.warning) for each in kind]
    shown += [each.label for each in page.button]
    shown += [each.value for message in page.chat_message for each in message.markdown]
    assert any("evil" in each for each in shown)
    for text in shown:
        assert not re.search(r"(?<!\\)[!<>`$]|(?<!\\)\[(?!x\]|[0-9a-f])", re.sub(r"\*\*b\*\*", "", text)), text
