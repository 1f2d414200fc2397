"""Training data of other tools, in and out: XTuner, OpenAI messages, ShareGPT and Alpaca.

A file is JSON lines or one JSON list; each record is read in the format its own keys show.

| format | keys |
|---|---|
| xtuner | ``conversation``: ``[{"system", "input", "output"}, {"input", "output"}, …]`` |
| openai | ``messages``: ``[{"role": "system" / "user" / "assistant", "content"}, …]`` |
| sharegpt | ``conversations``: ``[{"from": "system" / "human" / "gpt", "value"}, …]`` |
| alpaca | ``instruction``, ``input``, ``output``, ``history``: ``[[prompt, reply], …]``, ``system`` |

A conversation of this project starts with somebody else and alternates. What does not:

- messages of one role in a row become one, joined by a newline (counted in :attr:`Imported.merged`); so do
  several system messages, each kept once;
- what the assistant says before anybody spoke has no prompt and is left out (``no_prompt`` in
  :attr:`Imported.skipped`), and so is what is said after its last reply (``not_prompt``);
- Alpaca's ``input`` follows its ``instruction`` on a line of its own, as in the Alpaca prompt;
- anything that cannot be said in the training format (tools, images, an empty text, a system message in the
  middle) is an error: nothing is dropped in silence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from huanhuan.dataset.json_values import Value, read_values
from huanhuan.dataset.jsonlines import printable
from huanhuan.dataset.records import Conversation, Exchange, Source
from huanhuan.dataset.report import Skipped
from huanhuan.errors import Problems, UserError

Format = Literal["xtuner", "openai", "sharegpt", "alpaca"]
FORMATS: tuple[Format, ...] = get_args(Format)

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass
class Imported:
    """The conversations of a file, and what of it they do not hold."""

    conversations: list[Conversation] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """The line of the file each conversation begins on."""
    formats: Counter[str] = field(default_factory=Counter)
    """Records per format."""
    skipped: list[Skipped] = field(default_factory=list)
    """What was left out and why, with the keys of ``report.REASONS``."""
    merged: int = 0
    """Messages joined to the one before them because the same role said both."""
    unmasked: int = 0
    """Replies that the file excludes from training (``weight`` 0, ``output_with_loss`` false): the training
    format cannot say so, and they are trained on."""


def read_records(path: Path | str, *, encoding: str | None = None) -> list[Conversation]:
    """The conversations of a training file in any of :data:`FORMATS`.

    A record that names no source gets this file and its lines. Raises: UserError as :func:`read_file`.
    """
    return read_file(path, encoding=encoding).conversations


def read_file(path: Path | str, *, encoding: str | None = None) -> Imported:
    """As :func:`read_records`, with the counts of what was merged and left out.

    ``encoding``: as Python names it; UTF-8, with or without a byte-order mark, by default.

    Raises: UserError with every problem of the file, one line each, or if it holds no conversation.
    """
    path = Path(path)
    problems = Problems()
    imported = Imported()
    for value in read_values(path, problems, encoding):
        _Record(path, value, problems, imported).read()
    problems.raise_if_any()
    if not imported.conversations:
        raise UserError(
            f"{path}: 没有一个来回（{len(imported.skipped)} 处没有提问或没有回答）/ holds no exchange "
            f"({len(imported.skipped)} texts without a prompt or a reply): 换一个文件 / give another file"
        )
    return imported


def format_records(
    conversations: Iterable[Conversation], format: Format = "xtuner", *, source: bool = True
) -> Iterator[str]:
    """The lines of a JSON-lines file in ``format``, each with its newline.

    ``source``: keep the extra key that names where a record comes from; every format has room for one.

    >>> pair = Conversation((Exchange("乙", "丙"),), system="甲")
    >>> list(format_records([pair], "alpaca"))
    ['{"instruction": "乙", "input": "", "output": "丙", "system": "甲", "history": []}\\n']

    Raises: ValueError if ``format`` is none of :data:`FORMATS`.
    """
    if format not in _WRITERS:
        raise ValueError(f"format {format!r}: must be one of {', '.join(FORMATS)}")
    write = _WRITERS[format]
    for conversation in conversations:
        plain = conversation.to_json()
        record = write(conversation)
        if source and "source" in plain:
            record["source"] = plain["source"]
        elif not source:
            record.pop("source", None)
        yield json.dumps(record, ensure_ascii=False) + "\n"


def write_records(conversations: Iterable[Conversation], format: Format = "xtuner", *, source: bool = True) -> str:
    """The text of a JSON-lines file in ``format``; as :func:`format_records`."""
    return "".join(format_records(conversations, format, source=source))


def _to_openai(conversation: Conversation) -> dict[str, Any]:
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for each in conversation.exchanges:
        messages.append({"role": "user", "content": each.input})
        messages.append({"role": "assistant", "content": each.output})
    return {"messages": messages}


def _to_sharegpt(conversation: Conversation) -> dict[str, Any]:
    messages = [{"from": "system", "value": conversation.system}] if conversation.system else []
    for each in conversation.exchanges:
        messages.append({"from": "human", "value": each.input})
        messages.append({"from": "gpt", "value": each.output})
    return {"conversations": messages}


def _to_alpaca(conversation: Conversation) -> dict[str, Any]:
    *history, last = conversation.exchanges
    record: dict[str, Any] = {"instruction": last.input, "input": "", "output": last.output}
    if conversation.system:
        record["system"] = conversation.system
    record["history"] = [[each.input, each.output] for each in history]
    return record


_WRITERS: dict[str, Callable[[Conversation], dict[str, Any]]] = {
    "xtuner": Conversation.to_json,
    "openai": _to_openai,
    "sharegpt": _to_sharegpt,
    "alpaca": _to_alpaca,
}


class _Record:
    """One record of a file on its way to a conversation."""

    def __init__(self, path: Path, value: Value, problems: Problems, imported: Imported) -> None:
        self.path = path
        self.record = value.value
        self.line = value.first
        self.place = f"{path}:{value.first}: 第 {value.number} 条 / record {value.number}:"
        self.problems = problems
        self.imported = imported
        self.failed = False
        self.system: list[str] = []
        # (role, text), as they were said.
        self.messages: list[tuple[str, str]] = []
        self.source = Source(str(path), value.first, value.last)

    def read(self) -> None:
        """Add the record's conversation to ``imported``, or its problems to ``problems``."""
        if not isinstance(self.record, dict):
            self.fail("", "不是 JSON 对象 / is not a JSON object: 改成对象 / write an object")
            return
        format = self.read_by_keys()
        if self.failed:
            return
        self.imported.formats[format] += 1
        self.read_source()
        exchanges = tuple(self.exchanges())
        if exchanges:
            self.imported.lines.append(self.line)
            self.imported.conversations.append(
                Conversation(exchanges, "\n".join(dict.fromkeys(self.system)) or None, self.source)
            )

    def fail(self, where: str, message: str) -> None:
        self.failed = True
        self.problems.add(f"{self.place} {printable(f'[{where}] {message}' if where else message)}")

    def read_by_keys(self) -> Format:
        """Read the record in the format its keys show, and name that format."""
        record = self.record
        if "conversation" in record:
            self.read_xtuner()
            return "xtuner"
        if "messages" in record:
            self.read_messages("messages")
            return "openai"
        if "conversations" in record:
            self.read_messages("conversations")
            return "sharegpt"
        if "output" in record and ("instruction" in record or "input" in record):
            self.read_alpaca()
            return "alpaca"
        if "role" in record or "from" in record:
            self.fail("", '是单条消息 / is a single message: 一段对话写成一条 / write {"messages": […]} per dialogue')
        else:
            keys = ", ".join(sorted(record)) or "{}"
            self.fail(
                "",
                f"认不出格式（{keys[:80]}）/ no known format has the keys {keys[:80]}: 需要 / needs conversation, "
                "messages, conversations, 或 / or instruction + output",
            )
        return "xtuner"

    def read_xtuner(self) -> None:
        conversation = self.list_of("conversation")
        for index, exchange in enumerate(conversation):
            where = f"conversation[{index}]"
            if not isinstance(exchange, dict):
                self.fail(where, '不是 JSON 对象 / is not a JSON object: 改成 / write {"input": …, "output": …}')
                continue
            if exchange.get("system"):
                if index:
                    self.fail(
                        f"{where}.system", "只能写在第一个来回 / allowed on the first exchange only: 移过去 / move it"
                    )
                self.add(f"{where}.system", "system", exchange["system"])
            self.add(f"{where}.input", "user", exchange.get("input"))
            self.add(f"{where}.output", "assistant", exchange.get("output"))
            self.imported.unmasked += exchange.get("output_with_loss") is False

    def read_messages(self, key: str) -> None:
        """OpenAI's and ShareGPT's lists; the names inside a message are known by themselves."""
        if self.record.get("system"):
            self.add("system", "system", self.record["system"])
        for index, message in enumerate(self.list_of(key)):
            where = f"{key}[{index}]"
            if not isinstance(message, dict):
                self.fail(where, "不是 JSON 对象 / is not a JSON object: 改成对象 / write an object")
                continue
            who, what = ("from", "value") if "from" in message else ("role", "content")
            name = message.get(who)
            role = _ROLES.get(name) if isinstance(name, str) else None
            if role is None:
                self.fail(
                    f"{where}.{who}",
                    f"不支持 {name!r} / {name!r} is not supported: 只能是 system、user（human）、assistant（gpt），"
                    "或删去这条消息 / use one of these, or remove the message",
                )
                continue
            if role == "system" and self.messages:
                self.fail(
                    f"{where}.{what}", "system 只能在最前 / system must come first: 移到最前 / move it to the start"
                )
            self.add(f"{where}.{what}", role, _joined_parts(message.get(what)))
            self.imported.unmasked += role == "assistant" and message.get("weight") == 0

    def read_alpaca(self) -> None:
        if self.record.get("system"):
            self.add("system", "system", self.record["system"])
        history = self.record.get("history") or []
        if not isinstance(history, list):
            self.fail("history", '应是列表 / must be a list: 写成 / write [["问", "答"], …]')
            history = []
        for index, pair in enumerate(history):
            if isinstance(pair, list) and len(pair) == 2:
                self.add(f"history[{index}][0]", "user", pair[0])
                self.add(f"history[{index}][1]", "assistant", pair[1])
            else:
                self.fail(f"history[{index}]", '应是一问一答 / must be a pair: 写成 / write ["问", "答"]')
        prompt = []
        for key in ("instruction", "input"):
            text = self.record.get(key)
            if text is not None and not isinstance(text, str):
                self.add(key, "user", text)
            elif text and text.strip():
                prompt.append(text)
        if prompt or not self.failed:
            self.add("instruction", "user", "\n".join(prompt))
        self.add("output", "assistant", self.record["output"])

    def list_of(self, key: str) -> list[Any]:
        value = self.record[key]
        if isinstance(value, list) and value:
            return value
        self.fail(key, "需要非空列表 / must be a non-empty list: 补上或删去这一条 / fill it or remove the record")
        return []

    def add(self, where: str, role: str, text: Any) -> None:
        """Take one text, or say why not."""
        if not isinstance(text, str):
            self.fail(where, "缺少文字 / must be a string: 写上文字或删去这一条 / write it or remove the record")
        elif not text.strip():
            self.fail(where, "是空的 / is empty: 写上文字或删去这一条 / write it or remove the record")
        elif role == "system":
            self.system.append(text)
        else:
            self.messages.append((role, text))

    def read_source(self) -> None:
        source = self.record.get("source")
        if not isinstance(source, dict) or not isinstance(source.get("file"), str):
            return
        lines = source.get("lines")
        if isinstance(lines, list) and len(lines) == 2 and all(type(line) is int for line in lines):
            self.source = Source(source["file"], *lines)

    def exchanges(self) -> Iterator[Exchange]:
        turns: list[tuple[str, list[str]]] = []
        for role, text in self.messages:
            if turns and turns[-1][0] == role:
                turns[-1][1].append(text)
                self.imported.merged += 1
            else:
                turns.append((role, [text]))
        if turns and turns[0][0] == "assistant":
            self.skip("no_prompt", turns.pop(0)[1])
        if len(turns) % 2:
            self.skip("not_prompt", turns.pop()[1])
        for (_, prompt), (_, reply) in zip(turns[::2], turns[1::2], strict=True):
            yield Exchange("\n".join(prompt), "\n".join(reply))

    def skip(self, reason: str, texts: list[str]) -> None:
        self.imported.skipped.append(
            Skipped(self.source.file, self.source.first, self.source.last, reason, "\n".join(texts))
        )


def _joined_parts(content: Any) -> Any:
    """OpenAI's list of text parts as one text; anything else as it is, for the caller to refuse.

    >>> _joined_parts([{"type": "text", "text": "甲"}, {"type": "text", "text": "乙"}])
    '甲乙'
    """
    if isinstance(content, list) and content:
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if all(isinstance(text, str) for text in texts):
            return "".join(text for text in texts if isinstance(text, str))
    return content
