"""A conversation as a page keeps it: turns, and every version of each reply."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Literal

from huanhuan.template import Message, clean

MOST_VERSIONS = 20
MOST_TURNS = 2000
MOST_MESSAGE = 2000
MOST_REPLY = 20_000
# Letters of a whole conversation. Each version counts for more than its text, so that this bounds a file too.
MOST_WEIGHT = 400_000
VERSION_WEIGHT = 100


def new_id() -> str:
    """A short identifier for a turn or a conversation."""
    return secrets.token_hex(6)


class Full(Exception):
    """Something can grow no further; ``what`` says what it is."""

    def __init__(self, what: Literal["versions", "turns", "letters", "reply"]) -> None:
        super().__init__(what)
        self.what = what


@dataclass
class Version:
    """One wording of a turn; the times are in seconds.

    ``finish`` says how it ended: as a reply does (``huanhuan.chat.engine.Reply``), with "error", or "edited" if
    the visitor wrote it in the character's place.
    """

    text: str
    finish: str = "stop"
    model: str = ""
    tokens: int = 0
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None


@dataclass
class Turn:
    """What one side said, in one or more versions; ``chosen`` is the one that counts."""

    role: Literal["user", "assistant"]
    versions: list[Version]
    chosen: int = 0
    id: str = field(default_factory=new_id)

    @property
    def version(self) -> Version:
        """The version that counts."""
        return self.versions[self.chosen]

    @property
    def text(self) -> str:
        """The text of the version that counts."""
        return self.version.text

    def flip(self, step: int) -> None:
        """Choose the next or the previous version; the ends do not wrap around."""
        self.chosen = min(max(self.chosen + step, 0), len(self.versions) - 1)

    def add(self, version: Version) -> None:
        """Add a version and choose it. Raises: Full if there are too many."""
        if len(self.versions) >= MOST_VERSIONS:
            raise Full("versions")
        self.versions.append(version)
        self.chosen = len(self.versions) - 1


@dataclass
class Conversation:
    """What the visitor and the character say in turn.

    ``persona`` is the key of the card it was started with; ``greeting`` is which of its greetings opened it:
    shown, never sent to the model. What the visitor said last may be unanswered; nothing else may be.
    """

    persona: str
    title: str = ""
    turns: list[Turn] = field(default_factory=list)
    greeting: int = 0
    id: str = field(default_factory=new_id)

    @property
    def weight(self) -> int:
        """What it takes to keep this conversation, in letters."""
        return sum(
            len(version.text) + len(version.model) + VERSION_WEIGHT for turn in self.turns for version in turn.versions
        )

    @property
    def unanswered(self) -> bool:
        """Whether the visitor spoke last."""
        return bool(self.turns) and self.turns[-1].role == "user"

    def check_room(self, *, message: bool = False) -> None:
        """Raises: Full unless the longest reply still fits, after the longest message if there is one to come."""
        reply, said = MOST_REPLY + 2 * VERSION_WEIGHT, MOST_MESSAGE + 2 * VERSION_WEIGHT
        if self.weight + reply + message * said > MOST_WEIGHT:
            raise Full("letters")
        if len(self.turns) + 1 + message > MOST_TURNS:
            raise Full("turns")

    def say(self, text: str) -> Turn:
        """Add what the visitor says; the first sentence names the conversation.

        After a message that nobody answered it becomes another version of that message: the model is to
        hear one at a time, and the earlier one can be flipped back to.

        Raises: Full if there is no room for it.
        """
        self.check_room(message=True)
        if self.unanswered:
            turn = self.turns[-1]
            turn.add(Version(text))
        else:
            turn = Turn("user", [Version(text)])
            self.turns.append(turn)
        if not self.title:
            line = " ".join(text.split())
            self.title = line if len(line) <= 20 else line[:19] + "…"
        return turn

    def answer(self) -> Turn:
        """The turn that the next reply goes to: a new one, or a new version of the last one.

        Raises: Full if there is no room for it.
        """
        self.check_room()
        if self.turns and not self.unanswered:
            turn = self.turns[-1]
            turn.add(Version(""))
            return turn
        turn = Turn("assistant", [Version("")])
        self.turns.append(turn)
        return turn

    def index(self, turn_id: str) -> int:
        """Where a turn stands. Raises: KeyError if it is gone."""
        for number, turn in enumerate(self.turns):
            if turn.id == turn_id:
                return number
        raise KeyError(turn_id)

    def cut(self, turn_id: str) -> None:
        """Forget this turn and everything after it."""
        del self.turns[self.index(turn_id) :]

    def delete(self, turn_id: str) -> None:
        """Forget an exchange: this turn with the reply to it, or with what it replies to."""
        place = self.index(turn_id)
        answers = self.turns[place].role == "assistant" and place > 0 and self.turns[place - 1].role == "user"
        first = place - 1 if answers else place
        last = place if answers else place + 1
        if last < len(self.turns) and self.turns[last].role == "assistant":
            last += 1
        del self.turns[first:last]

    def messages(self, system: str, upto: str | None = None) -> list[Message]:
        """What is sent to the model: the system prompt and the chosen texts, up to turn ``upto`` exclusive.

        The texts alternate, the visitor's first, whatever the turns do: a reply without text is left out with
        what it replied to, and two messages of one side in a row are joined.
        """
        end = len(self.turns) if upto is None else self.index(upto)
        messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        kept: list[Message] = []
        for turn in self.turns[:end]:
            last = kept[-1]["role"] if kept else "assistant"
            if not clean(turn.text):
                if turn.role == "assistant" and last == "user":
                    kept.pop()
            elif turn.role != last:
                kept.append({"role": turn.role, "content": turn.text})
            elif kept:
                kept[-1] = {"role": last, "content": f"{kept[-1]['content']}\n{turn.text}"}
        return messages + kept
