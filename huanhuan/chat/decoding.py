"""Text from token ids as they arrive, never half a character."""

from __future__ import annotations

from typing import Any


class IncrementalDecoder:
    """Turns ids into text piece by piece; the pieces joined equal the whole decoded at once.

    A token may hold part of a character (byte fallback) and a SentencePiece token's leading space depends on
    what stands before it, so each step decodes a short window of earlier tokens along with the new one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._window = 0
        self._emitted = 0

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def add(self, ids: list[int]) -> str:
        """The text that ``ids`` complete; empty while a character is unfinished."""
        self._ids.extend(ids)
        before = self._decode(self._ids[self._window : self._emitted])
        now = self._decode(self._ids[self._window :])
        if len(now) <= len(before) or now.endswith("�"):
            return ""
        self._window, self._emitted = self._emitted, len(self._ids)
        return now[len(before) :]

    def end(self) -> str:
        """What is left: the remains of a character that never became whole are dropped."""
        before = self._decode(self._ids[self._window : self._emitted])
        now = self._decode(self._ids[self._window :])
        return now[len(before) :].rstrip("�")
