"""Whose page it is: the service that all visitors share, and the state that a session or a reload finds again."""

from __future__ import annotations

import functools
import logging

import streamlit as st
from streamlit.runtime import Runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from huanhuan.chat import personas
from huanhuan.chat.cards import Card
from huanhuan.chat.conversation import Conversation
from huanhuan.chat.page.shelf import Shelf, keep_hours
from huanhuan.chat.page.state import PageState
from huanhuan.chat.page.visitors import AddressCap, visitor_cookie
from huanhuan.chat.service import Service

logger = logging.getLogger("huanhuan.chat")

# In the page's address: which page this window shows.
KEY = "chat"


class PageService(Service):
    """The service with what the visitors of a page share beside the engine."""

    shelf: Shelf[PageState]
    addresses: AddressCap

    def prepare(self) -> None:
        """Read the page's own settings too."""
        super().prepare()
        self.shelf, self.addresses = Shelf(keep_hours()), AddressCap.from_environment()


@st.cache_resource(show_spinner=False)
def service() -> PageService:
    """The engine of this process and the queue before it."""
    return PageService()


def session() -> str:
    """The session that this run of the script belongs to."""
    context = get_script_run_ctx()
    return context.session_id if context else ""


def page_state(started: PageService) -> PageState:
    """The visitor's state: this session's, else the one that a reload left behind, else a new one.

    Raises: UserError if there is no persona.
    """
    state = st.session_state.get("page")
    if state is None:
        owner = visitor_cookie()
        key = st.query_params.get(KEY, "")
        state = started.shelf.find(key, owner) or started.shelf.latest(owner, _in_use) or _new(started, owner)
        state.holder = session()
        st.session_state.page = state
    return state


def remember(started: PageService, state: PageState) -> None:
    """Keep the state for a reload, once there is something in it."""
    if state.worth_keeping and started.shelf.keep(state) and st.query_params.get(KEY) != state.key:
        st.query_params[KEY] = state.key


def _in_use(page: PageState) -> bool:
    return Runtime.exists() and Runtime.instance().is_active_session(page.holder)


def _new(started: PageService, owner: str) -> PageState:
    found, problems = personas.load_personas()
    for line in problems:
        _tell_once(line)
    cards = {key: _shared(Card.of(persona)) for key, persona in found.items()}
    state = PageState(cards, [Conversation(next(iter(cards)))], started.words, started.addresses, owner)
    # With the cookie, the hour's messages are counted over every window and reload of the browser.
    state.visitor = owner or state.visitor
    return state


@functools.lru_cache(maxsize=256)
def _shared(card: Card) -> Card:
    """An equal card that other visitors have already: they are read anew for each of them."""
    return card


_told: set[str] = set()


def _tell_once(line: str) -> None:
    if line not in _told:
        _told.add(line)
        logger.warning("%s", line)
