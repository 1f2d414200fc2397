"""Quotations of a novel: where each begins and ends, over paragraphs too, and whether it is speech at all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from huanhuan.text.clean import join_lines
from huanhuan.text.headings import read_heading

_PAIRS = (("“", "”"), ("「", "」"), ("『", "』"), ("＂", "＂"), ('"', '"'))
_ENDS = re.compile("[。！？…，；：、—～!?.,;~-][’』」]?$")
# What introduces an inscription, a name or a sound instead of speech.
_WRITTEN = re.compile(
    "(?:[写寫题題刻书書镌鐫绣繡印贴貼署][着著了有道曰的是为為成]*|[大横].?书|[取起]名[叫曰为為]?|[称稱]?之?[为為]|名[叫曰为為唤喚]|[叫唤喚]作|叫做|所谓|所謂"
    "|一个|一個|两个|个|個|[这這那]个?|联云|联道|诗云|诗曰|词曰|曲云|批曰|匾|额|字|的)[：:∶，,]?$"
)
_LONGEST = 30


@dataclass(slots=True)
class Quote:
    """One quotation. ``lead`` is the narration before it back to the quotation before it, ``trail`` the narration after.

    ``first`` and ``last`` are 1-based lines; ``apart`` counts characters of narration since the quotation before,
    over paragraphs. ``goes_on``: it is another paragraph of the speech before, which opened again without closing.
    """

    text: str
    lead: str
    trail: str
    first: int
    last: int
    apart: int
    paragraphs: int
    balanced: bool = True
    goes_on: bool = False


def paragraphs(lines: list[str]) -> tuple[list[str], dict[int, int]]:
    """``lines`` with those of a paragraph put together on its first, the others blank; and each one's last line.

    Lines stay as they are unless the text is hard-wrapped: most lines nearly as wide as the widest, and followed by
    one that neither is blank nor begins with the blanks that begin a paragraph.
    """
    widths = sorted(len(line) for line in lines if line.strip())
    if len(widths) < 20:
        return lines, {}
    widest = widths[-1 - len(widths) // 50]
    goes_on = sum(
        len(line) >= widest * 0.85 and bool(after.strip()) and not after[0].isspace() for line, after in pairwise(lines)
    )
    if widest > 160 or goes_on * 3 < len(widths):
        return lines, {}
    found: list[str] = []
    ends: dict[int, int] = {}
    start = -1
    for at, line in enumerate(lines):
        full = start >= 0 and len(lines[at - 1]) >= widest * 0.6
        if full and line.strip() and not line[0].isspace() and not read_heading(line.strip()):
            found[start] = join_lines(found[start].rstrip(), line.strip())
            found.append("")
            ends[start + 1] = at + 1
        else:
            found.append(line)
            start = at if line.strip() and not read_heading(line.strip()) else -1
    return found, ends


def quote_pair(texts: list[str]) -> tuple[str, str] | None:
    """The pair of quotation marks that the text uses most, or None if it has none."""
    counts = {pair: sum(text.count(pair[0]) for text in texts) for pair in _PAIRS}
    best = max(counts, key=lambda pair: counts[pair])
    return best if counts[best] else None


def quotations(lines: list[str], first: int, pair: tuple[str, str]) -> list[Quote]:
    """The outermost quotations of consecutive ``lines``, of which the first has the number ``first``.

    A paragraph that ends inside a quotation is continued if the next one begins with the closing mark, or opens the
    same quotation again; else the quotation ends with its paragraph and is not ``balanced``.
    """
    found: list[Quote] = []
    apart = paragraphs = 0
    opening, closing = pair
    carried: Quote | None = None
    again = False
    for number, raw in enumerate(lines, first):
        line = raw.strip(" \t　")
        if not line:
            continue
        if carried is not None:
            if line[0] == closing and opening != closing:
                carried.balanced, carried.last = True, number
                line = line[1:].lstrip()
            again = line[:1] == opening != closing
            carried.balanced = carried.balanced or again
            carried = None
        spans = _spans(line, opening, closing)
        if not spans:
            apart += len(line)
            paragraphs += 1
            continue
        end = 0
        for start, stop, closed in spans:
            lead = line[end:start]
            if found and found[-1].last == number:
                found[-1].trail = lead
            text = line[start + 1 : stop].strip()
            found.append(Quote(text, lead, "", number, number, apart + len(lead), paragraphs, closed, again))
            apart, paragraphs, end, again = 0, 0, stop + closed, False
        found[-1].trail = line[end:]
        apart = len(line) - end if end < len(line) else 0
        if not found[-1].balanced:
            carried = found[-1]
    return found


def _spans(line: str, opening: str, closing: str) -> list[tuple[int, int, bool]]:
    """Start and end of the outermost quotations of a paragraph, and whether each is closed.

    The same mark inside a quotation opens another in it, unless words of speech stand before: then the one outside
    was never closed.
    """
    spans: list[tuple[int, int, bool]] = []
    if opening == closing:
        marks = [at for at, character in enumerate(line) if character == opening]
        spans = [(start, stop, True) for start, stop in zip(marks[::2], marks[1::2], strict=False)]
        return spans if len(marks) % 2 == 0 else [*spans, (marks[-1], len(line), False)]
    start = depth = 0
    for match in re.finditer(f"[{opening}{closing}]", line):
        at = match.start()
        if line[at] == opening:
            if depth and line[at - 1] in "：:∶":
                spans.append((start, at, False))
                depth = 0
            if depth == 0:
                start = at
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                spans.append((start, at, True))
    if depth:
        spans.append((start, len(line), False))
    return spans


def is_speech(quote: Quote) -> bool:
    """Whether a quotation is something said: not an inscription, a name, a sound or a quoted word.

    >>> is_speech(Quote("敕造宁国府", "匾上大书", "五个大字。", 1, 1, 0, 0)), is_speech(Quote("不去。", "她道：", "", 1, 1, 0, 0))
    (False, True)
    """
    if not re.search(r"\w", quote.text):
        return False
    lead = quote.lead.rstrip()
    if lead and _WRITTEN.search(lead[-_LONGEST:]):
        return False
    if lead.endswith(("：", ":", "∶")):
        return True
    return bool(_ENDS.search(quote.text))
