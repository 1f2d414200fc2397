"""Character cards: there and back, from others, and everything that is none."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huanhuan.chat.cards import MOST_LETTERS, Card, card_json, card_png, read_card
from huanhuan.chat.portrait import portrait_png
from huanhuan.errors import UserError
from huanhuan.persona import Identity, Persona
from huanhuan.template import CONTROL_TOKENS

CARD = Card("阿沅", ("沅儿",), "现在你要扮演种花的阿沅", "来者是客。", ("你是谁？", "花开了吗？"), (), ("又见面了。",))


def test_a_card_comes_back_whole_from_json_and_png() -> None:
    assert read_card(card_json(CARD)) == CARD
    back = read_card(card_png(CARD, portrait_png("阿沅")))
    assert replace(back, picture=b"") == CARD


def test_a_card_s_own_picture_comes_along() -> None:
    from PIL import Image

    drawn = read_card(card_png(CARD, portrait_png("阿沅")))
    again = read_card(card_json(drawn))
    for card in (drawn, again):
        with Image.open(io.BytesIO(card.picture)) as image:
            assert image.format == "JPEG" and max(image.size) == 512


def test_the_png_stays_a_picture_that_others_read() -> None:
    from PIL import Image

    image = Image.open(io.BytesIO(card_png(CARD, portrait_png("阿沅"))))
    image.load()
    assert image.size == (400, 600)
    texts: dict[str, str] = image.text  # type: ignore[attr-defined]
    for keyword, spec in (("chara", "chara_card_v2"), ("ccv3", "chara_card_v3")):
        card = json.loads(base64.b64decode(texts[keyword]))
        assert card["spec"] == spec and card["data"]["name"] == "阿沅"
        assert card["data"]["alternate_greetings"] == ["又见面了。"]


def test_a_persona_is_a_card_without_a_picture() -> None:
    persona = Persona("甲", (), "扮演甲", "好", ("乙",), (Identity(("谁？",), ("甲",)),))
    card = Card.of(persona)
    assert (card.identity, card.greetings, card.picture) == (persona.identity, ("好",), b"")
    assert Card.of(card) is card


def foreign(**data: Any) -> bytes:
    return json.dumps({"spec": "chara_card_v3", "spec_version": "3.0", "data": data}).encode()


def test_an_english_card_is_read_in_english() -> None:
    card = read_card(
        foreign(
            name="Yun",
            description="{{char}} grows flowers for {{User}}.",
            personality="calm",
            scenario="{{user}} visits.{{// a note to oneself }}",
            first_mes="Welcome, {{user}}!<|im_end|>",
            alternate_greetings=["Back again, <USER>?", 5, "", "Welcome to {{CHAR}}'s garden."],
            system_prompt="{{original}}",
        )
    )
    assert card.system == ("You are now playing Yun.\nYun grows flowers for the user.\ncalm\nthe user visits.")
    assert card.greetings == ("Welcome, you!", "Back again, you?", "Welcome to Yun's garden.")
    assert card.starters == ("Hello.", "Who are you?") and not card.chinese


def test_a_chinese_card_is_read_in_chinese() -> None:
    card = read_card(foreign(name="阿云", description="{{char}}给{{user}}种花。", first_mes="{{user}}来了。"))
    assert card.system == "现在你要扮演阿云\n阿云给对方种花。" and card.greeting == "你来了。"
    assert card.starters == ("你好。", "你是谁？") and card.chinese
    assert read_card(foreign(name="Yun")).greeting == "（Yun看着你。）"
    assert read_card(foreign(name="Yun", description="a gardener")).greeting == "*Yun looks at you.*"


def test_examples_and_last_instructions_are_part_of_the_prompt() -> None:
    card = read_card(
        foreign(
            name="Yun",
            description="A gardener.",
            mes_example="<START>\n{{user}}: Hi.\n{{char}}: Mind the roses.\n<START>\n{{char}}: Again?",
            post_history_instructions="{{original}}Stay in character as {{char}}.",
        )
    )
    assert card.system == (
        "You are now playing Yun.\nA gardener.\nHow Yun talks:\nthe user: Hi.\nYun: Mind the roses.\n\nYun: Again?\n"
        "Stay in character as Yun."
    )


def test_of_a_prompt_that_is_too_long_the_examples_give_way() -> None:
    card = read_card(
        foreign(
            name="Yun",
            description="d" * (MOST_LETTERS - 500),
            mes_example="\n".join(f"Yun: line {number}" for number in range(300)),
            post_history_instructions="Stay.",
        )
    )
    assert len(card.system) <= MOST_LETTERS and card.system.endswith("\nStay.")
    lines = card.system.splitlines()
    assert lines[2] == "How Yun talks:" and all(line in lines for line in ("Yun: line 0", "Yun: line 9"))
    assert lines[-2].startswith("Yun: line ") and lines[-2] != "Yun: line "
    full = read_card(foreign(name="Yun", description="d" * 9000, mes_example="Yun: hi", post_history_instructions="S"))
    assert len(full.system) == MOST_LETTERS and full.system.endswith("\nS") and "Yun: hi" not in full.system


def test_a_card_of_ours_that_was_edited_elsewhere_keeps_the_edit() -> None:
    value = json.loads(card_json(CARD))
    value["data"]["system_prompt"] = "别人改的人设"
    value["data"]["description"] = "还会吹笛"
    card = read_card(json.dumps(value).encode())
    assert card.system == "别人改的人设\n还会吹笛" and card.starters == CARD.starters


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


def test_a_damaged_picture_costs_only_the_picture() -> None:
    whole = card_png(CARD, portrait_png("阿沅"))
    pixels = whole.index(b"IDAT") + 20
    broken = whole[:pixels] + bytes(200) + whole[pixels + 200 :]
    assert replace(read_card(broken), picture=b"") == CARD
    value = json.loads(card_json(CARD))
    for bad in ("no base64 ü", base64.b64encode(b"GIF89a").decode(), 7):
        value["data"]["extensions"]["huanhuan"]["picture"] = bad
        assert read_card(json.dumps(value).encode()) == CARD


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just("\ud800"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "data",
                        "name",
                        "extensions",
                        "huanhuan",
                        "starters",
                        "first_mes",
                        "picture",
                        "alternate_greetings",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_clean_card_or_one_line(value: Any) -> None:
    try:
        card = read_card(json.dumps(value).encode())
    except UserError:
        return
    for text in card.texts:
        assert text.strip() and not any(token in text for token in CONTROL_TOKENS)
        text.encode()
    assert read_card(card_json(card)) == card
