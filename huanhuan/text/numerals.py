"""Numbers as scripts write them: 12, １２, 十二, 一百零二, 廿三, III."""

from __future__ import annotations

import re

_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {
    "〇": 0, "○": 0, "两": 2, "兩": 2, "壹": 1, "贰": 2, "貳": 2, "叁": 3, "參": 3, "肆": 4, "伍": 5, "陆": 6, "陸": 6, "柒": 7,
    "捌": 8, "玖": 9,
}  # fmt: skip
_UNITS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_TENS = {"廿": 20, "卅": 30, "卌": 40}
_LARGE = {"万": 10_000, "萬": 10_000, "亿": 100_000_000, "億": 100_000_000}
CHINESE = "".join({**_DIGITS, **_UNITS, **_TENS, **_LARGE})
_RUN = re.compile(f"(\\d+)|([{CHINESE}]+)")


def chinese_number(text: str) -> int:
    """The value of a Chinese numeral; bare digits are read by place.

    >>> chinese_number("一百零二"), chinese_number("十"), chinese_number("二〇二六"), chinese_number("廿三")
    (102, 10, 2026, 23)
    """
    if not any(character in _UNITS or character in _TENS or character in _LARGE for character in text):
        return int("".join(str(_DIGITS[character]) for character in text))
    total = section = digit = 0
    for character in text:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _TENS:
            section += _TENS[character]
        elif character in _UNITS:
            section += (digit or 1) * _UNITS[character]
            digit = 0
        else:
            total += (section + digit or 1) * _LARGE[character]
            section = digit = 0
    return total + section + digit


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which 第2集 comes before 第10集 and 第二集 before 第十集.

    >>> sorted(["第十集", "第10集", "第二集", "第2集"], key=natural_key)
    ['第2集', '第二集', '第10集', '第十集']
    """
    parts: list[tuple[int, int, str]] = []
    end = 0
    for match in _RUN.finditer(text):
        if match.start() > end:
            parts.append((1, 0, text[end : match.start()].casefold()))
        digits, chinese = match.groups()
        # Int refuses thousands of digits; such a name sorts by length, then text.
        value = (
            (int(digits) if len(digits) < 19 else 10 ** min(len(digits), 400)) if digits else chinese_number(chinese)
        )
        parts.append((0, value, ""))
        end = match.end()
    if end < len(text):
        parts.append((1, 0, text[end:].casefold()))
    # The text itself decides between names that count the same, so the order never depends on the file system.
    return (*parts, (2, 0, text))
