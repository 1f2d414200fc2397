"""Exchanges that teach nothing: too short, said before, or mere interjection."""

from __future__ import annotations

import hashlib
import re
import zlib
from dataclasses import dataclass

NAMES = ("short", "interjection", "duplicate", "near_duplicate")
INTERJECTIONS = "嗯啊哦噢喔唉哎呀哼咦诶欸呵哈嘿呜嗚呃唔嘻哟喲喂嘘噓呸哇"
_NOT_WORD = re.compile(r"[\W_]+")
_LATIN = re.compile(r"(?:oh|ah|uh|um|hm+|huh|eh|ha|heh)+", re.IGNORECASE)
# Shorter texts differ in meaning with every character: 是 and 不是 are no duplicates.
_NEAR_FROM = 12
_SKETCH = 4
_BUCKET = 16


@dataclass(frozen=True)
class FilterOptions:
    """``off`` names filters that let everything pass.

    ``min_chars``: letters, digits and Chinese characters that a reply has at least.
    ``copies``: how often the same exchange may occur. ``similarity``: share of common character pairs, 0 to 1, from
    which two exchanges are near duplicates. ``interjections``: characters that say nothing by themselves.
    """

    off: frozenset[str] = frozenset()
    min_chars: int = 1
    copies: int = 1
    similarity: float = 0.9
    interjections: str = INTERJECTIONS


class Filters:
    """Says of each exchange in turn whether to keep it; remembers what came before."""

    def __init__(self, options: FilterOptions) -> None:
        self.options = options
        self.on = [name not in options.off for name in NAMES]
        self.seen: dict[bytes, int] = {}
        self.sketches: dict[int, list[int]] = {}
        self.kept: list[bytes] = []
        self.idle = re.compile(f"[{re.escape(options.interjections)}]+") if options.interjections else None

    def reason(self, prompt: str, reply: str) -> str | None:
        """Why to leave the exchange out, or None to keep it.

        >>> Filters(FilterOptions()).reason("你可愿意？", "嗯……")
        'interjection'
        """
        short, interjection, duplicate, near = self.on
        words = _NOT_WORD.sub("", reply)
        if short and len(words) < self.options.min_chars:
            return "short"
        if interjection and words and ((self.idle and self.idle.fullmatch(words)) or _LATIN.fullmatch(words)):
            return "interjection"
        if not duplicate and not near:
            return None
        said = f"{_NOT_WORD.sub('', prompt)}\n{words or reply}".casefold()
        if duplicate:
            key = said.encode("utf-8", "surrogatepass")
            # A hash of 128 bits stands for the text: memory must not grow with the length of what was read.
            key = hashlib.blake2b(key, digest_size=16).digest()
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] > self.options.copies:
                return "duplicate"
        if near and len(said) >= _NEAR_FROM and self._is_near(said):
            return "near_duplicate"
        return None

    def _is_near(self, text: str) -> bool:
        """Whether a kept exchange shares enough character pairs with ``text``; remembers it if not.

        Texts are compared only if they share one of their few smallest hashes of three characters each (a bottom-k
        sketch), and with a bounded number of them, so the work grows with the text and not with its square.
        """
        data = text.encode("utf-32-le", "surrogatepass")
        crc32 = zlib.crc32
        hashes = sorted({crc32(data[at : at + 12]) for at in range(0, len(data) - 8, 4)})[:_SKETCH]
        pairs: set[bytes] | None = None
        looked: set[int] = set()
        for value in hashes:
            for index in self.sketches.get(value, ()):
                if index in looked:
                    continue
                looked.add(index)
                if pairs is None:
                    pairs = _pairs(data)
                other = self.kept[index]
                # The share of common pairs cannot reach the limit if the lengths are too far apart.
                if min(len(other), len(data)) < max(len(other), len(data)) * self.options.similarity / 2:
                    continue
                theirs = _pairs(other)
                if 2 * len(pairs & theirs) >= self.options.similarity * (len(pairs) + len(theirs)):
                    return True
        for value in hashes:
            bucket = self.sketches.setdefault(value, [])
            if len(bucket) < _BUCKET:
                bucket.append(len(self.kept))
        self.kept.append(data)
        return False


def _pairs(data: bytes) -> set[bytes]:
    return {data[at : at + 8] for at in range(0, len(data) - 4, 4)}
