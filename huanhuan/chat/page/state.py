"""What a visitor's page remembers between two runs of its script."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field

import streamlit as st

from huanhuan.chat import personas
from huanhuan.chat.conversation import Conversation, Turn, Version, new_id
from huanhuan.chat.desk import Desk
from huanhuan.chat.engine import EngineError, Reply, Sampling
from huanhuan.chat.filters import Filter, chosen_filter
from huanhuan.chat.service import Service
from huanhuan.errors import UserError
from huanhuan.persona import Persona

logger = logging.getLogger("huanhuan.chat")

MOST_CONVERSATIONS = 50
MOST_IMPORTED = 20
MOST_LETTERS = 2000
DEFAULTS = Sampling()


@dataclass
class Running:
    """A reply being written and the version it belongs to; outlives any click of the visitor.

    ``before`` is the text that a continued reply goes on from.
    """

    reply: Reply
    conversation: Conversation
    turn: Turn
    version: Version
    before: str = ""

    def settle(self, model: str, words: Filter) -> None:
        """Write down what has been said so far and how it went."""
        version, reply = self.version, self.reply
        version.text = words.masked(self.before + reply.text)
        version.model = model
        version.tokens = reply.tokens
        version.first_token_seconds = reply.first_token_seconds
        version.tokens_per_second = reply.tokens_per_second
        version.finish = "error" if reply.error else reply.finish or "stopped"


@dataclass
class PageState:
    """Everything of one visitor. ``systems`` holds the system prompts that were changed, by persona."""

    cards: dict[str, Persona]
    conversations: list[Conversation]
    words: Filter
    visitor: str = field(default_factory=new_id)
    place: int = 0
    systems: dict[str, str] = field(default_factory=dict)
    sampling: Sampling = DEFAULTS
    running: Running | None = None
    problems: list[UserError] = field(default_factory=list)
    notice: tuple[str, dict[str, object]] | None = None
    editing: str | None = None
    imports: int = 0

    @property
    def conversation(self) -> Conversation:
        """The one that is open."""
        return self.conversations[self.place]

    @property
    def persona(self) -> Persona:
        """The card of the open conversation."""
        return self.cards[self.conversation.persona]

    @property
    def system(self) -> str:
        """The system prompt in force: the persona's unless the visitor changed it."""
        return self.systems.get(self.conversation.persona, self.persona.system)

    # What is said.

    def send(self, desk: Desk, text: str) -> None:
        """Say ``text`` and start the reply to it. A reply still being written is stopped and kept."""
        self.stop(desk)
        self.problems, self.notice, self.editing = [], None, None
        text = text[:MOST_LETTERS].strip()
        if not text:
            return
        if self.words.blocked(text):
            self.notice = ("blocked", {})
            return
        self.conversation.say(text)
        self.again(desk)

    def again(self, desk: Desk) -> None:
        """Start the reply to what the visitor said last, or another version of the last reply."""
        self.stop(desk)
        self.problems = []
        conversation = self.conversation
        turn = conversation.answer()
        self._ask(desk, turn, conversation.messages(self.system, upto=turn.id))

    def go_on(self, desk: Desk) -> None:
        """Have the last reply continued where it ended."""
        self.stop(desk)
        self.problems = []
        turn = self.conversation.turns[-1]
        self._ask(desk, turn, self.conversation.messages(self.system), before=turn.text)

    def _ask(self, desk: Desk, turn: Turn, messages: list, before: str = "") -> None:  # type: ignore[type-arg]
        try:
            reply = desk.ask(self.visitor, messages, self.sampling)
        except EngineError as error:
            self.problems = [error]
            if not before:
                self._drop_empty(self.conversation, turn)
            return
        self.running = Running(reply, self.conversation, turn, turn.version, before)

    def stop(self, desk: Desk) -> None:
        """End the running reply, if any, and keep what was said."""
        if self.running:
            self.running.reply.stop()
            self.finish(desk)

    def finish(self, desk: Desk) -> None:
        """Note down the running reply, which has ended."""
        if not self.running:
            return
        running, self.running = self.running, None
        running.settle(desk.engine.model, self.words)
        if running.reply.error:
            self.problems = [running.reply.error]
        if running.reply.dropped:
            self.notice = ("dropped", {})
        if not running.version.text:
            self._drop_empty(running.conversation, running.turn)

    @staticmethod
    def _drop_empty(conversation: Conversation, turn: Turn) -> None:
        """Forget a version that nothing was said in, and the turn if it was the only one."""
        if turn.version.text:
            return
        del turn.versions[turn.chosen]
        turn.chosen = max(turn.chosen - 1, 0)
        if not turn.versions and turn in conversation.turns:
            conversation.turns.remove(turn)

    def edit(self, desk: Desk, turn_id: str, text: str) -> None:
        """Say something else in this turn's place; what followed it is forgotten."""
        self.stop(desk)
        if not text.strip() or self.words.blocked(text):
            self.notice = ("blocked", {}) if text.strip() else None
            return
        self.conversation.cut(turn_id)
        self.send(desk, text)

    def delete(self, desk: Desk, turn_id: str) -> None:
        """Forget an exchange."""
        self.stop(desk)
        self.conversation.delete(turn_id)
        self.problems = []

    # Conversations and personas.

    def open(self, desk: Desk, place: int) -> None:
        """Show another conversation."""
        self.stop(desk)
        self.place, self.editing, self.problems, self.notice = place, None, [], None

    def start(self, desk: Desk, key: str | None = None) -> None:
        """Begin a conversation with persona ``key``, by default the same; an unused one is taken again."""
        key = key or self.conversation.persona
        unused = next((i for i, each in enumerate(self.conversations) if not each.turns and each.persona == key), None)
        if unused is None:
            if len(self.conversations) >= MOST_CONVERSATIONS:
                del self.conversations[0]
            self.conversations.append(Conversation(key))
            unused = len(self.conversations) - 1
        self.open(desk, unused)

    def forget(self, desk: Desk) -> None:
        """Delete the open conversation."""
        self.stop(desk)
        key = self.conversation.persona
        del self.conversations[self.place]
        self.place = max(self.place - 1, 0)
        if not self.conversations:
            self.conversations = [Conversation(key)]
        self.open(desk, self.place)

    def adopt(self, desk: Desk, card: Persona) -> None:
        """Add an imported persona and begin a conversation with it."""
        ours = [key for key in self.cards if key.startswith("imported-")]
        if len(ours) >= MOST_IMPORTED:
            used = {each.persona for each in self.conversations}
            for key in [key for key in ours if key not in used][:1]:
                del self.cards[key]
        key = f"imported-{self.imports}"
        self.cards[key] = card
        self.start(desk, key)
        self.notice = ("imported", {"name": card.name})

    def take(self, desk: Desk, conversation: Conversation) -> None:
        """Add an imported conversation and show it."""
        if conversation.persona not in self.cards:
            conversation.persona = self.conversation.persona
        if len(self.conversations) >= MOST_CONVERSATIONS:
            del self.conversations[0]
        self.conversations.append(conversation)
        self.open(desk, len(self.conversations) - 1)
        self.notice = ("imported", {"name": conversation.title or self.persona.name})


@st.cache_resource(show_spinner=False)
def service() -> Service:
    """The engine of this process and the queue before it."""
    return Service()


def page_state() -> PageState:
    """The visitor's state, made at the first run of the script.

    Raises: UserError if there is no persona or the word list is wrong.
    """
    if "page" not in st.session_state:
        cards, problems = personas.load_personas()
        for line in problems:
            logger.warning("%s", line)
        st.session_state.page = PageState(cards, [Conversation(next(iter(cards)))], chosen_filter())
    return st.session_state.page


def file_name(text: str) -> str:
    """``text`` as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", text).strip("_")[:40] or "huanhuan"
