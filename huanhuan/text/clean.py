"""Lines without invisible characters, and speech without stage directions."""

from __future__ import annotations

import re

# Zero-width characters, soft hyphens, direction marks and byte order marks inside the text.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u2028\u2029]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_RUN = re.compile("[ \t\u3000]{2,}|[\t\u3000]")

OPENING = "（(【[〔［{｛"
CLOSING = "）)】]〕］}｝"
QUOTES = {"“": "”", "「": "」", "『": "』", '"': '"', "‘": "’", "＂": "＂", "〝": "〞"}
_BRACKET = re.compile("[" + re.escape(OPENING + CLOSING) + "]")
_PUNCTUATION = re.compile("[，。！？；：、…,.!?;:\\s]")
_WIDE = re.compile("[\u2e80-\u9fff\uf900-\ufaff\uff00-\uff60\u2018-\u201d\u2026\u2014\U00020000-\U0003ffff]")


def split_lines(text: str) -> list[str]:
    """The lines of ``text`` as an editor counts them (CRLF, CR or LF), without invisible characters.

    Tabs and full-width spaces stay: they separate names from speech in some scripts.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x85", "\n")
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
        text = _SPACES.sub(" ", text)
    text = _CONTROL.sub(" ", text)
    return text.split("\n")


def squeeze(text: str) -> str:
    """``text`` with every run of blanks as one space and none at its ends.

    >>> squeeze("　臣妾\\t不敢　")
    '臣妾 不敢'
    """
    return _RUN.sub(" ", text).strip(" \t\u3000")


def join_lines(first: str, second: str) -> str:
    """A wrapped text put together: Chinese without a space, words with one.

    >>> join_lines("臣妾", "不敢"), join_lines("no", "more")
    ('臣妾不敢', 'no more')
    """
    if not first or not second:
        return first or second
    return first + second if _WIDE.match(first[-1]) or _WIDE.match(second[0]) else f"{first} {second}"


def pieces(text: str) -> tuple[list[tuple[bool, str]], bool]:
    """``text`` as (is in brackets, content) in order, and whether its brackets were balanced.

    Half-width and full-width brackets may close each other, as typists do. A bracket that never closes is
    taken to the end; a closing one without a start ends a direction if it comes early, else it is dropped.

    >>> pieces("去吧（回头）快去")
    ([(False, '去吧'), (True, '回头'), (False, '快去')], True)
    """
    found: list[tuple[bool, str]] = []
    balanced = True
    depth = start = 0
    for match in _BRACKET.finditer(text):
        at = match.start()
        if text[at] in OPENING:
            if depth == 0:
                found.append((False, text[start:at]))
                start = at + 1
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                found.append((True, text[start:at]))
                start = at + 1
        else:
            balanced = False
            before = text[start:at]
            lone = not found and len(before) <= 8 and not _PUNCTUATION.search(before)
            found.append((lone, before))
            start = at + 1
    if depth:
        balanced = False
    found.append((depth > 0, text[start:]))
    return [(bracketed, part) for bracketed, part in found if part.strip()], balanced


def has_brackets(text: str) -> bool:
    """Whether ``text`` holds any bracket that could be a stage direction."""
    return _BRACKET.search(text) is not None


def unquote(text: str) -> str:
    """``text`` without the quotation marks around it, if it is one quotation as a whole.

    >>> unquote("“平身。”"), unquote("“好”字怎么写"), unquote("“忠”与“孝”"), unquote("“他说“好”。”")
    ('平身。', '“好”字怎么写', '“忠”与“孝”', '他说“好”。')
    """
    opening, closing = text[:1], QUOTES.get(text[:1])
    if not closing or len(text) < 2 or text[-1] != closing:
        return text
    inner = text[1:-1].strip()
    if opening == closing:
        return text if opening in inner else inner
    depth = 0
    for mark in inner:
        depth += (mark == opening) - (mark == closing)
        if depth < 0:
            return text
    return inner if depth == 0 else text


def unquote_parts(parts: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
    """The parts of a speech, as :func:`pieces` gives them, without the quotation marks if all of it stands in them.

    >>> unquote_parts([(False, "“好"), (True, "笑"), (False, "，走。”")])
    [(False, '好'), (True, '笑'), (False, '，走。')]
    >>> unquote_parts([(False, "“好。”"), (True, "转身"), (False, "“走。”")])
    [(False, '好。'), (True, '转身'), (False, '走。')]
    >>> unquote_parts([(False, "“忠”"), (True, "停"), (False, "“孝”二字")])
    [(False, '“忠”'), (True, '停'), (False, '“孝”二字')]
    """
    spoken = [at for at, (bracketed, _) in enumerate(parts) if not bracketed]
    whole = "".join(parts[at][1] for at in spoken)
    found = list(parts)
    if unquote(whole) != whole:
        found[spoken[0]] = (False, found[spoken[0]][1][1:].lstrip())
        found[spoken[-1]] = (False, found[spoken[-1]][1][:-1].rstrip())
    elif all(unquote(parts[at][1]) != parts[at][1] for at in spoken):
        for at in spoken:
            found[at] = (False, unquote(parts[at][1]))
    return found
