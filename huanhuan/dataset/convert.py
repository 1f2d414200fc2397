"""Scripts in, records and a report out: what ``tools/dialogue_to_jsonl.py`` calls."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from huanhuan.dataset.conversations import Pair, Turn, conversations_of, pairs_of, turns_of, unused
from huanhuan.dataset.filters import Filters
from huanhuan.dataset.identity import identity_records
from huanhuan.dataset.options import Options
from huanhuan.dataset.records import Conversation, Source
from huanhuan.dataset.report import Part, Report
from huanhuan.dataset.split import choose_val, rank
from huanhuan.dataset.spool import Texts
from huanhuan.dataset.tally import Measure, Tally
from huanhuan.errors import Problems, UserError
from huanhuan.text.labels import Speakers, look_alikes, name_key
from huanhuan.text.model import Direction, Scene, Script, Skipped
from huanhuan.text.reader import read_script
from huanhuan.text.sources import READY, SourceFile, find_files

_SHOWN_NAMES = 15
_SLIP_AT_MOST = 2
# No scene of a script is as long: it is a play without scenes, and is held out and kept by parts.
_LONGEST_SCENE = 60
_PART_OF_SCENE = 30


@dataclass(slots=True)
class _Unit:
    """What is held out or trained on as a whole: a scene. ``free``: it may be held out."""

    order: int
    free: bool = True
    records: int = 0
    exchanges: int = 0


@dataclass
class _Tail:
    """The last scene of a file, which the next one may continue: its turns since the character's last one."""

    key: str
    heading: str
    turns: list[Turn]
    hers: bool
    unit: int | None


class Result:
    """The records as lines in their format, without newlines, each on one side of the split; and the report."""

    def __init__(self, lines: Texts, units: array[int], held_out: set[int], identity: Sequence[str], report: Report):
        self._lines = lines
        self._units = units
        self._held_out = held_out
        self._identity = identity
        self.report = report

    def train(self) -> Iterator[str]:
        """Records to train on, identity exchanges last."""
        for index, unit in enumerate(self._units):
            if unit not in self._held_out:
                yield self._lines[index]
        yield from self._identity

    def val(self) -> Iterator[str]:
        """Records held out."""
        for index, unit in enumerate(self._units):
            if unit in self._held_out:
                yield self._lines[index]


