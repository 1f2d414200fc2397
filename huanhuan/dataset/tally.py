"""Counts, lengths, samples and skipped items of a running conversion, and the report made of them."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable

from huanhuan.dataset.options import Options
from huanhuan.dataset.records import Conversation
from huanhuan.dataset.report import FileStats, Part, Report, SpeakerStats, lengths_of
from huanhuan.dataset.split import rank
from huanhuan.dataset.spool import SkippedLog
from huanhuan.text.labels import look_alikes, name_key
from huanhuan.text.model import Script, Skipped

_SAMPLES = 20
_SHOWN_TEXT = 120

# What a report counts, in the order it is shown.
COUNTS = "lines speeches directions scenes scenes_with_character character_speeches character_turns pairs exchanges records identity"

Measure = Callable[[str], int]


class Tally:
    """What a report says, gathered file by file. ``tokens`` counts the tokens of a text, if there is a tokenizer."""

    def __init__(self, options: Options, tokens: Measure | None = None) -> None:
        self.options = options
        self.tokens = tokens
        self.files: list[FileStats] = []
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS.split(), 0))
        self.labels: Counter[str] = Counter()
        self.first_place: dict[str, tuple[str, int]] = {}
        self.skipped = SkippedLog()
        self.skipped_counts: Counter[str] = Counter()
        self.warnings: list[str] = []
        kinds = ("prompt", "reply", "record")
        self.lengths = {key: array("L") for key in kinds}
        if tokens:
            self.lengths |= {f"{key}_tokens": array("L") for key in kinds}
        self._samples: list[tuple[int, int, Conversation]] = []
        self._pending: list[Skipped] = []
        self._order: dict[str, int] = {}

    def skip(self, items: Iterable[Skipped]) -> None:
        """Remember items of the file being read."""
        self._pending.extend(items)

    def file_done(self, script: Script, speeches: int) -> None:
        """Count a script whose scenes have been taken."""
        self.files.append(
            FileStats(script.file, script.encoding, script.layout, script.lines, speeches, len(script.scenes))
        )
        self._order.setdefault(script.file, len(self._order))
        self.labels.update(script.labels)
        for name, line in script.first_lines.items():
            self.first_place.setdefault(name, (script.file, line))
        self.counts["lines"] += script.lines
        self.counts["speeches"] += speeches
        self.counts["scenes"] += len(script.scenes)
        self.flush()

    def flush(self) -> None:
        """Put the items of the file on record, in the order of their lines."""
        # The end of one file becomes known with the start of the next, so two files may be mixed here.
        for item in sorted(self._pending, key=lambda item: (self._order.get(item.file, -1), item.line, item.last)):
            text = item.text if len(item.text) <= _SHOWN_TEXT else item.text[: _SHOWN_TEXT - 1] + "…"
            self.skipped.append(Skipped(item.file, item.line, item.last, item.reason, text))
            self.skipped_counts[item.reason] += 1
        self._pending = []

    def record(self, conversation: Conversation) -> None:
        """Measure a record, and keep it if it is among the samples."""
        self._measure(conversation, len, "")
        if self.tokens:
            self._measure(conversation, self.tokens, "_tokens")
        self.counts["records"] += 1
        self.counts["exchanges"] += len(conversation.exchanges)
        number, first = self.counts["records"], conversation.exchanges[0]
        entry = (-rank(self.options.seed, f"{first.input}\n{first.output}\n{number}"), -number, conversation)
        if len(self._samples) < _SAMPLES:
            heapq.heappush(self._samples, entry)
        else:
            heapq.heappushpop(self._samples, entry)

    def _measure(self, conversation: Conversation, measure: Measure, unit: str) -> None:
        total = measure(conversation.system) if conversation.system else 0
        prompts, replies = self.lengths["prompt" + unit], self.lengths["reply" + unit]
        for exchange in conversation.exchanges:
            prompt, reply = measure(exchange.input), measure(exchange.output)
            prompts.append(prompt)
            replies.append(reply)
            total += prompt + reply
        self.lengths["record" + unit].append(total)

    def report(self, split: tuple[Part, ...]) -> Report:
        """The report of everything so far."""
        self.flush()
        keys = {name_key(name) for name in self.options.names}
        alike = look_alikes(self.labels)
        ordered = sorted(self.labels.items(), key=lambda item: (-item[1], self.first_place[item[0]], item[0]))
        speakers = tuple(
            SpeakerStats(name, count, *self.first_place[name], name_key(name) in keys, alike.get(name, ()))
            for name, count in ordered
        )
        slips = [
            f"{each.name}（{each.file}:{each.line}）疑似 / looks like {near}: 如果是同一人，把它加为别名 / "
            "if it is the same person, add it as an alias"
            for each in speakers
            if not each.is_character
            for near in each.look_alikes
            if name_key(near) in keys
        ]
        return Report(
            character=self.options.names[0] if self.options.names else "",
            names=self.options.names,
            options=self.options.shown(),
            files=tuple(self.files),
            counts=dict(self.counts),
            speakers=speakers,
            lengths={
                key: lengths_of(values, "tokens" if key.endswith("_tokens") else "characters")
                for key, values in self.lengths.items()
            },
            skipped_counts=dict(sorted(self.skipped_counts.items(), key=lambda item: (-item[1], item[0]))),
            skipped=self.skipped,
            samples=tuple(each.to_json() for _, _, each in sorted(self._samples, reverse=True)),
            split=split,
            warnings=(*slips, *self.warnings),
        )
