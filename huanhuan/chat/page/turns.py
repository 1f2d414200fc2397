"""The conversation on the page: what was said, what can be done with it, and the reply as it arrives."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from huanhuan.chat.conversation import MOST_MESSAGE, MOST_REPLY, Turn
from huanhuan.chat.desk import Desk
from huanhuan.chat.engine import EngineError
from huanhuan.chat.page.look import avatar
from huanhuan.chat.page.running import Running
from huanhuan.chat.page.sessions import session
from huanhuan.chat.page.state import PageState
from huanhuan.chat.page.texts import say
from huanhuan.chat.safe_text import safe_markdown
from huanhuan.chat.transfer import greeting

_ENDINGS = {"stopped": "stopped", "length": "length", "cut": "cut", "error": "broken", "edited": "edited"}
# Turns drawn at once; a click draws every one of them anew.
SHOWN = 60
# Seconds between two looks at a reply: no eye follows more, and at each of them Streamlit notices clicks.
PAUSE = 1 / 15


def draw_turns(state: PageState, desk: Desk) -> None:
    """Every turn but the one that is being written."""
    turns = state.conversation.turns
    hidden = max(len(turns) - SHOWN - state.shown, 0)
    if hidden:
        more = {"on_click": _show_more, "args": (state,)}
        st.button(say("earlier", count=hidden), key="earlier", icon=":material/expand_less:", width="stretch", **more)
    else:
        _greeting(state)
    last_user = next((turn for turn in reversed(turns) if turn.role == "user"), None)
    for turn in turns[hidden:]:
        if state.running and turn is state.running.turn:
            continue
        with _bubble(state, turn):
            if turn.id == state.editing:
                _editor(state, desk, turn)
            else:
                st.markdown(safe_markdown(turn.text))
                _notes(state, turn)
                if not state.running:
                    _actions(state, desk, turn, recent=turn is turns[-1] or turn is last_user)
    if not state.running:
        state.drawn = len(turns)


def _show_more(state: PageState) -> None:
    state.shown += SHOWN


def _greeting(state: PageState) -> None:
    persona, conversation = state.persona, state.conversation
    with st.chat_message(persona.name, avatar=avatar(conversation.persona, persona)):
        st.markdown(safe_markdown(greeting(conversation, persona)))
        count = len(persona.greetings)
        if count > 1 and not conversation.turns:
            place = min(conversation.greeting, count - 1)
            with st.container(horizontal=True, gap="small", key="actions-greeting", vertical_alignment="center"):
                _flip("previous_greeting", "chevron_left", disabled=place == 0, on_click=state.greet, args=(-1,))
                st.caption(f"{place + 1} / {count}", width="content")
                _flip("next_greeting", "chevron_right", disabled=place == count - 1, on_click=state.greet, args=(1,))


def _flip(text: str, icon: str, key: str = "", **options: Any) -> None:
    st.button(say(text), key=key or text, type="tertiary", icon=f":material/{icon}:", **options)


def _bubble(state: PageState, turn: Turn) -> Any:
    if turn.role == "user":
        return st.container(key=f"visitor-{turn.id}").chat_message(say("you"), avatar=":material/person:")
    picture = avatar(state.conversation.persona, state.persona)
    return st.container(key=f"character-{turn.id}").chat_message(state.persona.name, avatar=picture)


def _notes(state: PageState, turn: Turn) -> None:
    version = turn.version
    notes = [say(_ENDINGS[version.finish])] if turn.role == "assistant" and version.finish in _ENDINGS else []
    if turn is state.conversation.turns[-1] and turn.role == "user" and not state.running:
        notes.append(say("unanswered"))
    if state.settings["speed"] and version.first_token_seconds is not None:
        rate = "–" if version.tokens_per_second is None else f"{version.tokens_per_second:.1f}"
        first = f"{version.first_token_seconds:.2f}"
        notes.append(say("speed_line", first=first, rate=rate, tokens=version.tokens))
    if notes:
        st.caption(" · ".join(notes))


def _actions(state: PageState, desk: Desk, turn: Turn, *, recent: bool) -> None:
    """Buttons under the last exchange; under what was said before only once they are asked for.

    Not Streamlit's menu: from the keyboard the focus never comes into it.
    """
    key = turn.id
    if not recent:
        opened = key == state.opened
        text, icon = ("less", "expand_less") if opened else ("more", "more_horiz")
        _button(text, icon, f"menu-{key}", _open, state, None if opened else key)
        if not opened:
            return
    with st.container(horizontal=True, gap="small", key=f"actions-{key}", vertical_alignment="center"):
        if len(turn.versions) > 1:
            first, last = turn.chosen == 0, turn.chosen == len(turn.versions) - 1
            _flip("previous", "chevron_left", f"previous-{key}", disabled=first, on_click=turn.flip, args=(-1,))
            st.caption(f"{turn.chosen + 1} / {len(turn.versions)}", width="content")
            _flip("next", "chevron_right", f"next-{key}", disabled=last, on_click=turn.flip, args=(1,))
        if turn is state.conversation.turns[-1]:
            name = "try_again" if turn.role == "user" else "again"
            _button(name, "refresh", f"again-{key}", state.again, desk)
            if turn.role == "assistant":
                _button("continue", "east", f"more-{key}", state.go_on, desk)
        _button("edit", "edit", f"edit-{key}", _set_editing, state, key)
        _button("delete", "delete", f"delete-{key}", state.delete, desk, key)


def _button(text: str, icon: str, key: str, on_click: Any, *args: Any) -> None:
    st.button(say(text), key=key, type="tertiary", icon=f":material/{icon}:", on_click=on_click, args=args)


def _open(state: PageState, turn_id: str | None) -> None:
    state.opened = turn_id


def _set_editing(state: PageState, turn_id: str | None) -> None:
    state.editing = turn_id


def _editor(state: PageState, desk: Desk, turn: Turn) -> None:
    mine = turn.role == "user"
    label, done, do = ("edit_label", "resend", state.edit) if mine else ("rewrite_label", "save", state.rewrite)
    # What came from a file may be longer than what can be typed.
    most = max(MOST_MESSAGE if mine else MOST_REPLY, len(turn.text))
    st.text_area(say(label), turn.text, key=f"text-{turn.id}", max_chars=most)
    with st.container(horizontal=True):
        st.button(say(done), key=f"resend-{turn.id}", type="primary", on_click=_resend, args=(do, desk, turn.id))
        st.button(say("cancel"), key=f"cancel-{turn.id}", on_click=_set_editing, args=(state, None))


def _resend(do: Any, desk: Desk, turn_id: str) -> None:
    do(desk, turn_id, st.session_state[f"text-{turn_id}"])


def draw_running(state: PageState, desk: Desk) -> None:
    """Draw the reply as it arrives. A click elsewhere ends this run of the script; the next one reads on."""
    running = state.running
    if running is None or running.conversation is not state.conversation:
        return
    with _bubble(state, running.turn):
        place = st.empty()
        st.button(
            say("stop"), key="stop", icon=":material/stop_circle:", shortcut="Escape", on_click=state.stop, args=(desk,)
        )
    # What an edit has dropped would stand below until the reply has ended.
    for _ in range(state.drawn - len(state.conversation.turns)):
        st.empty()
    state.drawn = len(state.conversation.turns)
    follow(state, running, place)
    if state.holder != session():
        # Another window shows the conversation now and reads on there.
        return
    if state.running is running:
        state.finish(desk)
    st.rerun()


def follow(state: PageState, running: Running, place: Any) -> None:
    """Redraw the reply in ``place`` until it ends, goes too far or is shown in another window."""
    try:
        _draw_progress(place, state, running)
        for _ in running.reply.ticks():
            # Drawn even when nothing is new: only here does Streamlit notice the visitor's clicks.
            _draw_progress(place, state, running)
            if state.holder != session():
                return
            if len(running.text) > MOST_REPLY:
                running.reply.stop()
                return
            time.sleep(PAUSE)
    except EngineError:
        # Noted by ``finish`` and shown below the conversation in the next run.
        pass


def _draw_progress(place: Any, state: PageState, running: Running) -> None:
    reply = running.reply
    text = state.words.masked(running.text)
    if text:
        place.markdown(safe_markdown(text) + " ▌")
    elif reply.ahead:
        place.caption(say("ahead", count=reply.ahead))
    elif reply.ahead == 0:
        place.caption(say("next_up"))
    else:
        place.caption(say("once_more") if reply.restarts else say("thinking"))
