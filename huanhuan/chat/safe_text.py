"""What the model or a visitor wrote, as Markdown that can neither load nor run anything."""

from __future__ import annotations

import re
import unicodedata

# CommonMark allows a backslash before any ASCII punctuation; what is escaped is shown and means nothing.
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
# Letters of scripts that write without spaces: an asterisk beside one of them marks an action all the same.
_UNSPACED = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Between letters of other scripts an asterisk is one: 2*3*4.
_SPACED = rf"[^\W{_UNSPACED}]"
_EMPHASIS = re.compile(
    rf"(?<!\*)(?:(?<!{_SPACED})|(?=\*\*?[{_UNSPACED}]))(\*\*?)(?=[^\s*])([^*\n]*[^\s*])\1"
    rf"(?!\*)(?:(?!{_SPACED})|(?<=[{_UNSPACED}]\*)|(?<=[{_UNSPACED}]\*\*))"
)
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)
# Neither letter nor space nor punctuation: between a letter and a punctuation mark it lets emphasis begin or end.
_JOINER = "\u2060"


def _escape(text: str) -> str:
    return _PUNCTUATION.sub(r"\\\1", text)


def plain_markdown(text: str) -> str:
    r"""``text`` on one line as Markdown that shows exactly its characters, for titles, labels and buttons.

    >>> plain_markdown("![x](http://host/p.png)\n*a*")
    '\\!\\[x\\]\\(http\\:\\/\\/host\\/p\\.png\\) \\*a\\*'
    """
    return _escape(" ".join(text.split()))


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
        marks, inside = found.group(1), found.group(2)
        before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        opening = _JOINER if _is_letter(before) and not _is_letter(inside[0]) else ""
        closing = _JOINER if _is_letter(after) and not _is_letter(inside[-1]) else ""
        pieces += [_escape(text[end : found.start()]), marks, opening, _escape(inside), closing, marks]
        end = found.end()
    pieces.append(_escape(text[end:]))
    # Indentation would make a code block, and a lone line break would be a space.
    return _INDENT.sub("", "".join(pieces)).replace("\n", "  \n")


def _is_letter(character: str) -> bool:
    """Whether CommonMark takes it for neither a space nor punctuation."""
    return bool(character) and not character.isspace() and unicodedata.category(character)[0] not in "PS"
