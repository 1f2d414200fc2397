"""Token ids of a prompt, and the proof that nothing in them was typed as a control token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huanhuan.chat.engine import EngineError
from huanhuan.template import END, START, Message, clean, encode, render


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """What every engine feeds the model: :func:`huanhuan.template.encode`, checked.

    A last message of the assistant is left open, so that the model goes on from it. The template cleans
    the texts it knows about; a tokenizer may spell a control token in more ways than one. So the ids are
    counted: one start per message and one for the reply, one end per closed message.

    Raises: EngineError if a text became a control token.
    """
    if messages[-1]["role"] == "assistant":
        text = render(messages[:-1]) + clean(messages[-1]["content"])
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
        closed = len(messages) - 1
    else:
        ids, closed = encode(tokenizer, messages), len(messages)
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in (START, END))
    if ids.count(start) != closed + 1 or ids.count(end) != closed:
        raise EngineError("这句话里有模型的控制符号，请改写", "the message contains a control token: rephrase it")
    return ids
