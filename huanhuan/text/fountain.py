"""Screenplays: Fountain files, and the same conventions in plain text (https://fountain.io/syntax)."""

from __future__ import annotations

import re
from collections import Counter

from huanhuan.text.clean import CLOSING, OPENING, join_lines, pieces, squeeze, unquote_parts
from huanhuan.text.headings import Heading, read_heading
from huanhuan.text.labels import Match, Speakers, match_lone, name_key
from huanhuan.text.model import Direction, Scene, Script, Skipped, Speech

_TITLE = re.compile(r"[A-Za-z][A-Za-z ]{1,30}:(?:\s|$)")
_TRANSITION = re.compile(r"(?:[A-Z .]+ TO|FADE (?:IN|OUT)|CUT|DISSOLVE|THE END|FADE TO BLACK)[:.]?$")
_EMPHASIS = re.compile(r"(?<!\\)(\*{1,3}|_)(?=\S)([^*_\n]+?)(?<=\S)(?<!\\)\1")
_UPPER = re.compile(r"[A-Z]")
_LOWER = re.compile(r"[a-z]")


def character_cue(line: str) -> Match | None:
    """The character cue that ``line`` is, whatever stands around it; ``@`` forces one.

    >>> character_cue("MARY (V.O.) (CONT'D) ^")
    Match(name='MARY', beat='', speech='')
    """
    text = line.strip()
    forced = text.startswith("@")
    text = text.lstrip("@").rstrip("^ ").strip()
    name = re.split(r"[(（]", text, maxsplit=1)[0]
    # McCLANE and the like: what counts is that the name is not written as prose is.
    if not forced and (not _UPPER.search(name) or len(_LOWER.findall(name)) > 2):
        return None
    if not forced and (_TRANSITION.match(text) or text[-1:] in ".!?:,"):
        return None
    return match_lone(text)


def parse_fountain(script: Script, lines: list[str], speakers: Speakers) -> Script:
    """Fill ``script`` with the scenes of a screenplay; action is a direction."""
    return _Reader(script, _without_notes(lines, script), speakers).read()


def _without_notes(lines: list[str], script: Script) -> list[str]:
    """The lines without ``/* … */`` and ``[[ … ]]``, which may go over several lines; their number stays."""
    found: list[str] = []
    closing = ""
    for number, line in enumerate(lines, 1):
        kept = ""
        rest = line
        cut = bool(closing)
        while rest:
            if closing:
                _, mark, rest = rest.partition(closing)
                closing = "" if mark else closing
                continue
            starts = [(at, mark) for mark in ("/*", "[[") if (at := rest.find(mark)) >= 0]
            if not starts:
                kept += rest
                break
            at, mark = min(starts)
            kept, rest, closing, cut = kept + rest[:at], rest[at + 2 :], "*/" if mark == "/*" else "]]", True
        if cut and not kept.strip() and line.strip():
            script.skipped.append(Skipped(script.file, number, number, "note", line.strip()))
            # A line that held nothing else must not end the dialogue it stands in.
            kept = _REMOVED
        found.append(kept)
    return found


_REMOVED = "\0"


