"""What a conversion found, used and left out: the content of ``report.json``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from huanhuan.text.model import Skipped

# Why something of the source is in no record. The keys are what report.json holds, the values what people read.
REASONS = {
    "direction": "舞台提示 / stage direction",
    "note": "注释或旁白 / note or narration",
    "unlabelled": "没有角色名的行 / line without a speaker",
    "unbalanced": "括号不成对 / unbalanced bracket",
    "empty": "没有台词 / no words spoken",
    "unattributed": "无法确定说话人的引语 / quotation whose speaker is not evident",
    "not_speech": "不是对话的引语 / quotation that is not speech",
    "near_alias": "角色名疑似笔误 / speaker only nearly one of the names",
    "no_prompt": "开场白，前面没有别人的话 / opens the scene: nobody spoke before",
    "unknown_prompt": "前一句说话人不明 / nobody evident spoke before",
    "other_scene": "没有该角色的场次 / scene without the character",
    "not_prompt": "不是对该角色说的最后一句 / turn that no reply follows",
    "short": "回复太短 / reply too short",
    "interjection": "回复只有语气词 / reply of pure interjection",
    "duplicate": "重复 / exact duplicate",
    "near_duplicate": "近似重复 / near duplicate",
    "metadata": "文件信息 / metadata of the file",
}


@dataclass(frozen=True)
class FileStats:
    """One source file: how it was read and what was found in it."""

    file: str
    encoding: str
    layout: str
    lines: int
    speeches: int
    scenes: int


@dataclass(frozen=True)
class SpeakerStats:
    """One speaker label: how often it speaks, where first, and what it may be a slip of."""

    name: str
    speeches: int
    file: str
    line: int
    is_character: bool = False
    look_alikes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lengths:
    """Distribution of lengths: ``counts[i]`` texts have ``edges[i] <= length < edges[i + 1]``."""

    unit: str
    edges: tuple[int, ...]
    counts: tuple[int, ...]
    total: int
    shortest: int
    median: float
    mean: float
    p95: int
    longest: int


@dataclass(frozen=True)
class Part:
    """One side of the split, ``train`` or ``val``; identity exchanges are of no scene."""

    name: str
    scenes: int
    records: int
    exchanges: int
    identity: int = 0


@dataclass(frozen=True)
class Report:
    """Everything ``report.json`` says; ``to_json`` and ``from_json`` are inverse."""

    character: str
    names: tuple[str, ...]
    options: dict[str, Any]
    files: tuple[FileStats, ...]
    # Totals over the files: lines, speeches, directions, scenes, scenes_with_character, character_speeches,
    # character_turns, pairs (before filters), exchanges (in records, identity included), records.
    counts: dict[str, int]
    speakers: tuple[SpeakerStats, ...]
    # Keys: prompt, reply, record (whole conversation); further ones with unit "tokens" where a tokenizer was given:
    # prompt_tokens, reply_tokens, record_tokens.
    lengths: dict[str, Lengths]
    skipped_counts: dict[str, int]
    skipped: Sequence[Skipped]
    # Up to twenty records in the training format, picked by a seeded hash.
    samples: tuple[dict[str, Any], ...]
    split: tuple[Part, ...]
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        """The report as indented JSON; one skipped item, speaker or sample a line, so that diffs stay readable."""
        return "".join(self.json_pieces())

    def json_pieces(self) -> Iterator[str]:
        """The text of :meth:`to_json` in pieces, so that a long list of skipped items is never held whole."""
        yield "{\n"
        for number, each in enumerate(fields(self)):
            value = getattr(self, each.name)
            yield f"{'' if number == 0 else ',' + chr(10)}  {_dump(each.name)}: "
            if isinstance(value, dict):
                rows = (f"{_dump(name)}: {_dump(_plain(item))}" for name, item in value.items())
                yield from _block("{", rows, "}")
            elif not isinstance(value, str) and isinstance(value, Sequence):
                yield from _block("[", (_dump(_plain(item)) for item in value), "]")
            else:
                yield _dump(value)
        yield "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises: ValueError or TypeError if ``text`` is not such a report.
        """
        return _build(cls, json.loads(text))


def lengths_of(values: Iterable[int], unit: str = "characters", bins: int = 24) -> Lengths:
    """The distribution of ``values``; bins are equally wide, and the last one holds the longest.

    >>> lengths_of([1, 2, 9], bins=3).counts
    (2, 0, 1)
    """
    ordered = sorted(values)
    if not ordered:
        return Lengths(unit, (0, 1), (0,), 0, 0, 0.0, 0.0, 0, 0)
    # From the 99th percentile on, one bin: a single long speech must not flatten the rest of the picture.
    top = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] + 1
    width = max(1, -(-top // bins))
    edges = [*range(0, top + width, width)]
    counts = [0] * (len(edges) - 1)
    for value in ordered:
        counts[min(value // width, len(counts) - 1)] += 1
    edges[-1] = max(edges[-1], ordered[-1] + 1)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Lengths(
        unit,
        tuple(edges),
        tuple(counts),
        len(ordered),
        ordered[0],
        float(median),
        round(sum(ordered) / len(ordered), 2),
        ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)],
        ordered[-1],
    )


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _block(opening: str, rows: Iterable[str], closing: str) -> Iterator[str]:
    yield opening
    end = ""
    for number, row in enumerate(rows):
        yield f"{',' if number else ''}\n    {row}"
        end = "\n  "
    yield end + closing


def _plain(value: Any) -> Any:
    """A dataclass as a dict of its fields; its own values are plain or tuples of plain ones."""
    return {each.name: getattr(value, each.name) for each in fields(value)} if is_dataclass(value) else value


def _build(kind: Any, value: Any) -> Any:
    """``value`` as ``kind``: dataclasses and tuples from plain JSON."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        known = {each.name for each in fields(kind)}
        return kind(**{key: _build(hints[key], item) for key, item in value.items() if key in known})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple or origin is Sequence:
        return tuple(_build(arguments[0], item) for item in value)
    if origin is dict and is_dataclass(arguments[1]):
        return {key: _build(arguments[1], item) for key, item in value.items()}
    return value
