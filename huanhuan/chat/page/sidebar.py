"""The sidebar: conversations, characters, settings, language."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

import streamlit as st

from huanhuan.chat.cards import MOST_LETTERS
from huanhuan.chat.conversation import Conversation
from huanhuan.chat.desk import Desk
from huanhuan.chat.page.files import draw_exports, draw_import
from huanhuan.chat.page.state import SETTINGS, PageState
from huanhuan.chat.page.texts import LANGUAGES, browser_language, say

Key = TypeVar("Key", bound=Hashable)


def draw_sidebar(state: PageState, desk: Desk) -> None:
    """Everything beside the conversation."""
    if not st.session_state.get("language"):
        st.session_state.language = state.language or browser_language()
    state.language = st.session_state.language
    with st.sidebar:
        _personas(state, desk)
        _conversations(state, desk)
        with st.expander(say("settings"), key="settings-box", icon=":material/tune:"):
            _settings(state)
        with st.expander(say("files"), key="files-box", icon=":material/swap_vert:"):
            draw_exports(state, desk)
            draw_import(state, desk)
        st.selectbox(say("language"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, key="language")


def _personas(state: PageState, desk: Desk) -> None:
    names = _distinct({key: card.name for key, card in state.cards.items()})
    # The open conversation decides what is chosen here, whatever was clicked before.
    st.session_state.persona = state.conversation.persona
    st.selectbox(
        say("persona"),
        list(names),
        format_func=names.__getitem__,
        key="persona",
        on_change=lambda: state.start(desk, st.session_state.persona),
    )


def _conversations(state: PageState, desk: Desk) -> None:
    st.button(say("new"), key="new", icon=":material/add_comment:", width="stretch", on_click=state.start, args=(desk,))
    titles = _distinct({place: _title(state, each) for place, each in enumerate(state.conversations)})
    st.session_state.conversation = state.place
    st.selectbox(
        say("conversations"),
        list(titles),
        format_func=titles.__getitem__,
        key="conversation",
        on_change=lambda: state.open(desk, st.session_state.conversation),
    )
    # Always there, so that the boxes below keep their place and stay as they were opened.
    st.button(
        say("delete_conversation"),
        key="forget",
        icon=":material/delete:",
        width="stretch",
        disabled=not state.conversation.turns,
        on_click=state.forget,
        args=(desk,),
    )


def _distinct(labels: dict[Key, str]) -> dict[Key, str]:
    """The labels, those that occur again with a number: the browser tells a choice by its label.

    >>> _distinct({0: "甲", 1: "乙", 2: "甲"})
    {0: '甲', 1: '乙', 2: '甲 (2)'}
    """
    taken: set[str] = set()
    distinct: dict[Key, str] = {}
    for key, label in labels.items():
        number, shown = 1, label
        while shown in taken:
            number += 1
            shown = f"{label} ({number})"
        taken.add(shown)
        distinct[key] = shown
    return distinct


def _title(state: PageState, conversation: Conversation) -> str:
    name = state.cards[conversation.persona].name
    return say("conversation_title", name=name, title=conversation.title or say("untitled"))


def _settings(state: PageState) -> None:
    for name, value in state.settings.items():
        st.session_state.setdefault(name, value)
    st.slider(say("temperature"), 0.0, 1.5, step=0.05, key="temperature", help=say("temperature_help"))
    st.slider(say("top_p"), 0.05, 1.0, step=0.05, key="top_p", help=say("top_p_help"))
    st.slider(say("length_limit"), 16, 1024, step=16, key="length_limit")
    key = f"system-{state.conversation.persona}"
    st.session_state.setdefault(key, state.system)
    # A prompt that came with a card is never cut by its own editor.
    most = max(MOST_LETTERS, len(state.system), len(state.persona.system))
    st.text_area(say("system"), key=key, help=say("system_help"), max_chars=most, height=120)
    st.toggle(say("speed"), key="speed")
    state.note_settings()
    st.button(say("reset"), key="reset", on_click=_reset, args=(state,))


def _reset(state: PageState) -> None:
    for name in ("temperature", "top_p", "length_limit"):
        st.session_state[name] = state.settings[name] = SETTINGS[name]
    st.session_state[f"system-{state.conversation.persona}"] = state.persona.system
    state.systems.pop(state.conversation.persona, None)
