"""Which layout a file has: the one that explains most of its lines."""

from __future__ import annotations

from collections import Counter

from huanhuan.text.clean import CLOSING, OPENING
from huanhuan.text.headings import read_heading
from huanhuan.text.labels import MATCHERS, could_be_name, is_narrator, name_key, strip_prefix

LAYOUTS = ("colon", "tab", "bracket", "name-line")
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
        if not read_heading(text) and not (text[0] in OPENING and text[-1] in CLOSING and "：" not in text)
    ]
    if not plain:
        return None
    scores = {layout: _explained(plain, layout) / len(plain) for layout in LAYOUTS}
    best = max(LAYOUTS, key=lambda layout: scores[layout])
    return best if scores[best] > 0.02 else None


def _explained(plain: list[str], layout: str) -> float:
    matcher = MATCHERS[layout]
    counts: Counter[str] = Counter()
    spoken = 0.0
    for text in plain:
        match = matcher(text)
        if match is None or is_narrator(match.name) or not could_be_name(match.name):
            continue
        if layout == "name-line" and text[-1] in "。！？!?…，,":
            continue
        # A name alone is half of a pair of lines in the other layouts, and explains two here.
        if layout != "name-line" and not match.speech:
            continue
        counts[name_key(match.name)] += 1
    for count in counts.values():
        spoken += count if count > 1 else 0.5
    if layout == "name-line":
        recurring = sum(count for count in counts.values() if count > 1)
        return 2 * recurring if recurring > 1 else spoken
    return spoken
