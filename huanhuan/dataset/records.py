"""The training record: a conversation that starts with somebody else and alternates to the character."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """Where a conversation was said: file (as given to the converter) and 1-based lines, both included."""

    file: str
    first: int
    last: int


@dataclass(frozen=True)
class Exchange:
    """One prompt by somebody else and the character's reply to it."""

    input: str
    output: str


@dataclass(frozen=True)
class Conversation:
    """One training record."""

    exchanges: tuple[Exchange, ...]
    system: str | None = None
    source: Source | None = None

    def to_json(self) -> dict[str, Any]:
        """The record in XTuner's format; ``source`` is an extra key that training ignores.

        >>> Conversation((Exchange("乙", "丙"),), system="甲", source=Source("a.txt", 3, 4)).to_json()
        {'conversation': [{'system': '甲', 'input': '乙', 'output': '丙'}], 'source': {'file': 'a.txt', 'lines': [3, 4]}}
        """
        rows: list[dict[str, str]] = [{"input": each.input, "output": each.output} for each in self.exchanges]
        if self.system:
            rows[0] = {"system": self.system, **rows[0]}
        record: dict[str, Any] = {"conversation": rows}
        if self.source:
            record["source"] = {"file": self.source.file, "lines": [self.source.first, self.source.last]}
        return record
