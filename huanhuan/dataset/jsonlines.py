"""JSON lines as bytes: numbered lines, and one line to one value with an error a user can act on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


def numbered_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    r"""Every line that is not blank with its 1-based number, a leading byte-order mark removed.

    Only ``\n`` ends a line, which is how a file opened in binary mode is iterated: U+2028 inside a JSON string
    does not.

    >>> list(numbered_lines([b"\xef\xbb\xbf{}\r\n", b"\n", b"[]"]))
    [(1, b'{}'), (3, b'[]')]
    """
    for number, line in enumerate(lines, 1):
        content = (line.removeprefix(UTF8_BOM) if number == 1 else line).strip()
        if content:
            yield number, content


def parse(line: bytes) -> Any:
    """The JSON value of one line.

    Raises: ValueError with a message in both languages that ends with what to do. Two things that Python's
    parser lets through are refused because loading the training file dies on them without a line number: a key
    given twice in one object, and half of a surrogate pair.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"不是 UTF-8（第 {error.start + 1} 字节）/ not UTF-8 at byte {error.start + 1} of the line: "
            "另存为 UTF-8 / save the file as UTF-8"
        ) from None
    return parse_text(text)


def parse_text(text: str) -> Any:
    """The JSON value of ``text``; raises as :func:`parse` does."""
    try:
        value = _DECODER.decode(text)
        check_surrogates(text, value)
    except json.JSONDecodeError as error:
        raise ValueError(syntax_message(error.msg, error.pos + 1)) from None
    except RecursionError:
        raise ValueError("嵌套太深 / nested too deeply: 删去这一条 / remove this record") from None
    return value


def syntax_message(problem: str, column: int) -> str:
    """What to tell about text that is not JSON; ``problem`` is the parser's own words."""
    return (
        f"JSON 语法错误（第 {column} 个字符：{problem}）/ not valid JSON at character {column}: {problem}: "
        "改正这一处 / correct it"
    )


def check_surrogates(text: str, value: Any) -> None:
    r"""Raise ValueError if ``value``, parsed from ``text``, holds a lone surrogate such as ``"\ud800"``."""
    if "\\u" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            "含有不成对的代理码位（\\udXXX）/ holds half of a surrogate pair (\\udXXX): "
            "改成完整的字符 / write the whole character"
        ) from None


def not_json_reason(path: Path) -> str | None:
    """Why the file at ``path`` cannot be JSON text at all, judged by its first bytes; None if it can.

    Raises: OSError.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(_UTF16_BOMS):
        return "是 UTF-16 编码 / is UTF-16: 另存为 UTF-8 / save it as UTF-8"
    if b"\0" in head:
        return "是二进制文件 / is a binary file: 换成 JSON 文件 / give a JSON file"
    start = head.removeprefix(UTF8_BOM).lstrip()
    if not start and path.stat().st_size <= len(head):
        return "是空文件 / is empty: 至少要有一条对话 / needs at least one record"
    if start and start[:1] not in b"{[":
        return (
            "不是 JSON / is not JSON: 剧本请先用 tools/dialogue_to_jsonl.py 转换 / "
            "if it is a script, convert it with tools/dialogue_to_jsonl.py first"
        )
    return None


def printable(text: str) -> str:
    r"""``text`` fit for one line of a terminal: what does not print is escaped, for a key may hold anything.

    >>> printable("键\n")
    '键\\u000a'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's members as a dict; raises ValueError if a key is given twice."""
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"[{twin}] 在同一个对象里写了两次 / given twice in one object: 留一个 / keep one")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=no_twins)
