"""How many tokens a recipe will train on, counted without torch and without a model."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.dataset.validate import validate_file
from huanhuan.errors import UserError
from huanhuan.paths import in_checkout
from huanhuan.template import Message, clean, record_messages, render
from huanhuan.training.packing import pack_best_fit

# InternLM2's vocabulary holds common Chinese words whole; 1.4 to 1.6 characters a token is usual for Chinese prose.
TOKENS_PER_CHARACTER = 0.7
# <|im_start|>, the role, a newline, <|im_end|>, a newline.
TOKENS_PER_MESSAGE = 5


@dataclass(frozen=True)
class Data:
    """A training file in tokens."""

    lengths: tuple[int, ...]
    """Tokens of each dialogue, cut as training cuts it."""
    supervised: int
    exact: bool
    """Counted with the base's own tokenizer, and not estimated from characters."""

    @property
    def tokens(self) -> int:
        """All tokens, padding not counted."""
        return sum(self.lengths)

    @property
    def share(self) -> float:
        """Share of the tokens that are learned."""
        return self.supervised / max(self.tokens, 1)

    def packs(self, pack_length: int | None) -> int:
        """Packs of ``pack_length`` tokens, or dialogues where there are none."""
        return len(self.lengths) if pack_length is None else len(pack_best_fit(self.lengths, pack_length))


def count_data(path: str, max_length: int, tokenizer: Path | None) -> Data:
    """Measure a training file, relative paths below the checkout; estimate if ``tokenizer`` is None.

    Raises: UserError if the file breaks the contract or the tokenizer does not load.
    """
    file = in_checkout(path)
    return _count_file(file, max_length, tokenizer, file.stat().st_mtime_ns if file.is_file() else 0)


@functools.lru_cache(maxsize=16)
def _count_file(file: Path, max_length: int, tokenizer: Path | None, changed: int) -> Data:
    """:func:`count_data` of a file last changed at ``changed``: looking for what fits asks for the same many times."""
    validation = validate_file(file)
    if validation.errors:
        raise UserError(validation.errors)
    count = _estimate if tokenizer is None else _counter(tokenizer)
    lengths, supervised = [], 0
    for record in _records(file):
        length, learned = _measure(record, max_length, count)
        if length:
            lengths.append(length)
            supervised += learned
    return Data(tuple(lengths), supervised, tokenizer is not None)


def _records(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _measure(record: Mapping[str, Any], max_length: int, count: Callable[[Message], int]) -> tuple[int, int]:
    """Tokens of the exchanges that fit into ``max_length``, and how many of them are learned; zeros if none fits."""
    length, learned = 1, 0
    kept = (0, 0)
    for message in record_messages(record):
        tokens = count(message)
        length += tokens
        if message["role"] != "assistant":
            continue
        # Of a reply, its text and <|im_end|>.
        learned += tokens - TOKENS_PER_MESSAGE + 1
        if length > max_length:
            break
        kept = (length, learned)
    return kept


def _estimate(message: Message) -> int:
    return round(len(clean(message["content"])) * TOKENS_PER_CHARACTER) + TOKENS_PER_MESSAGE


def _counter(folder: Path) -> Callable[[Message], int]:
    from huanhuan.dataset.tokens import token_counter

    count = token_counter(folder)
    return lambda message: count(render([message], add_generation_prompt=False))
