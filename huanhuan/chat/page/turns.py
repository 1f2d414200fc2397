"""The conversation on the page: what was said, what can be done with it, and the reply as it arrives."""

from __future__ import annotations

import streamlit as st

from huanhuan.chat.conversation import Turn
from huanhuan.chat.desk import Desk
from huanhuan.chat.engine import EngineError
from huanhuan.chat.page.look import avatar
from huanhuan.chat.page.state import MOST_LETTERS, PageState
from huanhuan.chat.page.texts import say
from huanhuan.chat.safe_text import safe_markdown

_ENDINGS = {"stopped": "stopped", "length": "length", "error": "broken"}


def draw_turns(state: PageState, desk: Desk) -> None:
    """Every turn but the one that is being written."""
    with st.chat_message(state.persona.name, avatar=avatar(state.conversation.persona, state.persona.name)):
        st.markdown(safe_markdown(state.persona.greeting))
    turns = state.conversation.turns
    for turn in turns:
        if state.running and turn is state.running.turn:
            continue
        with _bubble(state, turn):
            if turn.id == state.editing:
                _editor(state, desk, turn)
            else:
                st.markdown(safe_markdown(turn.text))
                _notes(turn)
                _actions(state, desk, turn, last=turn is turns[-1])


def _bubble(state: PageState, turn: Turn):
    if turn.role == "user":
        return st.chat_message(say("you"), avatar=":material/person:")
    return st.chat_message(state.persona.name, avatar=avatar(state.conversation.persona, state.persona.name))


def _notes(turn: Turn) -> None:
    version = turn.version
    notes = [say(_ENDINGS[version.finish])] if turn.role == "assistant" and version.finish in _ENDINGS else []
    if st.session_state.get("speed") and version.first_token_seconds is not None:
        rate = "–" if version.tokens_per_second is None else f"{version.tokens_per_second:.1f}"
        first = f"{version.first_token_seconds:.2f}"
        notes.append(say("speed_line", first=first, rate=rate, tokens=version.tokens))
    if notes:
        st.caption(" · ".join(notes))


def _actions(state: PageState, desk: Desk, turn: Turn, last: bool) -> None:
    """A row of small buttons under a turn."""
    if state.running:
        return
    with st.container(horizontal=True, gap="small", key=f"actions-{turn.id}"):
        if len(turn.versions) > 1:
            _button("previous", turn, state_disabled=turn.chosen == 0, icon=":material/chevron_left:", step=-1)
            st.caption(f"{turn.chosen + 1} / {len(turn.versions)}")
            at_end = turn.chosen == len(turn.versions) - 1
            _button("next", turn, state_disabled=at_end, icon=":material/chevron_right:", step=1)
        if turn.role == "user":
            edit = {"on_click": _set_editing, "args": (state, turn.id)}
            st.button(say("edit"), key=f"edit-{turn.id}", type="tertiary", icon=":material/edit:", **edit)
        elif last:
            again = {"on_click": state.again, "args": (desk,)}
            st.button(say("again"), key=f"again-{turn.id}", type="tertiary", icon=":material/refresh:", **again)
            more = {"on_click": state.go_on, "args": (desk,)}
            st.button(say("continue"), key=f"more-{turn.id}", type="tertiary", icon=":material/east:", **more)
        delete = {"on_click": state.delete, "args": (desk, turn.id)}
        st.button(say("delete"), key=f"delete-{turn.id}", type="tertiary", icon=":material/delete:", **delete)


def _button(name: str, turn: Turn, *, state_disabled: bool, icon: str, step: int) -> None:
    st.button(
        say(name),
        key=f"{name}-{turn.id}",
        type="tertiary",
        icon=icon,
        disabled=state_disabled,
        on_click=turn.flip,
        args=(step,),
    )


def _set_editing(state: PageState, turn_id: str | None) -> None:
    state.editing = turn_id


def _editor(state: PageState, desk: Desk, turn: Turn) -> None:
    key = f"text-{turn.id}"
    st.text_area(say("edit_label"), turn.text, key=key, max_chars=MOST_LETTERS)
    with st.container(horizontal=True):
        st.button(say("resend"), key=f"resend-{turn.id}", type="primary", on_click=_resend, args=(state, desk, turn.id))
        st.button(say("cancel"), key=f"cancel-{turn.id}", on_click=_set_editing, args=(state, None))


def _resend(state: PageState, desk: Desk, turn_id: str) -> None:
    text = st.session_state[f"text-{turn_id}"]
    state.editing = None
    state.edit(desk, turn_id, text)


def draw_running(state: PageState, desk: Desk) -> None:
    """Draw the reply as it arrives. A click elsewhere ends this run of the script; the next one reads on."""
    running = state.running
    if running is None or running.conversation is not state.conversation:
        return
    reply = running.reply
    with _bubble(state, running.turn):
        place = st.empty()
        st.button(
            say("stop"), key="stop", icon=":material/stop_circle:", shortcut="Escape", on_click=state.stop, args=(desk,)
        )
        try:
            _draw_progress(place, state)
            for _ in reply.ticks():
                # Drawn even when nothing is new: only here does Streamlit notice the visitor's clicks.
                _draw_progress(place, state)
        except EngineError:
            # Noted by ``finish`` and shown below the conversation in the next run.
            pass
    if state.running is running:
        state.finish(desk)
    st.rerun()


def _draw_progress(place, state: PageState) -> None:
    running = state.running
    if running is None:
        return
    reply = running.reply
    text = state.words.masked(running.before + reply.text)
    if text:
        place.markdown(safe_markdown(text) + " ▌")
    elif reply.ahead:
        place.caption(say("ahead", count=reply.ahead))
    elif reply.ahead == 0:
        place.caption(say("next_up"))
    else:
        place.caption(say("once_more") if reply.restarts else say("thinking"))
