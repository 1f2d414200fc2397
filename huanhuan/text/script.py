"""Lines of a script to scenes, for every layout in which a label names the speaker."""

from __future__ import annotations

import re
from collections import Counter

from huanhuan.text.clean import (
    CLOSING,
    OPENING,
    QUOTES,
    has_brackets,
    join_lines,
    pieces,
    squeeze,
    unquote,
    unquote_parts,
)
from huanhuan.text.labels import Match, Speakers, could_be_name, is_narrator, match_slip, name_key, strip_prefix
from huanhuan.text.model import Direction, Scene, Script, Skipped, Speech
from huanhuan.text.rows import BLANK, Row, lone_labels

_ENDED = frozenset("。！？…”」』）)】!?.\"'’—~～；;")
# Of these, what ends a sentence and is no place to break a line at.
_FINAL = _ENDED - frozenset("—~～；;’'")
_MARKS = "，,、；;。"
_BESIDE = re.compile(r"(?:^|[；;，,。！？!?\s])([^：:；;，,。！？!?\s（）()]{1,10})[：:∶]")
# Somebody who speaks only inside brackets: two or three characters that neither point nor place.
_NAME_LIKE = re.compile(
    "(?![对對向朝冲衝给給指看望同与與跟在从從把被用以又再其])[\u4e00-\u9fff]{2,3}"
    "(?<![说說道问問曰云想喊叫中内內外上下里裡后後前时時间間声聲信着著地处處面头頭写寫字])$"
)
# How far back a scene marked as continued is looked for: numbers repeat over a whole series.
_RESUME_WITHIN = 12
_LONGEST_DIRECTION = 8


def parse(script: Script, lines: list[str], rows: list[Row], speakers: Speakers) -> Script:
    """Fill ``script`` with the scenes of its ``lines``; ``speakers`` learns the labels of this file first."""
    name_line = script.layout == "name-line"
    if name_line:
        rows = lone_labels(rows, speakers)
    counts: Counter[str] = Counter()
    for row in rows:
        if row.kind == "label" and row.match:
            counts[row.match.name] += 1
    own = Speakers()
    for label, count in counts.items():
        own.counts[name_key(label)] += count
    believed = {
        label for label in counts if own.counts[name_key(label)] > 1 or speakers.known(label) or could_be_name(label)
    }
    keys: Counter[str] = Counter()
    for label in believed:
        keys[name_key(label)] += counts[label]
    speakers.add(keys)
    return _Builder(script, lines, rows, speakers, believed).build()


