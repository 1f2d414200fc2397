"""What a visitor's page remembers between two runs of its script."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import streamlit as st

from huanhuan.chat.cards import Card
from huanhuan.chat.conversation import (
    MOST_MESSAGE,
    MOST_REPLY,
    MOST_VERSIONS,
    Conversation,
    Full,
    Turn,
    Version,
    new_id,
)
from huanhuan.chat.desk import Desk
from huanhuan.chat.engine import EngineError, Reply, Sampling
from huanhuan.chat.filters import Filter
from huanhuan.chat.page.running import Running, Undo
from huanhuan.chat.page.visitors import AddressCap, address
from huanhuan.chat.transfer import Imported
from huanhuan.errors import UserError
from huanhuan.template import Message, clean

MOST_CONVERSATIONS = 50
MOST_IMPORTED = 20
# Letters of one visitor: all conversations and imported cards together.
MOST_WEIGHT = 4_000_000
DEFAULTS = Sampling()
SETTINGS: dict[str, float | int | bool] = {
    "temperature": float(DEFAULTS.temperature),
    "top_p": float(DEFAULTS.top_p),
    "length_limit": DEFAULTS.max_new_tokens,
    "speed": False,
}


@dataclass
class PageState:
    """Everything of one visitor.

    ``systems`` holds the system prompts that were changed, by persona; ``draft`` a message that could not be
    sent. ``key`` finds the page after a reload, for its ``owner``'s browser only (empty: a browser without
    cookies); ``holder`` is the session that shows it. ``editing`` and ``opened`` are turns whose text is being edited
    and whose buttons are shown. ``shown`` and ``drawn`` count turns: those asked for beyond
    the last ones, and those that stand on the page.
    """

    cards: dict[str, Card]
    conversations: list[Conversation]
    words: Filter
    addresses: AddressCap = field(default_factory=AddressCap)
    owner: str = ""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    holder: str = ""
    visitor: str = field(default_factory=new_id)
    place: int = 0
    systems: dict[str, str] = field(default_factory=dict)
    settings: dict[str, float | int | bool] = field(default_factory=SETTINGS.copy)
    language: str = ""
    running: Running | None = None
    problems: list[UserError] = field(default_factory=list)
    notice: tuple[str, dict[str, object]] | None = None
    undo: Undo | None = None
    editing: str | None = None
    opened: str | None = None
    draft: str = ""
    imports: int = 0
    shown: int = 0
    drawn: int = 0

    @property
    def conversation(self) -> Conversation:
        """The one that is open."""
        return self.conversations[self.place]

    @property
    def persona(self) -> Card:
        """The card of the open conversation."""
        return self.cards[self.conversation.persona]

    @property
    def system(self) -> str:
        """The system prompt in force: the persona's unless the visitor changed it."""
        return self.systems.get(self.conversation.persona, self.persona.system)

    @property
    def sampling(self) -> Sampling:
        """The settings in force."""
        kept = self.settings
        return Sampling(float(kept["temperature"]), float(kept["top_p"]), DEFAULTS.top_k, int(kept["length_limit"]))

    @property
    def weight(self) -> int:
        """What it takes to keep this page, in letters."""
        imported = (card for key, card in self.cards.items() if key.startswith("imported-"))
        cards = sum(len(card.picture) + sum(map(len, card.texts)) for card in imported)
        return cards + sum(each.weight for each in self.conversations)

    @property
    def worth_keeping(self) -> bool:
        """Whether anything was said or imported."""
        return len(self.conversations) > 1 or bool(self.conversation.turns)

    def note_settings(self) -> None:
        """Take over what the visitor has set: a click's callback runs before the script draws the settings."""
        for name in self.settings:
            value = st.session_state.get(name)
            if value is not None:
                self.settings[name] = value
        key = self.conversation.persona
        text = st.session_state.get(f"system-{key}")
        if isinstance(text, str):
            if text.strip() and text != self.persona.system:
                self.systems[key] = text
            else:
                self.systems.pop(key, None)

    def _begin(self, desk: Desk) -> None:
        """What every action begins with: a reply still being written is stopped and kept."""
        self.stop(desk)
        self.note_settings()
        self.problems, self.notice, self.undo, self.editing, self.opened = [], None, None, None, None

    # What is said.

    def send(self, desk: Desk, text: str) -> None:
        """Say ``text`` and start the reply to it. What cannot be said becomes the draft."""
        self._begin(desk)
        self._say(desk, text)

    def _say(self, desk: Desk, text: str) -> bool:
        """Whether a reply to ``text`` was begun."""
        text = clean(text[:MOST_MESSAGE])
        if not text:
            return False
        if self.words.blocked(text):
            self.draft, self.notice = text, ("blocked", {})
            return False
        try:
            self.conversation.say(text)
        except Full as full:
            self.draft, self.notice = text, _full(full)
            return False
        return self._answer(desk)

    def again(self, desk: Desk) -> None:
        """Start the reply to what the visitor said last, or another version of the last reply."""
        self._begin(desk)
        if self.conversation.turns:
            self._answer(desk)

    def _answer(self, desk: Desk) -> bool:
        conversation = self.conversation
        chosen = conversation.turns[-1].chosen
        try:
            turn = conversation.answer()
        except Full as full:
            self.notice = _full(full)
            return False
        return self._ask(desk, turn, conversation.messages(self.system, upto=turn.id), chosen)

    def go_on(self, desk: Desk) -> None:
        """Have the last reply continued where it ended."""
        self._begin(desk)
        conversation = self.conversation
        if not conversation.turns or conversation.unanswered:
            return
        turn = conversation.turns[-1]
        try:
            if len(turn.text) >= MOST_REPLY:
                raise Full("reply")
            conversation.check_room()
        except Full as full:
            self.notice = _full(full)
            return
        self._ask(desk, turn, conversation.messages(self.system), turn.chosen, replace(turn.version))

    def _ask(
        self, desk: Desk, turn: Turn, messages: Sequence[Message], chosen: int, earlier: Version | None = None
    ) -> bool:
        running = Running(Reply(), self.conversation, turn, turn.version, chosen, earlier)
        try:
            if self.weight > MOST_WEIGHT:
                self.notice = ("full_page", {})
            elif self.words.blocked(self.system):
                self.notice = ("blocked_system", {})
            else:
                where = address() if self.addresses.hourly else ""
                self.addresses.check(where)
                running.reply = desk.ask(self.visitor, messages, self.sampling)
                self.addresses.count(where)
                self.running = running
        except EngineError as error:
            self.problems = [error]
        if self.running is None and earlier is None:
            running.withdraw()
        return self.running is not None

    def stop(self, desk: Desk) -> None:
        """End the running reply, if any, and keep what was said."""
        if self.running:
            self.running.reply.stop()
            self.finish(desk)

    def note(self, desk: Desk) -> None:
        """Write down what the running reply has said so far, for an export in the middle of it."""
        if self.running:
            self.running.settle(desk.engine.model, self.words)

    def finish(self, desk: Desk) -> None:
        """Note down the running reply, which has ended."""
        running, self.running = self.running, None
        if not running:
            return
        running.settle(desk.engine.model, self.words)
        if running.reply.error:
            self.problems = [running.reply.error]
        if running.reply.dropped:
            self.notice = ("dropped", {})
        if not running.version.text:
            running.withdraw()

    # What was said.

    def edit(self, desk: Desk, turn_id: str, text: str) -> None:
        """Say something else in this turn's place; what followed it is dropped, and can be had back.

        If it cannot be sent, nothing changes and the editor stays open.
        """
        self._begin(desk)
        before = Undo.of(self.conversation, self.place)
        if clean(text):
            if not self.words.blocked(text):
                self.conversation.cut(turn_id)
            if self._say(desk, text):
                self.undo = before
                return
        before.restore()
        self.draft, self.editing = "", turn_id

    def rewrite(self, desk: Desk, turn_id: str, text: str) -> None:
        """Have the character have said something else: another version of this turn."""
        self._begin(desk)
        turn = self.conversation.turns[self.conversation.index(turn_id)]
        text = clean(text[:MOST_REPLY])
        if not text or text == turn.text:
            return
        try:
            self.conversation.check_room()
            if self.words.blocked(text):
                self.notice, self.editing = ("blocked", {}), turn_id
            else:
                turn.add(Version(text, "edited"))
        except Full as full:
            self.notice, self.editing = _full(full), turn_id

    def delete(self, desk: Desk, turn_id: str) -> None:
        """Drop an exchange; it can be had back."""
        self._begin(desk)
        before = Undo.of(self.conversation, self.place)
        self.conversation.delete(turn_id)
        self.undo = before

    def take_back(self, desk: Desk) -> None:
        """Undo what was dropped last."""
        undo = self.undo
        self._begin(desk)
        if not undo:
            return
        undo.restore()
        if not any(each is undo.conversation for each in self.conversations):
            self.conversations.insert(undo.place, undo.conversation)
        self.place = next(i for i, each in enumerate(self.conversations) if each is undo.conversation)

    def greet(self, step: int) -> None:
        """Open the conversation with the next or the previous greeting of the card."""
        conversation = self.conversation
        conversation.greeting = min(max(conversation.greeting + step, 0), len(self.persona.greetings) - 1)

    # Conversations and personas.

    def open(self, desk: Desk, place: int) -> None:
        """Show another conversation."""
        self._begin(desk)
        self.place, self.shown = place, 0

    def start(self, desk: Desk, key: str | None = None) -> None:
        """Begin a conversation with persona ``key``, by default the same; an unused one is taken again."""
        self._start(desk, key or self.conversation.persona)

    def _start(self, desk: Desk, key: str) -> bool:
        """Whether there was room for a conversation with ``key``."""
        unused = next((i for i, each in enumerate(self.conversations) if not each.turns and each.persona == key), None)
        if unused is None:
            if not self._room_for_another(desk):
                return False
            self.conversations.append(Conversation(key))
            unused = len(self.conversations) - 1
        self.open(desk, unused)
        return True

    def _room_for_another(self, desk: Desk) -> bool:
        self._begin(desk)
        if len(self.conversations) < MOST_CONVERSATIONS:
            return True
        self.notice = ("full_conversations", {"most": MOST_CONVERSATIONS})
        return False

    def forget(self, desk: Desk) -> None:
        """Delete the open conversation; it can be had back."""
        self._begin(desk)
        before = Undo.of(self.conversation, self.place)
        del self.conversations[self.place]
        if not self.conversations:
            self.conversations = [Conversation(before.conversation.persona)]
        self.place, self.shown, self.undo = max(self.place - 1, 0), 0, before

    def adopt(self, desk: Desk, card: Card) -> None:
        """Add an imported card and begin a conversation with it."""
        self._begin(desk)
        key = self._key_of(card, card.system)
        if key and self._start(desk, key):
            self.notice = ("imported", {"name": card.name})

    def take(self, desk: Desk, imported: Imported) -> None:
        """Add an imported conversation, with the character it was held with, and show it."""
        if not self._room_for_another(desk):
            return
        conversation = imported.conversation
        said = [each.text for turn in conversation.turns if turn.role == "user" for each in turn.versions]
        if any(map(self.words.blocked, (conversation.title, *said))):
            self.notice = ("blocked_import", {})
            return
        if self.weight + conversation.weight > MOST_WEIGHT:
            self.notice = ("full_page", {})
            return
        key = self._known(imported) or self._key_of(imported.card or self.persona, imported.system)
        if not key:
            return
        conversation.persona = key
        for turn in conversation.turns:
            if turn.role == "assistant":
                for version in turn.versions:
                    version.text = self.words.masked(version.text)
        self.conversations.append(conversation)
        self.open(desk, len(self.conversations) - 1)
        self.notice = ("imported", {"name": conversation.title or self.persona.name})

    def _known(self, imported: Imported) -> str | None:
        """The persona that an imported conversation was held with, if it is here and says the same."""
        card, wanted = imported.card, imported.conversation.persona
        for key in sorted(self.cards, key=lambda each: each != wanted):
            here = self.cards[key]
            same = card and (here.texts == card.texts if imported.whole else here.name == card.name)
            if same and self.systems.get(key, here.system) == imported.system:
                return key
        return None

    def _key_of(self, card: Card, system: str) -> str | None:
        """The key under which an imported card is kept from now on; None if it may not be or there are too many."""
        if any(map(self.words.blocked, (*card.texts, system))):
            self.notice = ("blocked_import", {})
            return None
        ours = [key for key in self.cards if key.startswith("imported-")]
        if len(ours) >= MOST_IMPORTED:
            used = {each.persona for each in self.conversations}
            free = next((key for key in ours if key not in used), None)
            if free is None:
                self.notice = ("full_cards", {"most": MOST_IMPORTED})
                return None
            del self.cards[free]
            self.systems.pop(free, None)
        key = f"imported-{self.imports}"
        self.cards[key] = card
        if system and system != card.system:
            self.systems[key] = system
        return key


def _full(full: Full) -> tuple[str, dict[str, object]]:
    return {
        "versions": ("full_versions", {"most": MOST_VERSIONS}),
        "reply": ("full_reply", {}),
    }.get(full.what, ("full_conversation", {}))
