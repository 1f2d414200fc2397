"""A reply being written, and a conversation as it was before something was dropped."""

from __future__ import annotations

from dataclasses import dataclass

from huanhuan.chat.conversation import MOST_REPLY, Conversation, Turn, Version
from huanhuan.chat.engine import Reply
from huanhuan.chat.filters import Filter
from huanhuan.template import clean


@dataclass
class Running:
    """A reply being written and the version it belongs to; outlives any click of the visitor.

    A continued reply goes on from ``earlier``, a copy of the version as it was; ``chosen`` is the version that
    counted before.
    """

    reply: Reply
    conversation: Conversation
    turn: Turn
    version: Version
    chosen: int = 0
    earlier: Version | None = None

    @property
    def text(self) -> str:
        """What was said so far, the beginning of a continued reply included."""
        return (self.earlier.text if self.earlier else "") + self.reply.text

    def settle(self, model: str, words: Filter) -> None:
        """Write down what has been said so far and how it went; a continuation without a word changes nothing."""
        version, reply, earlier = self.version, self.reply, self.earlier
        if earlier and not reply.text:
            return
        text = clean(words.masked(self.text))
        version.text = text[:MOST_REPLY]
        version.model = model[:100]
        version.tokens = reply.tokens + (earlier.tokens if earlier else 0)
        version.first_token_seconds = reply.first_token_seconds
        version.tokens_per_second = reply.tokens_per_second
        version.finish = "error" if reply.error else reply.finish or "stopped"
        if len(text) > MOST_REPLY:
            version.finish = "length"

    def withdraw(self) -> None:
        """Forget the version, in which nothing was said, and the turn if it was the only one."""
        turn, turns = self.turn, self.conversation.turns
        turn.versions[:] = [each for each in turn.versions if each is not self.version]
        turn.chosen = min(self.chosen, max(len(turn.versions) - 1, 0))
        if not turn.versions:
            turns[:] = [each for each in turns if each is not turn]


@dataclass
class Undo:
    """A conversation as it was before something in it, or all of it, was dropped."""

    conversation: Conversation
    turns: list[Turn]
    title: str
    place: int

    @classmethod
    def of(cls, conversation: Conversation, place: int) -> Undo:
        """How ``conversation`` is now."""
        return cls(conversation, list(conversation.turns), conversation.title, place)

    def restore(self) -> None:
        """Give the conversation its turns back."""
        self.conversation.turns[:] = self.turns
        self.conversation.title = self.title