class Conversion:
    """Collects the records of many files; one file is in memory at a time."""

    def __init__(self, options: Options, tokens: Measure | None = None) -> None:
        self.options = options
        self.keys = frozenset(name_key(name) for name in options.names)
        self.speakers = Speakers(options.names)
        self.filters = Filters(options.filters)
        self.starters = frozenset(options.persona.starters) if options.persona else frozenset()
        self.tally = Tally(options, tokens)
        self.size = tokens if tokens and options.cut.budget_tokens else len
        self.units: list[_Unit] = []
        self.lines = Texts()
        self.unit_of = array("L")
        self.tail: _Tail | None = None
        self.slips: frozenset[str] = frozenset()

    def add(self, script: Script) -> None:
        """Take the records of one script."""
        self.tally.skip(script.skipped)
        self.slips = self._slips(script)
        speeches = sum(self._add_scene(scene, script.file, scene is script.scenes[-1]) for scene in script.scenes)
        self.tally.file_done(script, speeches)

    def _slips(self, script: Script) -> frozenset[str]:
        """Labels that are probably a slip of one of her names, so that their lines are neither prompts nor replies.

        One character off and said once or twice, or a blank off: 甄父, who speaks twenty times, is somebody else.
        """
        counts = self.tally.labels + script.labels
        found: set[str] = set()
        for name, near in look_alikes(counts).items():
            if name not in script.labels or name_key(name) in self.keys:
                continue
            for other in near:
                blanks_only = name_key(name).replace(" ", "") == name_key(other).replace(" ", "")
                if name_key(other) in self.keys and (blanks_only or counts[name] <= _SLIP_AT_MOST):
                    found.add(name)
        return frozenset(found)

    def add_ready(self, source: SourceFile) -> None:
        """Take the records of a file that already holds conversations, in any of the known formats.

        Raises: UserError with every problem of the file.
        """
        from huanhuan.dataset.formats import read_file

        found = read_file(source.path, encoding=self.options.encoding)
        given = str(source.path)
        self.tally.skip(Skipped(source.name, *item_of(item)) if item.file == given else item for item in found.skipped)
        exchanges = 0
        for line, conversation in zip(found.lines, found.conversations, strict=True):
            origin = conversation.source or Source(given, line, line)
            file = source.name if origin.file == given else origin.file
            pairs = [Pair(each.input, each.output, origin.first, origin.last) for each in conversation.exchanges]
            exchanges += len(pairs)
            self.tally.counts["pairs"] += len(pairs)
            self._add_pairs(pairs, file, None, self.options.system or conversation.system)
        kinds = ", ".join(sorted(found.formats))
        script = Script(source.name, self.options.encoding or "utf-8", kinds, found.lines[-1])
        self.tally.file_done(script, 2 * exchanges)
        if found.merged:
            self.tally.warnings.append(
                f"{source.name}: {found.merged} 条同一角色的连续消息已合并 / messages of one role in a row were joined"
            )
        if found.unmasked:
            self.tally.warnings.append(
                f"{source.name}: {found.unmasked} 条原本不训练的回复会被训练 / replies that the file excludes from "
                "training are trained on"
            )

    def _add_scene(self, scene: Scene, file: str, is_last: bool) -> int:
        """Take the records of one scene; returns the number of its speeches."""
        speeches = scene.speeches
        counts = self.tally.counts
        for item in scene.items:
            if isinstance(item, Direction) and not item.breaks:
                counts["directions"] += 1
                self.tally.skip([Skipped(file, item.first, item.last, "direction", item.text)])
        hers = sum(any(name_key(name) in self.keys for name in speech.speakers) for speech in speeches)
        tail = self._continued(scene)
        if not hers and not is_last:
            self._other_scene(scene.heading, turns_of(scene, file, ()))
            return len(speeches)
        keep = self.options.cut.keep_directions
        turns = turns_of(scene, file, self.keys, slips=self.slips, keep_directions=keep)
        cut = pairs_of(turns, self.options.cut, tail.turns if tail else ())
        unit = tail.unit if tail else None
        if hers:
            counts["scenes_with_character"] += tail is None or not tail.hers
            counts["character_speeches"] += hers
            counts["character_turns"] += sum(turn.hers for turn in turns)
            counts["pairs"] += len(cut.pairs)
            self.tally.skip(cut.skipped)
            unit = self._add_pairs(cut.pairs, file, unit, self.options.system)
        if is_last:
            self.tail = _Tail(scene.key, scene.heading, cut.open, bool(hers) or bool(tail and tail.hers), unit)
        else:
            self.tally.skip(unused(cut.open))
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
            self.tally.skip(unused(tail.turns))
        else:
            self._other_scene(tail.heading, tail.turns)

    def _other_scene(self, heading: str, turns: Sequence[Turn]) -> None:
        said = [turn for turn in turns if not turn.unknown]
        if said:
            shown = f"{heading} {len(said)} 句 / turns".strip()
            self.tally.skip([Skipped(said[-1].file, said[0].first, said[-1].last, "other_scene", shown)])

    def _add_pairs(self, pairs: Sequence[Pair], file: str, unit: int | None, system: str | None) -> int | None:
        """Take what the filters leave of the exchanges of a scene, of which ``unit`` is the part before."""
        kept: list[Pair] = []
        for pair in pairs:
            reason = self.filters.reason(pair.input, pair.output)
            if reason:
                shown = f"{pair.input} → {pair.output}"
                self.tally.skip([Skipped(file, pair.first, pair.last, reason, shown)])
            else:
                kept.append(pair)
        step = _PART_OF_SCENE if len(kept) > _LONGEST_SCENE else max(1, len(kept))
        for start in range(0, len(kept), step):
            part = kept[start : start + step]
            if unit is None or start:
                # The number keeps scenes of equal words apart, so that they need not fall on one side.
                text = f"{part[0].input}\n{part[0].output}\n{len(self.units)}"
                unit = len(self.units)
                self.units.append(_Unit(rank(self.options.seed, text)))
            self._add_records(conversations_of(part, file, self.options.cut, system, self.size), self.units[unit], unit)
        return unit

    def _add_records(self, conversations: Sequence[Conversation], unit: _Unit, index: int) -> None:
        for conversation in conversations:
            self.lines.append(self._line(conversation))
            self.unit_of.append(index)
            self.tally.record(conversation)
            unit.records += 1
            unit.exchanges += len(conversation.exchanges)
            unit.free = unit.free and not any(each.input in self.starters for each in conversation.exchanges)

    def _line(self, conversation: Conversation) -> str:
        if self.options.format == "xtuner":
            return json.dumps(conversation.to_json(), ensure_ascii=False)
        from huanhuan.dataset.formats import format_records

        return next(format_records([conversation], self.options.format)).rstrip("\n")  # type: ignore[arg-type]

    def finish(self) -> Result:
        """The training files' lines and the report.

        Raises: UserError if nobody speaks, the character never does, or nothing is left.
        """
        if self.tail:
            self._close(self.tail)
        self._check()
        identity = self._identity()
        held_out = choose_val(
            [unit.order for unit in self.units], [unit.free for unit in self.units], self.options.val_share
        )
        train = [unit for index, unit in enumerate(self.units) if index not in held_out]
        val = [self.units[index] for index in sorted(held_out)]
        if self.options.val_share and not val:
            self.tally.warnings.append(
                "没有可留作验证的场次，val.jsonl 是空的 / no scene could be held out: val.jsonl is empty"
            )
        split = (_part("train", train, len(identity)), _part("val", val, 0))
        return Result(self.lines, self.unit_of, held_out, identity, self.tally.report(split))

    def _check(self) -> None:
        tally = self.tally
        names = "、".join(self.options.names)
        if not tally.labels and not tally.counts["pairs"]:
            tried = ", ".join(f"{stats.file} ({stats.lines} 行 / lines)" for stats in tally.files[:5])
            if not any(stats.lines for stats in tally.files):
                raise UserError(f"{tried}: 剧本是空的 / the script is empty: 检查文件内容 / check the file")
            raise UserError(
                f"{tried}: 没有找到任何说话人 / nobody speaks in this script: lines like “角色：台词” are expected, "
                "choose a layout with --layout"
            )
        if not tally.counts["character_speeches"] and not tally.counts["pairs"]:
            found = ", ".join(f"{name} ({count})" for name, count in tally.labels.most_common(_SHOWN_NAMES))
            raise UserError(
                f"{names}: 从不说话 / never speaks here: use one of the speakers found, most frequent first: {found}"
            )
        if not tally.counts["records"]:
            raise UserError(
                f"{names or '对话'}: 没有可用的对话 / no exchange is left of {tally.counts['pairs']} found in "
                f"{tally.counts['character_speeches']} speeches: try --keep-all or --openers direction"
            )

    def _identity(self) -> list[str]:
        persona, card, share = self.options.persona, self.options.card, self.options.identity_share
        if persona is None or card is None or share <= 0 or not persona.identity:
            return []
        wanted = max(1, round(self.tally.counts["exchanges"] * share / (1 - share)))
        records = identity_records(persona, card, wanted, self.options.seed)
        if len(records) < wanted:
            self.tally.warnings.append(
                f"身份问答只有 {len(records)} 种说法，不足 {wanted} 条 / the card's identity questions give only "
                f"{len(records)} different exchanges of the {wanted} wanted: add questions to the card"
            )
        self.tally.counts["identity"] = len(records)
        for record in records:
            self.tally.record(record)
        return [self._line(record) for record in records]


