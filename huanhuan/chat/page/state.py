"""What a visitor's page remembers between two runs of its script."""

from __future__ import annotations

from dataclasses import dataclass, field

import streamlit as st

from huanhuan.chat.conversation import Conversation, Turn, Version
from huanhuan.chat.engine import Engine, EngineError, Reply, Sampling
from huanhuan.chat.service import Service
from huanhuan.paths import DATA
from huanhuan.persona import Persona, load_persona


@dataclass
class Running:
    """A reply being written and the turn it belongs to; outlives any click of the visitor."""

    reply: Reply
    conversation: Conversation
    turn: Turn
    version: Version

    def settle(self, model: str) -> None:
        """Write down what has been said so far and how it went."""
        self.version.text = self.reply.text
        self.version.model = model
        self.version.tokens = self.reply.tokens
        self.version.first_token_seconds = self.reply.first_token_seconds
        self.version.tokens_per_second = self.reply.tokens_per_second
        self.version.finish = "error" if self.reply.error else self.reply.finish or "stopped"


@dataclass
class PageState:
    """Everything of one visitor."""

    persona: Persona
    conversation: Conversation
    sampling: Sampling = field(default_factory=Sampling)
    running: Running | None = None
    error: EngineError | None = None

    def send(self, engine: Engine, text: str) -> None:
        """Say ``text`` and start the reply to it. A reply still being written is stopped and kept."""
        self.stop(engine)
        self.conversation.say(text)
        self.ask(engine)

    def ask(self, engine: Engine) -> None:
        """Start the reply to what the visitor said last, or another version of the last reply."""
        self.error = None
        turn = self.conversation.answer()
        messages = self.conversation.messages(self.persona.system, upto=turn.id)
        try:
            reply = engine.reply(messages, self.sampling)
        except EngineError as error:
            self.error = error
            self.conversation.cut(turn.id)
            return
        self.running = Running(reply, self.conversation, turn, turn.version)

    def stop(self, engine: Engine) -> None:
        """End the running reply, if any, and keep what was said."""
        if self.running:
            self.running.reply.stop()
            self.finish(engine)

    def finish(self, engine: Engine) -> None:
        """Note down the running reply, which has ended."""
        if not self.running:
            return
        running, self.running = self.running, None
        running.settle(engine.model)
        self.error = running.reply.error
        if not running.version.text and len(running.turn.versions) == 1 and running.turn in running.conversation.turns:
            running.conversation.cut(running.turn.id)


@st.cache_resource(show_spinner=False)
def service() -> Service:
    """The engine of this process."""
    return Service()


def page_state() -> PageState:
    """The visitor's state, made at the first run of the script."""
    if "page" not in st.session_state:
        persona = load_persona(DATA / "huanhuan" / "persona.toml")
        st.session_state.page = PageState(persona, Conversation("huanhuan"))
    return st.session_state.page
