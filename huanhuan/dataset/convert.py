"""Scripts in, training files and a report out: what ``tools/dialogue_to_jsonl.py`` calls."""

from __future__ import annotations

import heapq
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huanhuan.dataset.conversations import CutOptions, Pair, Turn, conversations_of, pairs_of, turns_of, unused
from huanhuan.dataset.filters import FilterOptions, Filters
from huanhuan.dataset.identity import identity_records
from huanhuan.dataset.records import Conversation
from huanhuan.dataset.report import FileStats, Part, Report, SpeakerStats, lengths_of
from huanhuan.dataset.split import choose_val, rank
from huanhuan.errors import Problems, UserError
from huanhuan.persona import Persona
from huanhuan.text.labels import Speakers, look_alikes, name_key
from huanhuan.text.model import Direction, Scene, Script, Skipped
from huanhuan.text.reader import read_script
from huanhuan.text.sources import find_files

_SHOWN_NAMES = 15
_SHOWN_TEXT = 120
_SAMPLES = 20


@dataclass(frozen=True)
class Options:
    """Everything that a conversion depends on beside the sources. ``card`` is the file of ``persona``."""

    names: tuple[str, ...]
    system: str | None = None
    persona: Persona | None = None
    card: Path | None = None
    encoding: str | None = None
    layout: str | None = None
    cut: CutOptions = field(default_factory=CutOptions)
    filters: FilterOptions = field(default_factory=FilterOptions)
    identity_share: float = 0.03
    val_share: float = 0.15
    seed: int = 0

    def shown(self) -> dict[str, Any]:
        """The options as the report lists them."""
        return {
            "encoding": self.encoding or "auto",
            "layout": self.layout or "auto",
            "single_turn": self.cut.single_turn,
            "context": self.cut.context,
            "context_chars": self.cut.context_chars,
            "budget": self.cut.budget,
            "openers": self.cut.openers,
            "stage_directions": "keep" if self.cut.keep_directions else "drop",
            "filters_off": sorted(self.filters.off),
            "min_chars": self.filters.min_chars,
            "copies": self.filters.copies,
            "similarity": self.filters.similarity,
            "interjections": self.filters.interjections,
            "identity_share": self.identity_share,
            "val_share": self.val_share,
            "seed": self.seed,
        }


@dataclass
class _Unit:
    """A scene's records as lines of JSON, and whether the scene may be held out."""

    order: int
    free: bool = True
    lines: list[str] = field(default_factory=list)
    exchanges: int = 0


@dataclass
class _Tail:
    """The last scene of a file, which the next one may continue: its turns since the character's last one."""

    key: str
    heading: str
    turns: list[Turn]
    hers: bool
    unit: _Unit | None


