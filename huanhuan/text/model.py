"""What reading a script gives: scenes of speeches and directions, each with its lines in the source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Skipped:
    """Lines ``line`` to ``last`` (1-based, both included) of ``file`` that are in no record, and why."""

    file: str
    line: int
    last: int
    reason: str
    text: str


@dataclass(slots=True)
class Speech:
    """One speech. ``speakers`` are several where people speak together.

    ``text`` is what is spoken; ``staged`` is the same with its stage directions as ``（…）``.
    """

    speakers: tuple[str, ...]
    text: str
    staged: str
    first: int
    last: int


@dataclass(slots=True)
class Direction:
    """A stage direction on lines of its own, without its brackets.

    ``breaks``: something was said here by nobody evident, so what came before is not answered by what comes after.
    """

    text: str
    first: int
    last: int
    breaks: bool = False


@dataclass(slots=True)
class Scene:
    """What belongs together; ``heading`` is a label only and may repeat.

    ``key`` is the number in the heading. ``continues``: the heading says that the scene goes on from an earlier one
    that this file does not hold.
    """

    heading: str
    first: int
    last: int
    items: list[Speech | Direction] = field(default_factory=list)
    key: str = ""
    continues: bool = False

    @property
    def speeches(self) -> list[Speech]:
        """The speeches alone, in order."""
        return [item for item in self.items if isinstance(item, Speech)]


@dataclass
class Script:
    """One source file as scenes. ``labels`` counts every speaker, ``first_lines`` says where each is first."""

    file: str
    encoding: str
    layout: str
    lines: int
    scenes: list[Scene] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    first_lines: dict[str, int] = field(default_factory=dict)
