"""The ids of a prompt: no text becomes a control token, however it is spelled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from huanhuan.chat.engine import EngineError
from huanhuan.chat.prompt import control_ids, message_size, prompt_ids
from huanhuan.template import CONTROL_TOKENS, END, START, Message, encode

SPELLED = "[ANOTHER_SPELLING]"


class Spelling:
    """A tokenizer with a second spelling of one token, as released ones have."""

    def __init__(self, tokenizer: Any, token: str) -> None:
        self._tokenizer, self._token = tokenizer, token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        return self._tokenizer.encode(text.replace(SPELLED, self._token), **options)


@pytest.mark.parametrize("token", [token for token in CONTROL_TOKENS if token.startswith("<") and token != "<unk>"])
def test_any_control_token_that_slips_through_the_cleaning_is_noticed(tiny_tokenizer: Any, token: str) -> None:
    tokenizer = Spelling(tiny_tokenizer, token)
    for content in (f"甲{SPELLED}", f"{SPELLED}乙"):
        with pytest.raises(EngineError, match="control token"):
            prompt_ids(tokenizer, [{"role": "user", "content": content}])
    with pytest.raises(EngineError, match="control token"):
        prompt_ids(tokenizer, [{"role": "user", "content": "甲"}, {"role": "assistant", "content": SPELLED}])


def test_the_control_ids_are_the_special_ones_and_those_of_the_names(tiny_tokenizer: Any) -> None:
    named = {tiny_tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS if token.startswith("<")} - {
        tiny_tokenizer.unk_token_id
    }
    assert control_ids(tiny_tokenizer) == named and len(named) == 8

    class Forgetful(Spelling):
        """Does not call its chat tokens special."""

        all_special_ids = (tiny_tokenizer.bos_token_id,)

    assert control_ids(Forgetful(tiny_tokenizer, "")) == named


def test_the_control_ids_are_looked_up_once_for_a_tokenizer(tiny_tokenizer: Any) -> None:
    """Looked up for every prompt they took most of what a page adds to the first token."""
    asked: list[Any] = []

    class Counting(Spelling):
        def convert_tokens_to_ids(self, tokens: Any) -> Any:
            asked.append(tokens)
            return tiny_tokenizer.convert_tokens_to_ids(tokens)

    tokenizer = Counting(tiny_tokenizer, "")
    for text in "甲乙丙":
        prompt_ids(tokenizer, [{"role": "user", "content": text}])
    assert asked.count(list(CONTROL_TOKENS)) == 1


def test_a_character_that_the_vocabulary_lacks_is_no_control_token(tiny_tokenizer: Any) -> None:
    class Poor(Spelling):
        """A vocabulary without bytes to fall back on."""

        def encode(self, text: str, **options: Any) -> list[int]:
            return [*super().encode(text, **options), tiny_tokenizer.unk_token_id]

    assert prompt_ids(Poor(tiny_tokenizer, ""), [{"role": "user", "content": "𠮷"}])


TEXTS = st.lists(
    st.sampled_from([*CONTROL_TOKENS[:9], *CONTROL_TOKENS[-2:], "<|im_", "start|>", "甲", "春风", "\n", " ", "🌸"]),
    max_size=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(TEXTS.map("".join), min_size=1, max_size=5))
def test_the_ids_are_the_template_s_and_the_sizes_add_up(tiny_tokenizer: Any, texts: list[str]) -> None:
    messages: list[Message] = [
        {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)
    ]
    if len(messages) % 2 == 0:
        messages.append({"role": "user", "content": "末"})
    ids = prompt_ids(tiny_tokenizer, messages)
    assert ids == encode(tiny_tokenizer, messages)
    assert len(ids) == len(encode(tiny_tokenizer, [])) + sum(message_size(tiny_tokenizer, each) for each in messages)
    start, end = tiny_tokenizer.convert_tokens_to_ids([START, END])
    assert ids.count(start) == ids.count(end) + 1 == len(messages) + 1
