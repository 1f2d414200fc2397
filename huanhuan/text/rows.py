"""What each line of a labelled script is by itself: label, heading, direction, note or plain text."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from huanhuan.text.clean import CLOSING, OPENING
from huanhuan.text.headings import Heading, read_heading
from huanhuan.text.labels import (
    MATCHERS,
    Match,
    Speakers,
    could_be_name,
    is_narrator,
    match_colon,
    name_key,
    strip_prefix,
)

_TIMING = re.compile(r"\s*[\[(]?\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?[\])]?(?:\s*-->.*)?\s*$|\s*\d{1,6}\s*$")
_TIMING_FIRST = frozenset("0123456789[(")
# A voice that tells the story, though it has a name; a voice from elsewhere (画外音) speaks.
_TOLD = frozenset(("旁白", "独白旁白", "narration", "narrating"))
_EMPHASIS = re.compile(r"(\*{1,3}|__)(?=\S)(.+?)(?<=\S)\1")


class Row(NamedTuple):
    """What one line is. ``kind``: blank, heading, label, note, direction, text or noise."""

    kind: str
    text: str
    match: Match | None = None
    heading: Heading | None = None


BLANK = Row("blank", "")


def classify(lines: list[str], layout: str, *, markdown: bool = False) -> list[Row]:
    """What each line is by itself; a label is only a candidate until the whole file has been seen."""
    matcher = MATCHERS[layout]
    rows: list[Row] = []
    for line in lines:
        text = line.strip()
        if not text:
            rows.append(BLANK)
            continue
        heading = read_heading(text)
        if heading:
            rows.append(Row("heading", text, None, heading))
            continue
        if text[0] in OPENING and text[-1] in CLOSING and _is_one_bracket(text):
            match = match_boxed(text, layout)
            rows.append(Row("label", text, match) if match else Row("direction", text))
            continue
        bare = strip_prefix(text)
        if bare is not text and (heading := read_heading(bare)) and heading.kind != "break":
            rows.append(Row("heading", bare, None, heading))
            continue
        if text[0] in _TIMING_FIRST and _TIMING.match(text):
            rows.append(Row("noise", text))
            continue
        match = matcher(bare)
        if match is None:
            rows.append(Row("text", text))
        elif is_narrator(match.name) or match.beat in _TOLD:
            rows.append(Row("note", text, match))
        else:
            if markdown:
                match = match._replace(speech=_EMPHASIS.sub(r"\2", match.speech))
            rows.append(Row("label", text, match))
    return rows


def match_boxed(text: str, layout: str) -> Match | None:
    """A name in brackets on its own line, where the layout has names on lines of their own."""
    return MATCHERS[layout](text) if layout == "name-line" and text[0] in "【[" else None


def _is_one_bracket(text: str) -> bool:
    """Whether the bracket that opens ``text`` closes at its end and not before."""
    depth = 0
    for at, character in enumerate(text):
        if character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
            if depth == 0:
                return at == len(text) - 1
    return False


def lone_labels(rows: list[Row], speakers: Speakers) -> list[Row]:
    """Decide which lines are names on their own.

    A name recurs, or has a colon; speech follows it, after a blank line only where every line is followed by one;
    and it does not itself follow a name. Where nearly all names come after a blank line, or have a colon, those
    that do not are speech that looks like a name.
    """
    names = _Names(rows, speakers)
    named: set[str] = set()
    found: list[Row] = []
    after_name = False
    for at, row in enumerate(rows):
        if row.kind == "label" and not after_name and names.at(at):
            found.append(row)
            named.add(row.match.name if row.match else "")
            after_name = True
        elif row.kind == "label":
            found.append(Row("text", row.text))
            after_name = False
        else:
            # Some writers put a short speech on the line of the name.
            match = match_colon(row.text) if row.kind == "text" and not after_name else None
            found.append(Row("label", row.text, match) if match and match.speech and match.name in named else row)
            # A name that nothing follows is a speech that was lost; the next line may be a name again.
            after_name = after_name and (row.kind == "direction" or (row.kind == "blank" and names.spaced_out))
    return found


class _Names:
    """Which lines are names, told by what the file does with all that look like one."""

    def __init__(self, rows: list[Row], speakers: Speakers) -> None:
        self.rows = rows
        self.speakers = speakers
        self.counts: Counter[str] = Counter()
        for row in rows:
            # A name beside a short speech counts for the same name alone.
            match = row.match if row.kind == "label" else match_colon(row.text) if row.kind == "text" else None
            if match:
                self.counts[name_key(match.name)] += 1
        full = sum(row.kind != "blank" for row in rows)
        adjacent = sum(a.kind != "blank" and b.kind != "blank" for a, b in pairwise(rows))
        self.spaced_out = adjacent * 10 < full
        likely = [at for at, row in enumerate(rows) if row.kind == "label" and self._looks_like_one(at)]
        self.needs_gap = len(likely) > 3 and sum(self._after_gap(at) for at in likely) * 10 >= 9 * len(likely)
        self.needs_colon = sum(rows[at].text[-1] in "：:" for at in likely) * 10 >= 9 * len(likely)

    def _after_gap(self, at: int) -> bool:
        return at == 0 or self.rows[at - 1].kind not in ("text", "label")

    def _looks_like_one(self, at: int) -> bool:
        row = self.rows[at]
        if row.match is None or not could_be_name(row.match.name):
            return False
        recurs = self.counts[name_key(row.match.name)] > 1 or self.speakers.known(row.match.name)
        step = 2 if self.spaced_out and at + 1 < len(self.rows) and self.rows[at + 1].kind == "blank" else 1
        follows = at + step < len(self.rows) and self.rows[at + step].kind in ("text", "label", "direction")
        return follows and (recurs or row.text[-1] in "：:")

    def at(self, at: int) -> bool:
        """Whether the line at ``at`` is a name."""
        row = self.rows[at]
        if (self.needs_gap and not self._after_gap(at)) or (self.needs_colon and row.text[-1] not in "：:"):
            return False
        # A colon after a gap, where every name has both, is proof enough: Second murderer, Ghost of the King.
        sure = self.needs_gap and self.needs_colon and len(row.text) <= 40
        return sure or self._looks_like_one(at)
