"""Token ids of a prompt, and the proof that nothing in them was typed as a control token."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from huanhuan.chat.engine import EngineError
from huanhuan.template import CONTROL_TOKENS, END, START, Message, render, render_prompt


@functools.lru_cache(maxsize=8)
def control_ids(tokenizer: Any) -> frozenset[int]:
    """Every id that means more than text: the tokenizer's special ids and those of the control tokens it knows.

    The one for unknown text is none of them: it stands for a character that the vocabulary lacks. Looked up once
    for a tokenizer, because that takes longer than a prompt's ids do, and a visitor waits for it.
    """
    named = tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))
    return frozenset({*tokenizer.all_special_ids, *named} - {tokenizer.unk_token_id, None})


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """What every engine feeds the model: the ids of :func:`huanhuan.template.encode`, checked.

    A last message of the assistant is left open, so that the model goes on from it. The template cleans
    the texts it knows about; a tokenizer may spell a control token in more ways than one. So the control ids
    are counted: one begin, one start per message and one for the reply, one end per closed message, no other.

    Raises: EngineError if a text became a control token.
    """
    ids = [tokenizer.bos_token_id, *tokenizer.encode(render_prompt(messages), add_special_tokens=False)]
    closed = len(messages) - (messages[-1]["role"] == "assistant")
    start, end = tokenizer.convert_tokens_to_ids([START, END])
    controls = control_ids(tokenizer)
    found = Counter(token for token in ids if token in controls)
    if found != Counter({tokenizer.bos_token_id: 1, start: closed + 1, end: closed}):
        raise EngineError("这句话里有模型的控制符号，请改写", "the message contains a control token: rephrase it")
    return ids


def message_size(tokenizer: Any, message: Message) -> int:
    """Tokens that one message adds to a prompt: the template's own tokens end it, so it never joins its neighbours."""
    return len(tokenizer.encode(render([message], add_generation_prompt=False), add_special_tokens=False))