class Conversion:
    """Collects the records of many files; one file is in memory at a time."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.keys = frozenset(name_key(name) for name in options.names)
        self.speakers = Speakers(options.names)
        self.filters = Filters(options.filters)
        self.starters = frozenset(options.persona.starters) if options.persona else frozenset()
        self.files: list[FileStats] = []
        self.units: list[_Unit] = []
        self.skipped: list[Skipped] = []
        self.counts: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.first_place: dict[str, tuple[str, int]] = {}
        self.lengths = {"prompt": array("L"), "reply": array("L"), "record": array("L")}
        self.samples: list[tuple[int, int, str]] = []
        self.tail: _Tail | None = None

    def add(self, script: Script) -> None:
        """Take the records of one file."""
        speeches = 0
        self.skipped.extend(script.skipped)
        for scene in script.scenes:
            speeches += self._add_scene(scene, script.file, scene is script.scenes[-1])
        self.files.append(
            FileStats(script.file, script.encoding, script.layout, script.lines, speeches, len(script.scenes))
        )
        self.labels.update(script.labels)
        for name, line in script.first_lines.items():
            self.first_place.setdefault(name, (script.file, line))
        self.counts["lines"] += script.lines
        self.counts["speeches"] += speeches
        self.counts["scenes"] += len(script.scenes)

    def _add_scene(self, scene: Scene, file: str, is_last: bool) -> int:
        """Take the records of one scene; returns the number of its speeches."""
        speeches = scene.speeches
        for item in scene.items:
            if isinstance(item, Direction) and not item.breaks:
                self.counts["directions"] += 1
                self.skipped.append(Skipped(file, item.first, item.last, "direction", item.text))
        hers = sum(any(name_key(name) in self.keys for name in speech.speakers) for speech in speeches)
        tail = self._continued(scene)
        if not hers and not is_last:
            self._other_scene(scene.heading, turns_of(scene, file, ()))
            return len(speeches)
        turns = turns_of(scene, file, self.keys, keep_directions=self.options.cut.keep_directions)
        cut = pairs_of(turns, self.options.cut, tail.turns if tail else ())
        unit = tail.unit if tail else None
        if hers:
            self.counts["scenes_with_character"] += tail is None or not tail.hers
            self.counts["character_speeches"] += hers
            self.counts["character_turns"] += sum(turn.hers for turn in turns)
            self.counts["pairs"] += len(cut.pairs)
            self.skipped.extend(cut.skipped)
            unit = self._add_pairs(cut.pairs, file, unit)
        if is_last:
            self.tail = _Tail(scene.key, scene.heading, cut.open, bool(hers), unit)
        else:
            self.skipped.extend(unused(cut.open))
        return len(speeches)

    def _continued(self, scene: Scene) -> _Tail | None:
        """The end of the file before if ``scene`` goes on from there; what is left of it is unused."""
        tail, self.tail = self.tail, None
        if tail is None:
            return None
        if scene.continues and scene.key == tail.key:
            return tail
        self._close(tail)
        return None

    def _close(self, tail: _Tail) -> None:
        if tail.hers:
            self.skipped.extend(unused(tail.turns))
        else:
            self._other_scene(tail.heading, tail.turns)

    def _other_scene(self, heading: str, turns: Sequence[Turn]) -> None:
        if turns:
            shown = f"{heading} {len(turns)} 句 / turns".strip()
            self.skipped.append(Skipped(turns[-1].file, turns[0].first, turns[-1].last, "other_scene", shown))

    def _add_pairs(self, pairs: Sequence[Pair], file: str, unit: _Unit | None) -> _Unit | None:
        """Take what the filters leave of the exchanges of a scene, of which ``unit`` is the part before."""
        kept: list[Pair] = []
        for pair in pairs:
            reason = self.filters.reason(pair.input, pair.output)
            if reason:
                self.skipped.append(Skipped(file, pair.first, pair.last, reason, f"{pair.input} → {pair.output}"))
            else:
                kept.append(pair)
        if not kept:
            return unit
        if unit is None:
            order = rank(self.options.seed, f"{kept[0].input}\n{kept[0].output}\n{len(self.units)}")
            unit = _Unit(order)
            self.units.append(unit)
        conversations = conversations_of(kept, file, self.options.cut, self.options.system)
        unit.lines.extend(self._line(conversation) for conversation in conversations)
        unit.exchanges += len(kept)
        unit.free = unit.free and not any(pair.input in self.starters for pair in kept)
        self.counts["records"] += len(conversations)
        self.counts["exchanges"] += len(kept)
        return unit

    def _line(self, conversation: Conversation) -> str:
        line = json.dumps(conversation.to_json(), ensure_ascii=False)
        total = len(conversation.system or "")
        for exchange in conversation.exchanges:
            self.lengths["prompt"].append(len(exchange.input))
            self.lengths["reply"].append(len(exchange.output))
            total += len(exchange.input) + len(exchange.output)
        self.lengths["record"].append(total)
        entry = (-rank(self.options.seed, line), len(self.lengths["record"]), line)
        if len(self.samples) < _SAMPLES:
            heapq.heappush(self.samples, entry)
        else:
            heapq.heappushpop(self.samples, entry)
        return line

    def finish(self) -> Result:
        """The training files' lines and the report.

        Raises: UserError if nobody speaks, the character never does, or nothing is left.
        """
        if self.tail:
            self._close(self.tail)
        self._check()
        identity = self._identity()
        val = choose_val(
            [unit.order for unit in self.units], [unit.free for unit in self.units], self.options.val_share
        )
        train: list[str] = []
        held_out: list[str] = []
        for index, unit in enumerate(self.units):
            (held_out if index in val else train).extend(unit.lines)
        train.extend(identity)
        parts = (self._part("train", [u for i, u in enumerate(self.units) if i not in val], len(identity)),)
        parts = (*parts, self._part("val", [self.units[index] for index in sorted(val)], 0))
        return Result(train, held_out, self._report(parts))

    def _check(self) -> None:
        if not self.labels:
            tried = ", ".join(f"{stats.file} ({stats.lines} 行 / lines)" for stats in self.files[:5])
            raise UserError(
                f"{tried}: 没有找到任何说话人 / nobody speaks in this script: lines like “角色：台词” are expected, "
                "choose a layout with --layout"
            )
        if not self.counts["character_speeches"]:
            names = ", ".join(f"{name} ({count})" for name, count in self.labels.most_common(_SHOWN_NAMES))
            raise UserError(
                f"{'、'.join(self.options.names)}: 从不说话 / never speaks here: use one of the speakers found, "
                f"most frequent first: {names}"
            )
        if not self.counts["records"]:
            raise UserError(
                f"{self.options.names[0]}: 没有可用的对话 / no exchange is left of "
                f"{self.counts['character_speeches']} speeches: try --keep-all or --openers direction"
            )

    def _identity(self) -> list[str]:
        persona, card = self.options.persona, self.options.card
        if persona is None or card is None or self.options.identity_share <= 0:
            return []
        share = self.options.identity_share
        wanted = max(1, round(self.counts["exchanges"] * share / (1 - share)))
        records = identity_records(persona, card, wanted, self.options.seed)
        self.counts["identity"] = len(records)
        self.counts["records"] += len(records)
        self.counts["exchanges"] += len(records)
        return [self._line(record) for record in records]

    def _part(self, name: str, units: Sequence[_Unit], identity: int) -> Part:
        return Part(
            name,
            len(units),
            sum(len(unit.lines) for unit in units) + identity,
            sum(unit.exchanges for unit in units) + identity,
            identity,
        )

    def _report(self, split: tuple[Part, ...]) -> Report:
        alike = look_alikes(self.labels)
        speakers = tuple(
            SpeakerStats(name, count, *self.first_place[name], name_key(name) in self.keys, alike.get(name, ()))
            for name, count in sorted(
                self.labels.items(), key=lambda item: (-item[1], self.first_place[item[0]], item[0])
            )
        )
        warnings = [
            f"{each.name}（{each.file}:{each.line}）疑似 / looks like {near}: 如果是同一人，把它加为别名 / "
            "if it is the same person, add it as an alias"
            for each in speakers
            if not each.is_character
            for near in each.look_alikes
            if name_key(near) in self.keys
        ]
        skipped = tuple(
            Skipped(each.file, each.line, each.last, each.reason, _short(each.text))
            for each in sorted(self.skipped, key=lambda each: (each.file, each.line, each.last))
        )
        return Report(
            character=self.options.names[0],
            names=self.options.names,
            options=self.options.shown(),
            files=tuple(self.files),
            counts=dict(self.counts),
            speakers=speakers,
            lengths={key: lengths_of(values) for key, values in self.lengths.items()},
            skipped_counts=dict(Counter(each.reason for each in skipped).most_common()),
            skipped=skipped,
            samples=tuple(json.loads(line) for _, _, line in sorted(self.samples, reverse=True)),
            split=split,
            warnings=tuple(warnings),
        )


@dataclass(frozen=True)
class Result:
    """Lines of JSON without their newlines, and the report."""

    train: list[str]
    val: list[str]
    report: Report


def convert(sources: Sequence[Path | str], options: Options) -> Result:
    """Read every file of ``sources`` and cut the character's conversations.

    Raises: UserError with one line for each file that cannot be read, or if the character is not there.
    """
    conversion = Conversion(options)
    problems = Problems()
    for source in find_files(sources):
        try:
            script = read_script(source, conversion.speakers, encoding=options.encoding, layout=options.layout)
        except UserError as error:
            for problem in error.problems:
                problems.add(problem)
            continue
        conversion.add(script)
    problems.raise_if_any()
    return conversion.finish()


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_TEXT else text[: _SHOWN_TEXT - 1] + "…"
