"""The page from top to bottom."""

from __future__ import annotations

import streamlit as st

from huanhuan.chat.conversation import Conversation
from huanhuan.chat.engine import Engine, EngineError
from huanhuan.chat.page.state import PageState, page_state, service
from huanhuan.chat.service import Service
from huanhuan.errors import UserError

AVATARS = {"user": "🙂", "assistant": "🌸"}


def draw() -> None:
    """One run of the page."""
    st.set_page_config(page_title="Chat-嬛嬛", page_icon="🌸")
    try:
        state = page_state()
    except UserError as error:
        for line in error.problems:
            st.error(line)
        return
    engine = _engine(service())
    if engine is None:
        return
    _heading(state, engine)
    _history(state)
    _starters(state, engine)
    text = st.chat_input(f"对{state.persona.name}说…… / say something …", key="say", max_chars=2000)
    if text:
        state.send(engine, text)
        st.rerun()
    _running(state, engine)
    if state.error:
        st.error(str(state.error))


def _engine(started: Service) -> Engine | None:
    """The engine once it is ready; until then the page says how far it is, or what went wrong."""
    if started.state == "failed":
        for line in started.problems:
            st.error(line)
        st.button("重试 / try again", on_click=started.retry, key="retry")
    elif started.state == "loading":
        st.info("正在加载模型…… / loading the model …")
        _refresh()
    return started.engine if started.state == "ready" else None


@st.fragment(run_every=1.0)
def _refresh() -> None:
    if service().state != "loading":
        st.rerun()


def _heading(state: PageState, engine: Engine) -> None:
    st.title(state.persona.name)
    st.caption(f"{engine.label} · {engine.model}")
    if state.conversation.turns:
        st.button("清空 / clear", key="clear", on_click=_clear, args=(state, engine))
    with st.chat_message("assistant", avatar=AVATARS["assistant"]):
        st.text(state.persona.greeting)


def _clear(state: PageState, engine: Engine) -> None:
    state.stop(engine)
    state.conversation = Conversation(state.conversation.persona)
    state.error = None


def _history(state: PageState) -> None:
    for turn in state.conversation.turns:
        if state.running and turn is state.running.turn:
            continue
        with st.chat_message(turn.role, avatar=AVATARS[turn.role]):
            st.text(turn.text)


def _starters(state: PageState, engine: Engine) -> None:
    if state.conversation.turns:
        return
    for number, starter in enumerate(state.persona.starters):
        st.button(starter, key=f"starter-{number}", on_click=state.send, args=(engine, starter))


def _running(state: PageState, engine: Engine) -> None:
    """Draw the reply as it arrives. A click elsewhere ends this run; the next one reads on."""
    running = state.running
    if running is None:
        return
    with st.chat_message("assistant", avatar=AVATARS["assistant"]):
        place = st.empty()
        st.button("停止 / stop", key="stop", on_click=state.stop, args=(engine,))
        said = running.reply.text
        place.text(said or "……")
        try:
            for piece in running.reply.ticks(len(said)):
                said += piece
                # Drawn even when nothing is new: only here does Streamlit notice the visitor's clicks.
                place.text(said or "……")
        except EngineError:
            pass
    if state.running is running:
        state.finish(engine)
    st.rerun()