def item_of(item: Skipped) -> tuple[int, int, str, str]:
    """An item without its file."""
    return item.line, item.last, item.reason, item.text


def _part(name: str, units: Sequence[_Unit], identity: int) -> Part:
    records = sum(unit.records for unit in units) + identity
    return Part(name, len(units), records, sum(unit.exchanges for unit in units) + identity, identity)


def convert(sources: Sequence[Path | str], options: Options) -> Result:
    """Read every file of ``sources`` and cut the character's conversations.

    Raises: UserError with one line for each file that cannot be read, or if the character is not there.
    """
    files = find_files(sources)
    scripts = [file for file in files if file.path.suffix.lower() not in READY]
    if scripts and not options.names:
        raise UserError(f"{scripts[0].name}: 缺少角色 / no character: give --persona FILE or --character NAME")
    tokens = None
    if options.tokenizer:
        from huanhuan.dataset.tokens import token_counter

        tokens = token_counter(options.tokenizer)
    conversion = Conversion(options, tokens)
    problems = Problems()
    for source in files:
        try:
            if source.path.suffix.lower() in READY:
                conversion.add_ready(source)
            else:
                conversion.add(
                    read_script(source, conversion.speakers, encoding=options.encoding, layout=options.layout)
                )
        except UserError as error:
            problems.extend(error.problems)
    problems.raise_if_any()
    return conversion.finish()