class _Reader:
    def __init__(self, script: Script, lines: list[str], speakers: Speakers) -> None:
        self.script = script
        self.lines = [line.rstrip() for line in lines]
        self.speakers = speakers
        self.scene: Scene | None = None
        self.pending = ""

    def read(self) -> Script:
        """Walk the lines; every one is in a scene, a heading, or listed as skipped."""
        at = self._title_page()
        while at < len(self.lines):
            at = self._element(at)
        counts: Counter[str] = Counter()
        for scene in self.script.scenes:
            for speech in scene.speeches:
                for name in speech.speakers:
                    counts[name_key(name)] += 1
        self.speakers.add(counts)
        for scene in self.script.scenes:
            for speech in scene.speeches:
                if len(speech.speakers) == 1:
                    speech.speakers = self.speakers.resolve(speech.speakers[0])
                for name in speech.speakers:
                    self.script.labels[name] += 1
                    self.script.first_lines.setdefault(name, speech.first)
        return self.script

    def _title_page(self) -> int:
        start = next((at for at, line in enumerate(self.lines) if line.strip()), len(self.lines))
        if start == len(self.lines) or not _TITLE.match(self.lines[start].strip()) or read_heading(self.lines[start]):
            return 0
        if _TRANSITION.match(self.lines[start].strip()):
            return 0
        end = next((at for at in range(start, len(self.lines)) if not self.lines[at].strip()), len(self.lines))
        if not any(_TITLE.match(self.lines[at].strip()) for at in range(start, end)):
            return 0
        for at in range(start, end):
            self._skip(at, "metadata", self.lines[at].strip())
        return end

    def _element(self, at: int) -> int:
        """Take the element that starts at ``at``; returns where the next one does."""
        text = self.lines[at].strip()
        alone = at == 0 or not self.lines[at - 1].strip()
        if not text or text == _REMOVED:
            return at + 1
        heading = self._heading(text)
        if heading:
            self._divide(heading, at + 1)
        elif text[0] in "=~" or text[0] == ">" or (alone and _TRANSITION.match(text)):
            self._skip(at, "note", text)
        elif (alone or text[0] == "@") and at + 1 < len(self.lines) and self.lines[at + 1].strip():
            cue = character_cue(text)
            if cue:
                return self._dialogue(cue, at)
            self._action(text, at)
        else:
            self._action(text, at)
        return at + 1

    @staticmethod
    def _heading(text: str) -> Heading | None:
        if text[0] == "." and len(text) > 1 and text[1] not in ". ":
            return Heading("scene", text[1:].strip(), "", False)
        if text[0] == "#":
            return Heading("episode", text.lstrip("# "), "", False)
        if text.startswith("==="):
            return None
        return read_heading(text)

    def _divide(self, heading: Heading, number: int) -> None:
        self.scene = None
        self.pending = heading.text
        if heading.kind == "scene":
            self.scene = Scene(heading.text, number, number, key=heading.key)
            self.script.scenes.append(self.scene)

    def _dialogue(self, cue: Match, at: int) -> int:
        """A cue and the lines below it, down to the next blank one."""
        first = at + 1
        at += 1
        parts: list[tuple[bool, str]] = [(True, cue.beat)] if cue.beat else []
        # A line of two blanks keeps a dialogue open: clean lines were stripped at their ends, so it ends there.
        while at < len(self.lines) and self.lines[at].strip():
            text = squeeze(_EMPHASIS.sub(r"\2", self.lines[at].strip()).lstrip("~"))
            if text in ("", _REMOVED):
                pass
            elif text[0] in OPENING and text[-1] in CLOSING:
                parts.append((True, text[1:-1].strip()))
            else:
                parts += [(bracketed, part.strip()) for bracketed, part in pieces(text)[0]]
            at += 1
        spoken, staged = _joined(parts)
        if spoken:
            self._add(Speech((cue.name,), spoken, staged, first, at))
        else:
            self.script.skipped.append(Skipped(self.script.file, first, at, "empty", f"{cue.name}：{staged}"))
        return at

    def _action(self, text: str, at: int) -> None:
        self._add(Direction(squeeze(_EMPHASIS.sub(r"\2", text.lstrip("!")).strip("（）()")), at + 1, at + 1))

    def _add(self, item: Speech | Direction) -> None:
        if self.scene is None:
            self.scene = Scene(self.pending, item.first, item.last)
            self.script.scenes.append(self.scene)
        self.scene.items.append(item)
        self.scene.last = max(self.scene.last, item.last)

    def _skip(self, at: int, reason: str, text: str) -> None:
        self.script.skipped.append(Skipped(self.script.file, at + 1, at + 1, reason, text))


def _joined(parts: list[tuple[bool, str]]) -> tuple[str, str]:
    """What is spoken, and the same with its directions."""
    spoken = staged = ""
    for bracketed, part in unquote_parts(parts):
        if bracketed:
            staged += f"（{part}）"
        else:
            spoken, staged = join_lines(spoken, part), join_lines(staged, part)
    return spoken, staged
