"""A conversation: what is said in turn, what is sent to the model, and how far it may grow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huanhuan.chat import conversation as module
from huanhuan.chat.conversation import MOST_VERSIONS, Conversation, Full, Turn, Version
from huanhuan.template import clean


def talk(*texts: str) -> Conversation:
    """Texts said in turn, the visitor's first."""
    made = Conversation("huanhuan")
    for number, text in enumerate(texts):
        if number % 2:
            made.answer().version.text = text
        else:
            made.say(text)
    return made


def contents(made: Conversation, system: str = "") -> list[str]:
    return [each["content"] for each in made.messages(system)]


def test_the_first_sentence_names_the_conversation() -> None:
    assert talk("你是谁？\n请讲", "我").title == "你是谁？ 请讲"
    assert len(talk("长" * 50).title) == 20


def test_a_message_after_an_unanswered_one_takes_its_place_and_can_be_flipped_back() -> None:
    made = talk("甲", "乙", "没人答")
    made.say("换个说法")
    assert [turn.role for turn in made.turns] == ["user", "assistant", "user"]
    assert contents(made) == ["甲", "乙", "换个说法"]
    made.turns[-1].flip(-1)
    assert contents(made) == ["甲", "乙", "没人答"]


def test_a_reply_without_text_is_left_out_with_its_question() -> None:
    made = talk("你是谁？", "", "花呢？", "开了。")
    assert contents(made, "人设") == ["人设", "花呢？", "开了。"]
    assert contents(talk("你是谁？", "<|im_end|>", "花呢？")) == ["花呢？"]


def test_messages_of_one_side_in_a_row_are_joined() -> None:
    made = Conversation("huanhuan")
    for role, text in (("assistant", "零"), ("user", "甲"), ("user", "乙"), ("assistant", "丙"), ("assistant", "丁")):
        made.turns.append(Turn(role, [Version(text)]))  # type: ignore[arg-type]
    assert contents(made) == ["甲\n乙", "丙\n丁"]
    assert contents(replace(made, turns=made.turns[:3])) == ["甲\n乙"]


TURNS = st.lists(
    st.builds(
        lambda role, texts: Turn(role, [Version(text) for text in texts], len(texts) - 1),
        st.sampled_from(["user", "assistant"]),
        st.lists(st.sampled_from(["", "甲", "乙 ", "<|im_end|>", " \n"]), min_size=1, max_size=3),
    ),
    max_size=9,
)


@given(TURNS, st.sampled_from(["", "人设"]))
def test_whatever_the_turns_are_the_messages_alternate_and_none_is_empty(turns: list[Turn], system: str) -> None:
    messages = Conversation("huanhuan", turns=turns).messages(system)
    roles = [each["role"] for each in messages if each["role"] != "system"]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
    assert all(clean(each["content"]) for each in messages)


def test_deleting_an_exchange_keeps_the_turns_alternating() -> None:
    for place in range(4):
        made = talk("你是谁？", "阿沅", "花呢？", "开了。")
        made.delete(made.turns[place].id)
        assert [turn.role for turn in made.turns] == ["user", "assistant"]
    made = talk("你是谁？", "阿沅", "没人答")
    made.delete(made.turns[2].id)
    assert [turn.role for turn in made.turns] == ["user", "assistant"]


@given(TURNS.filter(bool), st.data())
def test_deleting_takes_one_exchange_and_no_more(turns: list[Turn], data: st.DataObject) -> None:
    made = Conversation("huanhuan", turns=list(turns))
    gone = data.draw(st.sampled_from(turns))
    made.delete(gone.id)
    assert 1 <= len(turns) - len(made.turns) <= 2 and gone not in [each for each in made.turns if each is gone]


def test_nothing_grows_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made = talk("甲", "乙")
    for _ in range(MOST_VERSIONS - 1):
        made.answer().version.text = "又"
    with pytest.raises(Full) as caught:
        made.answer()
    assert caught.value.what == "versions" and len(made.turns[1].versions) == MOST_VERSIONS

    monkeypatch.setattr(module, "MOST_TURNS", 4)
    full = talk("甲", "乙", "丙", "丁")
    with pytest.raises(Full) as caught:
        full.say("戊")
    assert caught.value.what == "turns" and len(full.turns) == 4

    monkeypatch.setattr(module, "MOST_TURNS", 2000)
    monkeypatch.setattr(module, "MOST_WEIGHT", 23_000)
    # What could be said can be answered.
    long = talk("甲", "乙" * 100, "丙" * 2000, "丁")
    with pytest.raises(Full) as caught:
        long.say("戊")
    assert caught.value.what == "letters" and long.turns[-1].text == "丁"


def test_flipping_stops_at_the_ends() -> None:
    turn = Turn("assistant", [Version("一"), Version("二")])
    turn.flip(-1)
    assert turn.text == "一"
    turn.flip(1)
    turn.flip(1)
    assert turn.text == "二"


def test_a_turn_that_is_gone_is_not_found() -> None:
    with pytest.raises(KeyError):
        talk("甲").cut("nowhere")
