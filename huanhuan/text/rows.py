"""What each line of a labelled script is by itself: label, heading, direction, note or plain text."""

from __future__ import annotations

import re
from collections import Counter
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
            rows.append(Row("text", bare))
        elif is_narrator(match.name) or match.beat in _TOLD:
            rows.append(Row("note", text, match))
        else:
            if markdown:
                match = match._replace(speech=_EMPHASIS.sub(r"\2", match.speech))
            rows.append(Row("label", bare, match))
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

    A name recurs, or has a colon; speech follows it without a blank; and it does not itself follow a name. Where
    nearly all of them come after a blank line, those that do not are speech that looks like a name.
    """
    counts: Counter[str] = Counter()
    spaced = total = 0
    for row in rows:
        if row.kind != "label" or row.match is None:
            continue
        counts[name_key(row.match.name)] += 1

    def is_name(at: int) -> bool:
        row = rows[at]
        return (
            row.match is not None
            and (counts[name_key(row.match.name)] > 1 or speakers.known(row.match.name) or row.text[-1] in "：:")
            and could_be_name(row.match.name)
            and at + 1 < len(rows)
            and rows[at + 1].kind in ("text", "label", "direction")
        )

    for at, row in enumerate(rows):
        if row.kind == "label" and is_name(at):
            total += 1
            spaced += at == 0 or rows[at - 1].kind not in ("text", "label")
    needs_gap = spaced * 10 >= 9 * total and total > 3
    with_colon = sum(row.kind == "label" and row.text[-1] in "：:" for row in rows) * 10 >= 9 * total
    named: set[str] = set()
    found: list[Row] = []
    after_name = False
    for at, row in enumerate(rows):
        if row.kind != "label":
            # Some writers put a short speech on the line of the name.
            match = match_colon(row.text) if row.kind == "text" and not after_name else None
            found.append(Row("label", row.text, match) if match and match.speech and match.name in named else row)
            after_name = after_name and row.kind == "direction"
            continue
        lone = not needs_gap or at == 0 or rows[at - 1].kind not in ("text", "label")
        if not after_name and lone and is_name(at) and (not with_colon or row.text[-1] in "：:"):
            found.append(row)
            named.add(row.match.name if row.match else "")
            after_name = True
        else:
            found.append(Row("text", row.text))
            after_name = False
    return found
