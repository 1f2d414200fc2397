"""A conversation as a page keeps it: turns, and every version of each reply."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Literal

from huanhuan.template import Message


def new_id() -> str:
    """A short identifier for a turn or a conversation."""
    return secrets.token_hex(6)


@dataclass
class Version:
    """One wording of a turn; ``finish`` says how a reply ended, "error" included; the times are in seconds."""

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


@dataclass
class Conversation:
    """Turns that alternate from the visitor to the character.

    ``persona`` is the key of the card it was started with; its greeting is shown, never sent to the model.
    """

    persona: str
    title: str = ""
    turns: list[Turn] = field(default_factory=list)
    id: str = field(default_factory=new_id)

    def say(self, text: str) -> Turn:
        """Add what the visitor says; the first sentence names the conversation."""
        turn = Turn("user", [Version(text)])
        self.turns.append(turn)
        if not self.title:
            line = " ".join(text.split())
            self.title = line if len(line) <= 20 else line[:19] + "…"
        return turn

    def answer(self) -> Turn:
        """The turn that the next reply goes to: a new one, or a new version of the last one."""
        if self.turns and self.turns[-1].role == "assistant":
            turn = self.turns[-1]
            turn.versions.append(Version(""))
            turn.chosen = len(turn.versions) - 1
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
        first = place if self.turns[place].role == "user" or not place else place - 1
        last = first + 1
        if last < len(self.turns) and self.turns[last].role == "assistant":
            last += 1
        del self.turns[first:last]

    def messages(self, system: str, upto: str | None = None) -> list[Message]:
        """What is sent to the model: the system prompt and the chosen texts, up to turn ``upto`` exclusive.

        A turn without text, such as a reply that failed at once, is left out with what it replied to.
        """
        end = len(self.turns) if upto is None else self.index(upto)
        messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
        kept: list[Message] = []
        for turn in self.turns[:end]:
            if turn.role == "assistant" and not turn.text.strip():
                if kept and kept[-1]["role"] == "user":
                    kept.pop()
            else:
                kept.append({"role": turn.role, "content": turn.text})
        return messages + kept
