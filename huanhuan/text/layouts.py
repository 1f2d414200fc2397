"""Which layout a file has: the one that explains most of its lines."""

from __future__ import annotations

from collections import Counter

from huanhuan.text.clean import CLOSING
from huanhuan.text.fountain import character_cue
from huanhuan.text.headings import read_heading
from huanhuan.text.labels import MATCHERS, could_be_name, is_narrator, match_colon, match_slip, name_key, strip_prefix
from huanhuan.text.quotes import quote_pair

LABELLED = ("colon", "tab", "bracket", "name-line")
LAYOUTS = (*LABELLED, "fountain", "quotes")
_LOOK_AT = 4000


def detect_layout(lines: list[str]) -> str | None:
    """The layout of ``lines``, or None if nobody speaks in any.

    Each layout is given the share of lines that it explains: a label that recurs counts fully, one that
    occurs once by half. Colons win ties, being what nearly every script has.
    """
    texts = [text for line in lines[: 4 * _LOOK_AT] if (text := line.strip())][:_LOOK_AT]
    plain = [
        strip_prefix(text)
        for text in texts
        if not read_heading(text) and not (text[0] in "（(" and text[-1] in CLOSING and "：" not in text)
    ]
    if not plain:
        return None
    scores = {layout: _explained(plain, layout) / len(plain) for layout in LABELLED}
    scores["fountain"] = _cues(lines[: 4 * _LOOK_AT]) / len(plain)
    scores["quotes"] = _quoting(plain) / len(plain)
    best = max(LAYOUTS, key=lambda layout: scores[layout])
    return best if scores[best] > 0.02 else None


def _quoting(plain: list[str]) -> float:
    """Paragraphs that hold a quotation; the narration between them belongs to the layout too, so they count more."""
    if not (pair := quote_pair(plain)):
        return 0.0
    # Quotation marks in the lines of a script are no novel: there a label stands before nearly every one.
    names = {match.name for text in plain if (match := match_colon(text)) and could_be_name(match.name)}
    quoted = sum(pair[0] in text and not _labelled(text, names) for text in plain)
    return quoted * 0.9 if quoted * 5 >= len(plain) else quoted * 0.3


def _labelled(text: str, names: set[str]) -> bool:
    """Whether a quotation stands right after one of ``names``, with a colon or without."""
    match = match_colon(text) or match_slip(text)
    return match is not None and match.name in names


def _cues(lines: list[str]) -> float:
    """Lines that screenplay cues explain: upper-case names after a blank line and the speech under them."""
    counts: Counter[str] = Counter()
    spoken: Counter[str] = Counter()
    for at, line in enumerate(lines[:-1]):
        if line.strip() and lines[at + 1].strip() and (at == 0 or not lines[at - 1].strip()):
            cue = character_cue(line)
            if cue and not is_narrator(cue.name) and not read_heading(line):
                counts[name_key(cue.name)] += 1
                end = at + 1
                while end < min(len(lines), at + 40) and lines[end].strip():
                    end += 1
                spoken[name_key(cue.name)] += end - at
    # A little more than the same lines count as names on lines of their own, which is the more general layout.
    return 1.05 * sum(spoken[name] if count > 1 else spoken[name] / 2 for name, count in counts.items())


def _explained(plain: list[str], layout: str) -> float:
    matcher = MATCHERS[layout]
    counts: Counter[str] = Counter()
    spoken = 0.0
    for at, text in enumerate(plain):
        match = matcher(text)
        if match is None or is_narrator(match.name) or not could_be_name(match.name):
            continue
        if layout == "name-line":
            if text[-1] in "。！？!?…，," or at + 1 == len(plain):
                continue
        elif not match.speech:
            continue
        counts[name_key(match.name)] += 1
    for count in counts.values():
        spoken += count if count > 1 else 0.5
    if layout == "name-line":
        # A name alone explains the line below it as well.
        recurring = sum(count for count in counts.values() if count > 1)
        return 2 * recurring if recurring > 1 else spoken
    return spoken
