"""What the model or a visitor wrote, as Markdown that can neither load nor run anything."""

from __future__ import annotations

import re

# CommonMark allows a backslash before any ASCII punctuation; what is escaped is shown and means nothing.
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_EMPHASIS = re.compile(r"(?<![*\w])(\*{1,2})(?=[^\s*])([^*\n]*[^\s*])\1(?![*\w])")
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)


def _escape(text: str) -> str:
    return _PUNCTUATION.sub(r"\\\1", text)


def safe_markdown(text: str) -> str:
    r"""``text`` with every Markdown and HTML construct made plain, but for ``*emphasis*`` and line breaks.

    Role play marks actions with asterisks, so those stay; images, links, HTML, headings, formulas and
    Streamlit's own directives become the characters they are written with.

    >>> safe_markdown("*笑* ![x](http://host/p.png)")
    '*笑* \\!\\[x\\]\\(http\\:\\/\\/host\\/p\\.png\\)'
    """
    pieces: list[str] = []
    end = 0
    for found in _EMPHASIS.finditer(text):
        marks = found.group(1)
        pieces += [_escape(text[end : found.start()]), marks, _escape(found.group(2)), marks]
        end = found.end()
    pieces.append(_escape(text[end:]))
    # Indentation would make a code block, and a lone line break would be a space.
    return _INDENT.sub("", "".join(pieces)).replace("\n", "  \n")
