"""Exchanges that teach nothing: too short, said before, or mere interjection."""

from __future__ import annotations

import hashlib
import re
import zlib
from array import array
from dataclasses import dataclass

from huanhuan.dataset.spool import Texts

NAMES = ("short", "interjection", "duplicate", "near_duplicate")
INTERJECTIONS = "嗯啊哦噢喔唉哎呀哼咦诶欸呵哈嘿呜嗚呃唔嘻哟喲喂嘘噓呸哇"
_NOT_WORD = re.compile(r"[\W_]+")
_LATIN = re.compile(r"(?:oh|ah|uh|um|hm+|huh|eh|ha|heh)+", re.IGNORECASE)
# Shorter texts differ in meaning with every character: 是 and 不是 are no duplicates.
_NEAR_FROM = 12
_SKETCH = 4
_SLOT_BITS = 20
_SLOTS = (1 << _SLOT_BITS) - 1


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
        # Which exchange had a hash last: a table of fixed size, in which a later one takes the place of an earlier.
        self.latest = array("I", bytes(4 << _SLOT_BITS)) if self.on[3] else array("I")
        self.kept = Texts()
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
        sketch), each with the latest that had it, so the work grows with the text and not with its square.
        """
        data = text.encode("utf-32-le", "surrogatepass")
        crc32 = zlib.crc32
        slots = [value & _SLOTS for value in sorted({crc32(data[at : at + 12]) for at in range(0, len(data) - 8, 4)})]
        looked = {0}
        for slot in slots[:_SKETCH]:
            index = self.latest[slot]
            if index not in looked:
                looked.add(index)
                if _alike(text, self.kept[index - 1]) >= self.options.similarity:
                    return True
        self.kept.append(text.replace("\n", "\t"))
        for slot in slots[:_SKETCH]:
            self.latest[slot] = len(self.kept)
        return False


def _alike(text: str, other: str) -> float:
    """The share of character pairs that two texts have in common, 0 to 1; the seam of prompt and reply counts too.

    >>> _alike("abcd", "abcx")
    0.6666666666666666
    """
    text = text.replace("\n", "\t")
    # Equal numbers of pairs at most: texts of very different lengths need not be compared.
    if min(len(text), len(other)) * 2 < max(len(text), len(other)):
        return 0.0
    ours = {text[at : at + 2] for at in range(len(text) - 1)}
    theirs = {other[at : at + 2] for at in range(len(other) - 1)}
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))
