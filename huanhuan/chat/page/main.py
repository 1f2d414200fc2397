"""The page from top to bottom."""

from __future__ import annotations

import logging

import streamlit as st

from huanhuan.chat.conversation import MOST_MESSAGE
from huanhuan.chat.desk import Desk
from huanhuan.chat.engine import EngineError
from huanhuan.chat.page.look import avatar, draw_style, tell_language
from huanhuan.chat.page.sessions import page_state, remember, service, session
from huanhuan.chat.page.sidebar import draw_sidebar
from huanhuan.chat.page.start import draw_start
from huanhuan.chat.page.state import PageState
from huanhuan.chat.page.texts import TEXTS, say, sentence
from huanhuan.chat.page.turns import draw_running, draw_turns
from huanhuan.chat.safe_text import plain_markdown
from huanhuan.errors import UserError

logger = logging.getLogger("huanhuan.chat")


def draw() -> None:
    """One run of the page; whatever goes wrong is one sentence, its details are in the log."""
    st.set_page_config(page_title="Chat-嬛嬛", page_icon="🌸", initial_sidebar_state="auto")
    try:
        _draw()
    except EngineError as error:
        st.error(sentence(error))
    except UserError as error:
        # Meant for whoever set the page up: it may name folders of the server.
        st.error(sentence(EngineError(*TEXTS["misconfigured"], error)))
    except Exception as error:
        st.error(sentence(EngineError(*TEXTS["unexpected"], error)))


def _draw() -> None:
    draw_style()
    started = service()
    desk = started.desk if started.state == "ready" else None
    if desk is None:
        draw_start(started)
        tell_language()
        return
    state = page_state(started)
    if state.holder != session():
        st.info(say("elsewhere"))
        st.button(say("bring_here"), key="bring-here", type="primary", on_click=_bring, args=(state,))
        return
    draw_sidebar(state, desk)
    tell_language()
    _heading(state, desk)
    # Two places that stay where they are while a reply is written: nothing old is left standing below it.
    talk, below = st.container(), st.empty()
    with talk:
        draw_turns(state, desk)
    if not state.running:
        with below.container():
            _starters(state, desk)
            _notices(state, desk)
    if state.draft:
        # The only moment at which Streamlit lets the input be filled in.
        st.session_state.say, state.draft = state.draft, ""
    text = st.chat_input(say("say", name=state.persona.name), key="say", max_chars=MOST_MESSAGE)
    if text:
        state.send(desk, text)
    remember(started, state)
    if text:
        st.rerun()
    with talk:
        draw_running(state, desk)


def _bring(state: PageState) -> None:
    state.holder = session()


def _heading(state: PageState, desk: Desk) -> None:
    persona = state.persona
    with st.container(key="heading", horizontal=True, vertical_alignment="center"):
        st.image(avatar(state.conversation.persona, persona), width=64, alt=persona.name)
        with st.container(gap=None):
            st.title(plain_markdown(persona.name), anchor=False)
            st.caption(say("ai"))
            engine = desk.engine
            st.caption(say("answered_by", label=plain_markdown(engine.label), model=plain_markdown(engine.model)))
            if engine.fallback:
                st.caption(say("fallback"))


def _starters(state: PageState, desk: Desk) -> None:
    if state.conversation.turns:
        return
    st.caption(say("starters"))
    with st.container(horizontal=True, gap="xsmall"):
        for number, starter in enumerate(state.persona.starters):
            # A label without a word would leave the button without a name.
            st.button(
                plain_markdown(starter) or "…", key=f"starter-{number}", on_click=state.send, args=(desk, starter)
            )


def _notices(state: PageState, desk: Desk) -> None:
    if state.notice:
        key, values = state.notice
        shown = {name: plain_markdown(str(value)) for name, value in values.items()}
        {"imported": st.success, "dropped": st.info}.get(key, st.warning)(say(key, **shown))
    for problem in state.problems:
        lines = [sentence(problem)] if isinstance(problem, EngineError) else map(plain_markdown, problem.problems)
        for line in lines:
            st.error(line)
    if state.undo:
        with st.container(key="undo-row", horizontal=True, vertical_alignment="center"):
            st.caption(say("undo_note"), width="content")
            st.button(say("undo"), key="undo", icon=":material/undo:", on_click=state.take_back, args=(desk,))
