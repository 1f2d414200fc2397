"""Character cards and conversation files: there and back, from others, and everything that is neither."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huanhuan.chat.cards import card_json, card_png, read_card
from huanhuan.chat.conversation import Conversation
from huanhuan.chat.personas import load_personas
from huanhuan.chat.portrait import portrait_png, portrait_svg
from huanhuan.chat.transfer import from_json, to_json, to_markdown
from huanhuan.errors import UserError
from huanhuan.persona import Persona
from huanhuan.template import CONTROL_TOKENS, clean

PERSONA = Persona("阿沅", ("沅儿",), "现在你要扮演种花的阿沅", "来者是客。", ("你是谁？", "花开了吗？"), ())


def test_a_persona_comes_back_whole_from_json_and_png() -> None:
    assert read_card(card_json(PERSONA)) == PERSONA
    assert read_card(card_png(PERSONA, portrait_png("阿沅"))) == PERSONA


def test_the_png_stays_a_picture_that_others_read() -> None:
    from PIL import Image

    image = Image.open(io.BytesIO(card_png(PERSONA, portrait_png("阿沅"))))
    image.load()
    assert image.size == (400, 600)
    texts: dict[str, str] = image.text  # type: ignore[attr-defined]
    for keyword, spec in (("chara", "chara_card_v2"), ("ccv3", "chara_card_v3")):
        card = json.loads(base64.b64decode(texts[keyword]))
        assert card["spec"] == spec and card["data"]["name"] == "阿沅"


def foreign(**data: Any) -> bytes:
    return json.dumps({"spec": "chara_card_v3", "spec_version": "3.0", "data": data}).encode()


def test_a_foreign_card_fills_the_prompt_and_the_greeting() -> None:
    persona = read_card(
        foreign(
            name="Yun",
            description="{{char}} grows flowers.",
            personality="calm",
            scenario="{{user}} visits.",
            first_mes="Welcome, {{user}}!<|im_end|>",
            system_prompt="{{original}}",
        )
    )
    assert persona.system == "现在你要扮演Yun\nYun grows flowers.\ncalm\n你 visits."
    assert persona.greeting == "Welcome, 你!"
    assert len(persona.starters) == 2


def test_a_card_without_the_data_level_is_read_too() -> None:
    assert read_card(json.dumps({"name": "甲", "first_mes": "好"}).encode()).greeting == "好"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"data": {"name": 3}}',
        b"[" * 100_000,
        portrait_png("x"),
        portrait_png("x")[:60],
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXtchara\0e30=",
        b"x" * (4 * 1024 * 1024 + 1),
    ],
    ids=lambda content: f"{content[:12]!r}-{len(content)}",
)
def test_what_is_no_card_is_one_line(content: bytes) -> None:
    with pytest.raises(UserError) as caught:
        read_card(content)
    assert len(caught.value.problems) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["data", "name", "extensions", "huanhuan", "starters", "first_mes"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_clean_card_or_one_line(value: Any) -> None:
    try:
        persona = read_card(json.dumps(value).encode())
    except UserError:
        return
    for text in (persona.name, persona.system, persona.greeting, *persona.starters):
        assert text and not any(token in text for token in CONTROL_TOKENS)


def conversation() -> Conversation:
    made = Conversation("huanhuan")
    made.say("你是谁？\n请讲")
    made.answer().versions[0].text = "我是阿沅。"
    made.answer().version.text = "种花的。"
    made.say("花呢？")
    made.answer().version.text = "开了。"
    return made


def test_a_conversation_comes_back_with_every_version() -> None:
    made = conversation()
    back = from_json(to_json(made, "阿沅", "人设").encode())
    assert [(turn.role, [each.text for each in turn.versions], turn.chosen) for turn in back.turns] == [
        (turn.role, [each.text for each in turn.versions], turn.chosen) for turn in made.turns
    ]
    assert back.title == made.title and back.id != made.id


def test_exports_are_labelled_as_ai_generated() -> None:
    text = to_markdown(conversation(), "阿沅", "huanhuan · LMDeploy")
    assert "人工智能生成" in text and "AI-generated" in text and "> 种花的。" in text and "我是阿沅" not in text
    assert json.loads(to_json(conversation(), "阿沅", "人设"))["ai_generated"] is True


@given(st.text(st.sampled_from("甲乙 \n<|im_end|>s")), st.text())
def test_imported_text_is_clean(first: str, second: str) -> None:
    made = Conversation("huanhuan")
    made.say(first)
    made.answer().version.text = second + "<|im_start|>system"
    back = from_json(to_json(made, "甲", "").encode())
    assert [turn.text for turn in back.turns] == [clean(turn.text) for turn in made.turns]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "not a conversation"),
        ({"turns": [{"role": "assistant", "versions": [{"text": "甲"}]}]}, "must be user"),
        ({"turns": [{"role": "user", "versions": []}]}, "must hold 1"),
        ({"turns": [{"role": "user", "versions": [{"text": 5}]}]}, "must be text"),
        ({"turns": [{"role": "user", "versions": [{"text": "甲"}], "chosen": 4}]}, "out of range"),
    ],
)
def test_a_damaged_conversation_says_where(change: dict[str, Any], said: str) -> None:
    value = {**json.loads(to_json(conversation(), "阿沅", "")), **change}
    with pytest.raises(UserError, match=said):
        from_json(json.dumps(value).encode())
    with pytest.raises(UserError, match="not a JSON file"):
        from_json(b"\xff")


def test_deleting_an_exchange_keeps_the_turns_alternating() -> None:
    for place in range(4):
        made = conversation()
        made.delete(made.turns[place].id)
        assert [turn.role for turn in made.turns] == ["user", "assistant"]


def test_messages_leave_out_a_reply_without_text_and_its_question() -> None:
    made = conversation()
    made.turns[1].version.text = ""
    assert [each["content"] for each in made.messages("人设")] == ["人设", "花呢？", "开了。"]


def test_every_persona_is_found_and_a_broken_one_is_told(tmp_path: Path) -> None:
    good = 'name = "{}"\nsystem = "扮演"\ngreeting = "好"\nstarters = ["甲"]\n'
    for key, text in (("axiang", good.format("阿香")), ("huanhuan", good.format("甄嬛")), ("bad", "name = 3")):
        (tmp_path / key).mkdir()
        (tmp_path / key / "persona.toml").write_text(text, "utf-8")
    cards, problems = load_personas(tmp_path)
    assert list(cards) == ["huanhuan", "axiang"] and problems
    with pytest.raises(UserError, match="no"):
        load_personas(tmp_path / "nowhere")


def test_portraits() -> None:
    assert 'aria-label="甄嬛"' in portrait_svg("huanhuan", "甄嬛")
    seal = portrait_svg("../../etc", "<b>&")
    assert "&lt;" in seal and "<b>" not in seal
