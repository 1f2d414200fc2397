"""The word filter: which words a visitor may not send and a reply may not show.

``HUANHUAN_WORDS`` names a list: a word or a ``/regular expression/`` a line, ``#`` starts a comment. Nothing
is filtered unless it is set; ``words.example.txt`` beside this module shows the format. A hosted moderation service goes in
the same place: anything with ``blocked`` and ``masked``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from huanhuan.errors import Problems, UserError
from huanhuan.paths import in_checkout


class Filter(Protocol):
    """What the page asks before it sends and before it shows a text."""

    def blocked(self, text: str) -> bool:
        """Whether a visitor's text is refused."""
        ...

    def masked(self, text: str) -> str:
        """A reply as it may be shown."""
        ...


class NoFilter:
    """Lets everything pass."""

    def blocked(self, text: str) -> bool:
        """Never."""
        return False

    def masked(self, text: str) -> str:
        """The text as it is."""
        return text


class WordFilter:
    """Filters by a list of words; case and spaces inside a word do not matter.

    >>> WordFilter(["毒药"]).masked("这是毒 药。")
    '这是＊＊＊。'
    """

    def __init__(self, words: list[str], expressions: list[str] | None = None) -> None:
        spaced = (r"\s*".join(map(re.escape, "".join(word.split()))) for word in words)
        found = [*sorted(spaced, key=len, reverse=True), *(expressions or [])]
        self._pattern = re.compile("|".join(f"(?:{each})" for each in found), re.IGNORECASE) if found else None

    def blocked(self, text: str) -> bool:
        """Whether a word of the list is in ``text``."""
        return bool(self._pattern and self._pattern.search(text))

    def masked(self, text: str) -> str:
        """``text`` with stars over every word of the list."""
        return self._pattern.sub(lambda found: "＊" * len(found.group()), text) if self._pattern else text


def load_filter(path: Path) -> WordFilter:
    """The filter of a list. Raises: UserError naming every line that is no regular expression."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: 读不了词表 / cannot read the word list: {error}: check HUANHUAN_WORDS") from None
    problems = Problems()
    words: list[str] = []
    expressions: list[str] = []
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if len(entry) > 2 and entry.startswith("/") and entry.endswith("/"):
            try:
                empty = re.compile(entry[1:-1]).match("")
            except re.error as error:
                problems.add(f"{path}:{number}: 正则表达式不对 / not a regular expression: {error}: correct it")
                continue
            if empty:
                problems.add(f"{path}:{number}: 会匹配空文字 / matches the empty text: make it stricter")
                continue
            expressions.append(entry[1:-1])
        else:
            words.append(entry)
    problems.raise_if_any()
    return WordFilter(words, expressions)


def chosen_filter(environ: Mapping[str, str] = os.environ) -> Filter:
    """The filter that ``HUANHUAN_WORDS`` names, or none."""
    named = environ.get("HUANHUAN_WORDS", "").strip()
    if not named:
        return NoFilter()
    path = Path(named).expanduser()
    return load_filter(path if path.exists() else in_checkout(named))
