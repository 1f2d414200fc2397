"""Checks a training file against the contract before anything expensive starts.

The contract: JSON lines, UTF-8, ``{"conversation": [{"system", "input", "output"}, {"input", "output"}, …]}``,
every text a non-empty string, ``system`` on the first exchange only. Beyond it, what training would do in
silence is said in a warning: control tokens (training replaces them by spaces), more than one system prompt,
the same conversation twice, a reply equal to its prompt, replacement characters of a wrong decoding, keys that
training ignores.

No torch: ``tools/train.py`` calls this before it imports anything heavy.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huanhuan.dataset.jsonlines import UTF8_BOM, not_json_reason, numbered_lines, parse, printable
from huanhuan.dataset.records import Conversation
from huanhuan.errors import UserError, os_error_line
from huanhuan.template import CONTROL_TOKENS, clean

CONVERT_ADVICE = "用 tools/dialogue_to_jsonl.py 转换 / convert it with tools/dialogue_to_jsonl.py"
# Places named for each kind of warning; the rest are counted.
WARNING_PLACES = 5

_CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
_SUSPECT = re.compile(f"{_CONTROL.pattern}|\ufffd")
_EXCHANGE_KEYS = ("system", "input", "output")
_FOREIGN = {"messages": "OpenAI messages", "conversations": "ShareGPT", "instruction": "Alpaca"}


@dataclass
class Validation:
    """What a training file holds and what is wrong with it."""

    path: Path
    errors: list[str] = field(default_factory=list)
    """One line each, ``file:line: [field] what / what: what to do``; training must not start with any."""
    warnings: list[str] = field(default_factory=list)
    """One line each; of one kind at most :data:`WARNING_PLACES`, then a count."""
    records: int = 0
    """Lines that are not blank, faulty ones included."""
    exchanges: int = 0
    prompt_characters: int = 0
    reply_characters: int = 0
    longest: int = 0
    """Characters of the longest record, system prompt included."""
    systems: Counter[str] = field(default_factory=Counter)
    """Records per system prompt, "" where there is none."""
    sources: int = 0
    """Records that name the lines they come from."""
    fingerprints: dict[bytes, int] = field(default_factory=dict)
    """A digest of each distinct conversation and the first line it stands on."""

    def raise_if_errors(self) -> None:
        """Raise UserError with every error; do nothing if there is none."""
        if self.errors:
            raise UserError(self.errors)


def validate_file(path: Path | str, *, system: str | None = None) -> Validation:
    """Check one training file in one pass; 100,000 records take about two seconds.

    ``system``: the persona's system prompt; if given, a record with another one, or with none, is an error.
    Nothing is raised for a bad file: a file that cannot be read is an error of the result like any other.
    """
    path = Path(path)
    result = Validation(path)
    try:
        if reason := not_json_reason(path):
            result.errors.append(f"{path}: {reason}")
            return result
        with path.open("rb") as file:
            if file.read(len(UTF8_BOM)) == UTF8_BOM:
                # Python's JSON parser, which training uses, refuses it.
                result.errors.append(
                    f"{path}:1: 以字节序标记（BOM）开头 / starts with a byte-order mark: "
                    "另存为不带 BOM 的 UTF-8 / save it as UTF-8 without BOM"
                )
            file.seek(0)
            _Check(result, system).run(numbered_lines(file))
    except OSError as error:
        result.errors.append(os_error_line(path, error, "请检查路径和权限 / check the path and its permissions"))
    return result


def validate_records(
    path: Path | str, records: Iterable[Conversation], lines: Iterable[int], *, system: str | None = None
) -> Validation:
    """As :func:`validate_file` for ``records`` read from a file of another format, which stand on its ``lines``."""
    result = Validation(Path(path))
    texts = (json.dumps(record.to_json()).encode() for record in records)
    _Check(result, system).run(zip(lines, texts, strict=True))
    return result


def shared_records(files: Iterable[Validation]) -> list[str]:
    """One warning for every pair of files that hold the same conversations, as train and val must not."""
    warnings = []
    seen: list[Validation] = []
    for later in files:
        for earlier in seen:
            lines = sorted(line for digest, line in later.fingerprints.items() if digest in earlier.fingerprints)
            if lines:
                places = "、".join(map(str, lines[:WARNING_PLACES])) + ("…" if len(lines) > WARNING_PLACES else "")
                warnings.append(
                    f"{later.path}:{lines[0]}: {len(lines)} 条对话也在 {earlier.path} 里（第 {places} 行）/ "
                    f"{len(lines)} records are in {earlier.path} too: 从其中一个文件删去 / remove them from one file"
                )
        seen.append(later)
    return warnings


class _Check:
    """One pass over one file."""

    def __init__(self, result: Validation, system: str | None) -> None:
        self.result = result
        self.system = None if system is None else clean(system)
        self.number = 0
        self.told: Counter[str] = Counter()
        self.foreign: dict[str, list[int]] = {}
        self.strangers: list[int] = []
        self.system_lines: dict[str, int] = {}
        self.kinds: dict[str, tuple[str, int]] = {}

    def run(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """Check the lines, each with its number in the file."""
        for self.number, line in lines:
            if not self.result.records and _is_document(line):
                self.error("", f"不是每行一条的 JSON / is one JSON document, not JSON lines: {CONVERT_ADVICE}")
                return
            self.result.records += 1
            try:
                record = parse(line)
            except ValueError as error:
                self.error("", str(error))
                continue
            if isinstance(record, dict):
                self.record(record)
            else:
                self.error("", f"不是 JSON 对象 / is not a JSON object: 写成 / write {_SHAPE}")
        self.finish()

    def error(self, where: str, message: str) -> None:
        self.result.errors.append(self.line(where, message))

    def warn(self, kind: str, where: str, message: str) -> None:
        self.told[kind] += 1
        if self.told[kind] <= WARNING_PLACES:
            self.result.warnings.append(self.line(where, message))

    def line(self, where: str, message: str) -> str:
        place = f"{self.result.path}:{self.number}:"
        return f"{place} {printable(f'[{where}] {message}' if where else message)}"

    def record(self, record: dict[str, Any]) -> None:
        conversation = record.get("conversation")
        if conversation is None and (foreign := next((key for key in _FOREIGN if key in record), None)):
            self.foreign.setdefault(foreign, []).append(self.number)
            return
        if not isinstance(conversation, list) or not conversation:
            self.error("conversation", f"需要非空列表 / must be a non-empty list: 写成 / write {_SHAPE}")
            return
        texts: list[str] = []
        sound = True
        for index, exchange in enumerate(conversation):
            if isinstance(exchange, dict):
                sound &= self.exchange(exchange, index, texts)
            else:
                self.error(f"conversation[{index}]", f"不是 JSON 对象 / is not a JSON object: 写成 / write {_SHAPE}")
                sound = False
        for key, value in record.items():
            if key != "conversation":
                self.extra(key, value)
        self.result.sources += isinstance(record.get("source"), dict)
        if sound:
            self.whole(conversation, texts)

    def exchange(self, exchange: dict[str, Any], index: int, texts: list[str]) -> bool:
        """Check one exchange and add its texts to ``texts``; False if it has an error."""
        errors = len(self.result.errors)
        system = exchange.get("system")
        if system is not None:
            where = f"conversation[{index}].system"
            if not isinstance(system, str):
                self.error(where, _not_text(system))
            elif not system.strip():
                self.warn("empty system", where, "是空的，等于没有 / is empty, which means none: 删去 / remove it")
            elif index:
                self.error(
                    where, "只能写在第一个来回 / allowed on the first exchange only: 移到第一个 / move it to the first"
                )
            elif _SUSPECT.search(system):
                self.suspect(where, system)
        for key in ("input", "output"):
            text = exchange.get(key)
            if isinstance(text, str) and text and not text.isspace():
                texts.append(text)
                if _SUSPECT.search(text):
                    self.suspect(f"conversation[{index}].{key}", text)
                continue
            where = f"conversation[{index}].{key}"
            if key not in exchange:
                self.error(where, f'缺少这一项 / is missing: 补上 / add "{key}": "…"')
            elif isinstance(text, str):
                self.error(where, "是空的 / is empty: 写上文字或删去这个来回 / write it or remove the exchange")
            else:
                self.error(where, _not_text(text))
        for key in exchange.keys() - _EXCHANGE_KEYS:
            self.warn(
                f"key {key}",
                f"conversation[{index}].{key}",
                "训练不读这一项 / is ignored by training: 删去 / remove it",
            )
            self.extra(f"conversation[].{key}", exchange[key])
        return len(self.result.errors) == errors

    def suspect(self, where: str, text: str) -> None:
        if found := _CONTROL.search(text):
            if clean(text):
                self.warn(
                    "control",
                    where,
                    f"含有控制符 {found[0]}，训练时换成空格 / holds the control token {found[0]}, which training "
                    "replaces by a space: 确认或删去 / check it or remove it",
                )
            else:
                self.error(where, f"除了控制符 {found[0]} 没有文字 / holds nothing but control tokens: 写上 / write it")
        if "\ufffd" in text:
            self.warn(
                "mojibake",
                where,
                "含有 U+FFFD，原文解码错了 / holds U+FFFD, the trace of a wrong decoding: 用正确的编码重新转换 / "
                "convert the source again with its encoding",
            )

    def whole(self, conversation: list[dict[str, Any]], texts: list[str]) -> None:
        """Counts and what only a record without errors can be asked."""
        result = self.result
        system = clean(conversation[0].get("system") or "")
        result.exchanges += len(conversation)
        prompts = sum(map(len, texts[::2]))
        replies = sum(map(len, texts[1::2]))
        result.prompt_characters += prompts
        result.reply_characters += replies
        result.longest = max(result.longest, len(system) + prompts + replies)
        result.systems[system] += 1
        self.system_lines.setdefault(system, self.number)
        if self.system is not None and system != self.system:
            self.strangers.append(self.number)
        for index in range(len(conversation)):
            if texts[2 * index] == texts[2 * index + 1]:
                self.warn(
                    "echo", f"conversation[{index}]", "回答与提问相同 / the reply equals its prompt: 核对 / check it"
                )
        digest = hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).digest()
        first = result.fingerprints.setdefault(digest, self.number)
        if first != self.number:
            self.warn("twin", "", f"与第 {first} 行重复 / repeats line {first}: 删去一条 / remove one")

    def extra(self, key: str, value: Any) -> None:
        """Refuse a key whose type changes: the loader reads the file as a table and dies on it."""
        for path, kind in _kinds(key, value):
            known, line = self.kinds.setdefault(path, (kind, self.number))
            if known != kind:
                self.error(
                    path,
                    f"类型与第 {line} 行不同（{kind}，那里是 {known}）/ is {kind} but {known} on line {line}, and "
                    "training cannot load both: 统一类型或删去 / use one type or remove the key",
                )

    def finish(self) -> None:
        result = self.result
        for key, lines in self.foreign.items():
            self.number = lines[0]
            self.error(
                "",
                f"{len(lines)} 条是 {_FOREIGN[key]} 格式 / {len(lines)} records are in {_FOREIGN[key]} format: "
                f"{CONVERT_ADVICE}",
            )
        if self.strangers:
            self.number = self.strangers[0]
            self.error(
                "conversation[0].system",
                f"{len(self.strangers)} 条的系统提示与角色卡不同 / {len(self.strangers)} records have another system "
                "prompt than the persona card: 用这张角色卡重新转换 / convert again with this card",
            )
        elif len(self.system_lines) > 1:
            self.number = list(self.system_lines.values())[1]
            places = "、".join(map(str, list(self.system_lines.values())[:WARNING_PLACES]))
            result.warnings.append(
                self.line(
                    "conversation[0].system",
                    f"系统提示有 {len(self.system_lines)} 种（第 {places} 行起）/ {len(self.system_lines)} different "
                    "system prompts (having none counts as one): 统一成角色卡的 / use the persona's throughout",
                )
            )
        for kind, count in self.told.items():
            if count > WARNING_PLACES:
                more = count - WARNING_PLACES
                result.warnings.append(
                    f"{result.path}: 同类的还有 {more} 处 / {more} more of this kind ({_KIND_NAMES.get(kind, kind)})"
                )


_SHAPE = '{"conversation": [{"system": "…", "input": "…", "output": "…"}]}'
_KIND_NAMES = {
    "empty system": "空的系统提示 / empty system",
    "control": "控制符 / control tokens",
    "mojibake": "U+FFFD",
    "echo": "回答与提问相同 / reply equals prompt",
    "twin": "重复 / duplicates",
}


def _is_document(line: bytes) -> bool:
    """Whether the first line of a file opens a JSON list, or an object that continues on the next line."""
    return line[:1] == b"[" or line == b"{"


def _not_text(value: Any) -> str:
    return f"应是文字，现在是 {_kind(value)} / must be a string, is {_kind(value)}: 改成文字 / write a string"


def _kind(value: Any) -> str:
    """JSON's word for the type of ``value``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true/false"
    return {str: "string", list: "list", dict: "object"}.get(type(value), "number")


def _kinds(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The type of ``value`` and of everything inside it, by path; null fits every type and is left out.

    >>> list(_kinds("source", {"file": "a.txt", "lines": [3, 4]}))
    [('source', 'object'), ('source.file', 'string'), ('source.lines', 'list'), ('source.lines[]', 'number')]
    """
    if value is None:
        return
    yield key, _kind(value)
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _kinds(f"{key}.{name}", inner)
    elif isinstance(value, list):
        known = set()
        for inner in value:
            for pair in _kinds(f"{key}[]", inner):
                if pair not in known:
                    known.add(pair)
                    yield pair
