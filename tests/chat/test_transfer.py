"""Conversation files: whatever the page can hold comes back, with its character, and nothing in it comes alive."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from huanhuan.chat import conversation as limits
from huanhuan.chat.cards import MOST_LETTERS, Card
from huanhuan.chat.conversation import (
    MOST_REPLY,
    MOST_TURNS,
    MOST_VERSIONS,
    MOST_WEIGHT,
    VERSION_WEIGHT,
    Conversation,
    Full,
    Turn,
    Version,
)
from huanhuan.chat.portrait import portrait_png, readable_picture
from huanhuan.chat.transfer import FINISHES, MOST_BYTES, from_json, is_conversation, to_json, to_markdown
from huanhuan.errors import UserError
from huanhuan.template import clean

CARD = Card("阿沅", ("沅儿",), "现在你要扮演种花的阿沅", "来者是客。", ("你是谁？", "花开了吗？"), (), ("又见面了。",))


def conversation() -> Conversation:
    made = Conversation("huanhuan")
    made.say("你是谁？\n请讲")
    made.answer().versions[0].text = "我是阿沅。"
    made.turns[-1].version.model = "huanhuan-7b"
    made.answer().version.text = "种花的。"
    made.say("花呢？")
    made.answer().version.text = "开了。"
    return made


TEXT = (
    st.text(st.sampled_from("甲乙a \n*<>&![]()\"'\\\x01\x0b\u2028😀"), min_size=1, max_size=12).map(clean).filter(bool)
)
VERSION = st.builds(
    Version,
    TEXT,
    st.sampled_from(FINISHES),
    st.sampled_from(["", "huanhuan", "a/b 7B"]),
    st.just(0),
    st.none() | st.just(0.25),
    st.none() | st.just(12.5),
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """What a visitor can make of the page: replies that failed, were stopped, said again, continued, rewritten."""
    made = Conversation("huanhuan", greeting=draw(st.integers(0, 1)))
    for _ in range(draw(st.integers(0, 12))):
        act = draw(st.sampled_from(["say", "say", "answer", "answer", "again", "edit", "delete", "flip", "continue"]))
        try:
            if act == "say":
                made.say(draw(TEXT))
            elif act == "delete" and made.turns:
                made.delete(draw(st.sampled_from(made.turns)).id)
            elif act == "flip" and made.turns:
                draw(st.sampled_from(made.turns)).flip(draw(st.sampled_from([-1, 1])))
            elif act == "again" and made.turns:
                for _ in range(draw(st.integers(1, MOST_VERSIONS + 2))):
                    made.answer().versions[-1] = draw(VERSION)
            elif act == "continue" and made.turns and not made.unanswered:
                made.turns[-1].version.text = (made.turns[-1].text + draw(TEXT))[:MOST_REPLY]
            elif act in ("answer", "edit") and made.unanswered:
                made.answer().versions[-1] = draw(VERSION)
        except Full:
            pass
    return made


def shape(made: Conversation) -> Any:
    return made.title, made.greeting, [(turn.role, turn.chosen, turn.versions) for turn in made.turns]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(conversations())
def test_whatever_the_page_holds_comes_back_whole(made: Conversation) -> None:
    back = from_json(to_json(made, CARD, CARD.system).encode())
    expected = shape(made)
    assert shape(back.conversation) == (
        expected[0],
        expected[1],
        [(role, chosen, [_exported(each) for each in versions]) for role, chosen, versions in expected[2]],
    )
    assert back.card == CARD and back.system == CARD.system and back.conversation.id != made.id


def _exported(version: Version) -> Version:
    return version if version.model else replace(version, tokens=0)


def test_the_fullest_conversation_and_the_longest_card_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # A control character is six in JSON: no text takes more room.
    worst = "\x01" * (MOST_REPLY - 1) + "a"
    made = Conversation("huanhuan")
    monkeypatch.setattr(limits, "MOST_MESSAGE", 0)
    number = 0
    while made.weight + 2 * MOST_REPLY + 4 * VERSION_WEIGHT <= MOST_WEIGHT:
        made.say(f"第{number}句") if number % 2 == 0 else made.answer().versions.__setitem__(-1, Version(worst))
        number += 1
    picture = readable_picture(portrait_png("阿沅")) or b""
    long = "\x01" * (MOST_LETTERS - 1) + "a"
    card = Card("名", (), long, long[-2000:], ("你好",), (), tuple(f"{i}{long[-1990:]}" for i in range(10)), picture)
    content = to_json(made, card, long[::-1]).encode()
    assert len(content) <= MOST_BYTES
    back = from_json(content)
    assert shape(back.conversation) == shape(made) and back.card and back.card.alternates == card.alternates


def test_many_short_versions_fit_too() -> None:
    made = Conversation("huanhuan")
    made.turns = [
        Turn("assistant" if n % 2 else "user", [Version("好", "stop", "m" * 30, 9, 0.123, 45.678)] * MOST_VERSIONS)
        for n in range(MOST_WEIGHT // (VERSION_WEIGHT + 31) // MOST_VERSIONS)
    ]
    content = to_json(made, CARD, "").encode()
    assert len(content) <= MOST_BYTES and len(from_json(content).conversation.turns) == len(made.turns)


def test_a_reply_that_has_only_just_been_asked_for_is_left_out() -> None:
    made = conversation()
    made.answer()
    made.say("还有呢？")
    made.answer()
    back = from_json(to_json(made, CARD, "").encode()).conversation
    assert [turn.text for turn in back.turns] == ["你是谁？\n请讲", "种花的。", "花呢？", "开了。", "还有呢？"]
    assert "还有呢" in to_markdown(made, CARD)


def test_the_character_comes_along() -> None:
    back = from_json(to_json(conversation(), CARD, "改过的人设").encode())
    assert back.card == CARD and back.whole and back.system == "改过的人设"
    value = json.loads(to_json(conversation(), CARD, ""))
    assert value["greeting"] == "来者是客。" and value["character"] == "阿沅"
    assert value["turns"][1]["versions"][0]["model"] == "huanhuan-7b"


def test_a_file_of_the_first_version_still_comes_back() -> None:
    value = {
        "format": "huanhuan-conversation",
        "version": 1,
        "character": "阿沅",
        "system": "人设",
        "persona": "ayuan",
        "title": "旧话",
        "turns": [
            {"role": "user", "chosen": 0, "versions": [{"text": "没人答"}]},
            {"role": "user", "chosen": 0, "versions": [{"text": "再说一遍"}]},
            {"role": "assistant", "chosen": 0, "versions": [{"text": "听见了", "finish": "stop"}]},
        ],
    }
    back = from_json(json.dumps(value).encode())
    assert [turn.role for turn in back.conversation.turns] == ["user", "user", "assistant"]
    assert back.card and (back.card.name, back.card.system, back.whole) == ("阿沅", "人设", False)
    assert back.conversation.persona == "ayuan"
    nameless = from_json(json.dumps({**value, "character": " "}).encode())
    assert nameless.card is None


def test_exports_are_labelled_as_ai_generated_and_begin_with_the_greeting() -> None:
    text = to_markdown(conversation(), CARD)
    assert "人工智能生成" in text and "AI-generated" in text and "> 种花的。" in text and "我是阿沅" not in text
    assert text.index("> 来者是客。") < text.index("> 你是谁？")
    assert json.loads(to_json(conversation(), CARD, "人设"))["ai_generated"] is True


def test_the_export_speaks_the_visitor_s_language() -> None:
    made = conversation()
    assert to_markdown(made, CARD).startswith("# 阿沅：") and "**你**" in to_markdown(made, CARD)
    english = to_markdown(made, CARD, "en")
    assert english.startswith("# 阿沅\\: ") and "**You**" in english and "**你**" not in english


def test_what_the_visitor_wrote_in_the_character_s_place_is_marked() -> None:
    made = conversation()
    made.turns[-1].add(Version("改的", "edited"))
    assert "**阿沅**（由访客改写）" in to_markdown(made, CARD)
    assert "rewritten by the visitor" in to_markdown(made, CARD, "en")


def test_nothing_in_the_markdown_is_obeyed() -> None:
    attack = (
        "![x](http://evil/p.png) <img src=http://evil/q.png onerror=x()>\n    code\n# 题\n<script>x()</script> [a](b)"
    )
    made = Conversation("huanhuan", title=attack.replace("\n", " "))
    made.say(attack)
    made.answer().version.text = attack
    text = to_markdown(made, replace(CARD, name=attack.replace("\n", " "), greeting=attack))
    ours = re.sub(r"^(# |> |\*\*)|\*\*(?=$|（)", "", text, flags=re.MULTILINE)
    assert not re.search(r"(?<!\\)[!<>\[\]()#`]", ours.replace("http\\:\\/\\/evil", "")), ours


@given(st.text(st.sampled_from("甲乙 \n<|im_end|>s")), st.text())
def test_imported_text_is_clean(first: str, second: str) -> None:
    made = Conversation("huanhuan")
    made.say("问" + first)
    made.answer().version.text = second + "答<|im_start|>system"
    back = from_json(to_json(made, CARD, "").encode("utf-8", "replace"))
    assert all(turn.text == clean(turn.text) for turn in back.conversation.turns)


def damaged(**change: Any) -> bytes:
    return json.dumps({**json.loads(to_json(conversation(), CARD, "")), **change}).encode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "not a conversation"),
        ({"turns": [{"role": "system", "versions": [{"text": "甲"}]}]}, "must be user or assistant"),
        ({"turns": [{"role": "user", "versions": []}]}, "must hold 1"),
        ({"turns": [{"role": "user", "versions": [{"text": "甲"}] * (MOST_VERSIONS + 1)}]}, "must hold 1"),
        ({"turns": [{"role": "user", "versions": [{"text": 5}]}]}, "must be text"),
        ({"turns": [{"role": "user", "versions": [{"text": "甲" * (MOST_REPLY + 1)}]}]}, "must be text"),
        ({"turns": [{"role": "user", "versions": [{"text": "甲"}], "chosen": 4}]}, "out of range"),
        ({"turns": [{"role": "user", "versions": [{"text": "甲"}]}] * (MOST_TURNS + 1)}, "more than"),
        ({"turns": [{"role": "user", "versions": [{"text": "甲" * MOST_REPLY}] * 20}]}, "too long"),
        ({"card": {"name": 3}}, "not a character card"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_damaged_conversation_says_where(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        from_json(damaged(**change))


def test_a_file_that_is_no_conversation_is_told_from_one() -> None:
    assert is_conversation(to_json(conversation(), CARD, "").encode())
    for content in (b"\xff", b"[]", b"[" * 100_000, b'{"description": "huanhuan-conversation"}'):
        assert not is_conversation(content)
        with pytest.raises(UserError):
            from_json(content)
    with pytest.raises(UserError, match="too large"):
        from_json(b" " * (MOST_BYTES + 1))


def test_strange_numbers_and_half_letters_do_no_harm() -> None:
    versions = [{"text": "a\ud800", "tokens": float("nan"), "first_token_seconds": 1e300, "model": ["x"], "finish": []}]
    back = from_json(damaged(turns=[{"role": "user", "versions": versions}], greeting_number=True, title="t\udfff"))
    version = back.conversation.turns[0].version
    assert (version.text, version.tokens, version.first_token_seconds, version.model, version.finish) == (
        "a?",
        0,
        None,
        "",
        "stop",
    )
    back.conversation.title.encode()