class _Builder:
    """Walks the rows once; holds the open speech until it is known to be complete."""

    def __init__(
        self, script: Script, lines: list[str], rows: list[Row], speakers: Speakers, believed: set[str]
    ) -> None:
        self.script = script
        self.lines = lines
        self.rows = [
            row if row.kind != "label" or (row.match and row.match.name in believed) else Row("text", row.text)
            for row in rows
        ]
        self.speakers = speakers
        self.scene: Scene | None = None
        self.pending = ""
        self.open: tuple[Match, int] | None = None
        self.open_text: str = ""
        self.open_last = 0
        self.name_line = script.layout == "name-line"
        self.scene_of_key: dict[str, int] = {}
        self.resolved: dict[str, tuple[str, ...]] = {}
        self.wide = 0
        self.usual_gap, self.breaks_by_blank = self._gaps()
        self.wraps, self.rare = self._wrapping()
        self.firm = self._firm() if self.wraps else set()

    def _gaps(self) -> tuple[int, bool]:
        """The usual number of blank lines between speeches, and whether more of them divide scenes."""
        gaps: Counter[int] = Counter()
        gap = 0
        seen = headings = False
        for row in self.rows:
            if row.kind == "blank":
                gap += 1
                continue
            if row.kind == "heading" and row.heading and row.heading.kind == "scene":
                headings = True
            if row.kind == "label":
                if seen:
                    gaps[gap] += 1
                seen = True
            elif row.kind != "text":
                seen = False
            gap = 0
        usual = max(gaps, key=lambda size: (gaps[size], -size)) if gaps else 0
        timed = sum(row.kind == "noise" for row in self.rows) * 3 > sum(row.kind == "label" for row in self.rows)
        return usual, not headings and not timed

    def _wrapping(self) -> tuple[bool, bool]:
        """Whether long lines are wrapped in this file, and whether lines without a label are rare."""
        widths = sorted(len(row.text) for row in self.rows if row.kind in ("label", "text"))
        labels = sum(row.kind == "label" for row in self.rows)
        before = [
            len(previous.text)
            for previous, row in zip(self.rows, self.rows[1:], strict=False)
            if row.kind == "text" and previous.kind in ("label", "text")
        ]
        if not before:
            return False, True
        wide = widths[-1 - len(widths) // 50] * 7 // 10
        self.wide = wide
        wraps = len(before) > 2 and sum(width >= wide for width in before) * 10 >= 8 * len(before)
        return wraps, len(before) * 100 <= max(200, 3 * labels)

    def _firm(self) -> set[str]:
        """Labels that head a line which cannot be the rest of a wrapped one, and all names known before this file."""
        here: Counter[str] = Counter()
        firm = set(self.speakers.aliases)
        previous = BLANK
        for row in self.rows:
            if row.kind == "label" and row.match:
                key = name_key(row.match.name)
                here[key] += 1
                if (
                    previous.kind not in ("label", "text")
                    or previous.text[-1] in _FINAL
                    or len(previous.text) < self.wide
                ):
                    firm.add(key)
            previous = row
        return firm | {key for key, count in here.items() if self.speakers.counts[key] > count}

    def build(self) -> Script:
        """The script with its scenes; every line is in a scene, a heading, or listed as skipped."""
        gap = 0
        index = 0
        while index < len(self.rows):
            row = self.rows[index]
            number = index + 1
            index += 1
            if row.kind == "blank":
                gap += 1
                continue
            if gap > self.usual_gap and self.breaks_by_blank and self.scene and row.kind != "heading":
                self._close_scene()
            if row.kind == "heading":
                self._heading(row, number)
            elif row.kind == "label" and row.match and not (gap == 0 and self._is_wrapped_text(row.match)):
                self._flush()
                self.open, self.open_text, self.open_last = (row.match, number), row.match.speech, number
            elif row.kind == "direction":
                self._flush()
                self._direction(row.text[1:-1], number, number)
            elif row.kind == "note":
                self._flush()
                self._skip(number, number, "note", row.text)
            elif row.kind == "noise":
                self._flush()
                self._skip(number, number, "metadata", row.text)
            else:
                index = self._text(row.text, index - 1, gap)
            gap = 0
        self._flush()
        for scene in self.script.scenes:
            for speech in scene.speeches:
                for name in speech.speakers:
                    self.script.labels[name] += 1
                    self.script.first_lines.setdefault(name, speech.first)
        return self.script

    def _heading(self, row: Row, number: int) -> None:
        self._flush()
        heading = row.heading
        assert heading is not None
        if heading.kind == "scene":
            earlier = self.scene_of_key.get(heading.key) if heading.continued and heading.key else None
            scenes = self.script.scenes
            if earlier is not None and len(scenes) - earlier <= _RESUME_WITHIN:
                self.scene = scenes[earlier]
            else:
                self.scene = None
                opened = self._open_scene(heading.text, number)
                opened.key, opened.continues = heading.key, heading.continued
                self.scene_of_key[heading.key] = len(scenes) - 1
        else:
            self._close_scene()
            self.pending = heading.text

    def _close_scene(self) -> None:
        self._flush()
        self.scene = None

    def _open_scene(self, heading: str, number: int) -> Scene:
        scene = Scene(heading, number, number)
        self.script.scenes.append(scene)
        self.scene = scene
        return scene

    def _add(self, item: Speech | Direction) -> None:
        scene = self.scene or self._open_scene(self.pending, item.first)
        scene.items.append(item)
        scene.last = max(scene.last, item.last)

    def _skip(self, first: int, last: int, reason: str, text: str) -> None:
        self.script.skipped.append(Skipped(self.script.file, first, last, reason, text))

    def _text(self, text: str, at: int, gap: int) -> int:
        """A line without a label: the rest of a speech, a label with a slip, a direction, or narration.

        Returns the index of the next row.
        """
        number = at + 1
        held = self.open_text.rstrip() if self.open else ""
        unfinished = self.open is not None and (not held or held[-1] not in _ENDED)
        # A name alone may have its speech after a blank line; a speech goes on over one only where all lines have one.
        reach = (0 if held else 1) if self.name_line else self.usual_gap
        near = self.open is not None and gap <= reach
        wrapped = near and gap == 0 and (self.wraps or self.name_line)
        if not self.name_line and not (wrapped and unfinished):
            bare = strip_prefix(text)
            slip = match_slip(bare)
            if slip and slip.speech and self._is_slip(slip, bare):
                self._flush()
                self.open, self.open_text, self.open_last = (slip, number), slip.speech, number
                return at + 1
        if text[0] in OPENING and not any(mark in text for mark in CLOSING):
            end = self._direction_end(at)
            if end:
                self._flush()
                body = ""
                for row in self.rows[at : end + 1]:
                    body = join_lines(body, row.text)
                self._direction(squeeze(body)[1:-1], number, end + 1)
                return end + 1
        spoken = held or (self.open and gap == 0)
        about = not wrapped and not unfinished and self._starts_with_name(text)
        if near and (not held or wrapped or unfinished or (gap == 0 and spoken and self.rare and not about)):
            self.open_text = join_lines(self.open_text, text)
            self.open_last = number
        else:
            self._flush()
            self._skip(number, number, "unlabelled", text)
        return at + 1

    def _is_slip(self, slip: Match, bare: str) -> bool:
        """Whether a line begins with a speaker; behind a comma that must be beyond doubt, since it may address one."""
        mark = bare[: len(bare) - len(slip.speech)].rstrip()[-1:]
        sure = mark in ("；", ";") or slip.speech[0] in QUOTES
        return self.speakers.known(slip.name) if sure else self.speakers.frequent(slip.name)

    def _is_wrapped_text(self, match: Match) -> bool:
        """Whether a label that never stands elsewhere is the start of a wrapped line with a colon in it."""
        return (
            self.wraps
            and self.open is not None
            and len(self.rows[self.open_last - 1].text) >= self.wide
            and self.open_text[-1:] not in _FINAL
            and name_key(match.name) not in self.firm
        )

    def _starts_with_name(self, text: str) -> bool:
        """Whether ``text`` begins with somebody's name: then it tells what they do, and nobody says it."""
        return any(self.speakers.frequent(text[:size]) for size in (4, 3, 2) if len(text) > size)

    def _direction_end(self, at: int) -> int | None:
        """Index of the row where a direction over several lines ends."""
        for index in range(at + 1, min(at + _LONGEST_DIRECTION, len(self.rows))):
            row = self.rows[index]
            if row.kind != "text" or row.text[0] in OPENING:
                return None
            if row.text[-1] in CLOSING:
                return index
        return None

    def _direction(self, body: str, first: int, last: int) -> None:
        """A direction on its own lines; speech of known people inside it is theirs."""
        said = self._said_inside(body)
        for names, text in said:
            if names:
                self._add(Speech(names, text, text, first, last))
            elif text:
                self._add(Direction(text, first, last))

    def _said_inside(self, body: str) -> list[tuple[tuple[str, ...], str]]:
        """The content of brackets as (speakers, words); no speakers for what is a direction."""
        body = squeeze(body)
        marks = [match for match in _BESIDE.finditer(body) if self._is_someone(match[1])]
        if not marks:
            return [((), body)]
        found: list[tuple[tuple[str, ...], str]] = []
        if marks[0].start() > 0:
            found.append(((), body[: marks[0].start()]))
        for match, following in zip(marks, [*marks[1:], None], strict=True):
            words = body[match.end() : following.start() + 1 if following else None].strip(" ；;，,")
            spoken = "".join(text for bracketed, text in pieces(words)[0] if not bracketed).strip()
            if spoken:
                found.append((self._resolve(match[1]), unquote(spoken)))
        return found

    def _is_someone(self, name: str) -> bool:
        if is_narrator(name):
            return False
        return self.speakers.known(name) or len(self._resolve(name)) > 1 or bool(_NAME_LIKE.match(name))

    def _resolve(self, label: str) -> tuple[str, ...]:
        found = self.resolved.get(label)
        if found is None:
            found = self.resolved[label] = self.speakers.resolve(label)
        return found

    def _flush(self) -> None:
        """Complete the open speech: its directions taken out, what others say inside it given to them."""
        if self.open is None:
            return
        (match, first), text, last = self.open, squeeze(self.open_text), self.open_last
        self.open = None
        speakers = self._resolve(match.name)
        beat = f"（{match.beat}）" if match.beat else ""
        if not has_brackets(text):
            text = unquote(text)
            if text:
                self._add(Speech(speakers, text, beat + text, first, last))
            else:
                self._skip(first, last, "empty", f"{match.name}：{beat}")
            return
        parts, balanced = pieces(text)
        parts = unquote_parts([(bracketed, part if bracketed else part.strip()) for bracketed, part in parts])
        if not balanced:
            self._skip(first, last, "unbalanced", f"{match.name}：{text}")
        spoken, staged, silent = "", beat, True
        for bracketed, part in parts:
            if not bracketed:
                staged = join_lines(staged, part)
                # A mark that belonged to the direction before it: 好。（笑），去罢 is 好。去罢.
                if not spoken or spoken[-1] in _MARKS:
                    part = part.lstrip(_MARKS)
                spoken = join_lines(spoken, part)
                continue
            for names, words in self._said_inside(part):
                if not names:
                    staged += f"（{words}）"
                    continue
                silent = self._say(speakers, spoken, staged, first, last) and silent
                spoken, staged = "", ""
                self._add(Speech(names, words, words, first, last))
        silent = self._say(speakers, spoken, staged, first, last) and silent
        if silent and not spoken:
            self._skip(first, last, "empty", f"{match.name}：{text}")

    def _say(self, speakers: tuple[str, ...], spoken: str, staged: str, first: int, last: int) -> bool:
        """Add a speech if it has words; returns whether it had none."""
        spoken = spoken.strip()
        if spoken:
            self._add(Speech(speakers, spoken, staged.strip(), first, last))
        return not spoken
