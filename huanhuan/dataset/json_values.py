"""Any JSON file of records, a value at a time: JSON lines, one list, or objects spread over many lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.dataset.jsonlines import (
    check_surrogates,
    no_twins,
    not_json_reason,
    numbered_lines,
    parse,
    printable,
    syntax_message,
)
from huanhuan.errors import Problems, os_error_line


@dataclass(frozen=True)
class Value:
    """One JSON value of a file, with its 1-based number and the lines it stands on, both included."""

    value: Any
    number: int
    first: int
    last: int


def read_values(path: Path, problems: Problems, encoding: str | None = None) -> Iterator[Value]:
    """The records of a JSON file; what is wrong with it goes to ``problems``, one line each.

    JSON lines are read a line at a time, so a bad line costs only itself. A list, or an object that is spread
    over several lines, is read as a whole; there a syntax error ends the reading, because nothing tells where
    the next record begins. ``encoding``: as Python names it, UTF-8 by default.
    """
    try:
        if encoding is None:
            if reason := not_json_reason(path):
                problems.add(f"{path}: {reason}")
                return
            with path.open("rb") as file:
                yield from _values(path, problems, file, file.read)
        else:
            data = path.read_bytes().decode(encoding).encode("utf-8")
            yield from _values(path, problems, data.split(b"\n"), lambda: b"")
    except OSError as error:
        problems.add(os_error_line(path, error, "请检查路径和权限 / check the path and its permissions"))
    except LookupError:
        problems.add(f"{path}: 没有 {encoding} 这种编码 / no encoding is called {encoding}: check --encoding")
    except UnicodeDecodeError as error:
        problems.add(
            f"{path}: 不是 {encoding} 编码（第 {error.start + 1} 字节）/ is not {encoding} at byte {error.start + 1}: "
            "换一个 --encoding / give another --encoding"
        )


def _values(path: Path, problems: Problems, lines: Iterable[bytes], rest: Callable[[], bytes]) -> Iterator[Value]:
    """Values of ``lines``; ``rest`` gives what a file still holds after the lines already taken from it."""
    iterator = iter(lines)
    count = 0
    for number, line in numbered_lines(iterator):
        if not count and (line.startswith(b"[") or line == b"{"):
            head = b"\n" * (number - 1) + line + b"\n"
            yield from _document(path, problems, head + (rest() or b"\n".join(iterator)))
            return
        count += 1
        try:
            value = parse(line)
        except ValueError as error:
            problems.add(f"{path}:{number}: {printable(str(error))}")
            continue
        yield Value(value, count, number, number)


_GAP = re.compile(r"[ \t\r\n]*")


def _document(path: Path, problems: Problems, content: bytes) -> Iterator[Value]:
    """Values of a list, or of objects one after another; ``content`` starts at line 1 of the file."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.add(f"{path}:{line}: 不是 UTF-8 / not UTF-8: 另存为 UTF-8 / save the file as UTF-8")
        return
    place = _skip(text, 0)
    in_list = text[place] == "["
    if in_list:
        place = _skip(text, place + 1)
    line, counted, number = 1, 0, 0
    while place < len(text) and not (in_list and text[place] == "]"):
        number += 1
        line, counted = line + text.count("\n", counted, place), place
        first = line
        problem = None
        try:
            try:
                value, end = _STRICT.raw_decode(text, place)
                check_surrogates(text[place:end], value)
            except json.JSONDecodeError:
                raise
            except ValueError as error:
                value, end, problem = None, _LENIENT.raw_decode(text, place)[1], error
            line, counted = line + text.count("\n", counted, end), end
            place = _skip(text, end)
            if in_list and text[place : place + 1] == ",":
                place = _skip(text, place + 1)
            elif in_list and text[place : place + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        except json.JSONDecodeError as error:
            problems.add(f"{path}:{error.lineno}: {syntax_message(error.msg, error.colno)}")
            return
        except (RecursionError, ValueError) as error:
            # Also a whole number of thousands of digits, which no parser here takes.
            problems.add(
                f"{path}:{first}: 第 {number} 条读不了 / record {number} cannot be read: {error}: 删去 / remove it"
            )
            return
        if problem:
            problems.add(f"{path}:{first}: 第 {number} 条 / record {number}: {printable(str(problem))}")
        else:
            yield Value(value, number, first, line)
    after = _skip(text, place + 1) if in_list else place
    if after < len(text):
        line += text.count("\n", counted, after)
        problems.add(f"{path}:{line}: 列表之后还有内容 / there is more after the list: 删去 / remove it")


def _skip(text: str, place: int) -> int:
    """The index of the first character from ``place`` on that is no white space."""
    found = _GAP.match(text, place)
    return found.end() if found else place


_STRICT = json.JSONDecoder(object_pairs_hook=no_twins)
_LENIENT = json.JSONDecoder()
