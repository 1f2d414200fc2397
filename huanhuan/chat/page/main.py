"""The page from top to bottom."""

from __future__ import annotations

import logging

import streamlit as st

from huanhuan.chat.desk import Desk
from huanhuan.chat.engine import EngineError
from huanhuan.chat.page.look import avatar, draw_style
from huanhuan.chat.page.sidebar import draw_sidebar
from huanhuan.chat.page.state import MOST_LETTERS, PageState, page_state, service
from huanhuan.chat.page.texts import browser_language, say
from huanhuan.chat.page.turns import draw_running, draw_turns
from huanhuan.chat.service import Service
from huanhuan.errors import UserError

logger = logging.getLogger("huanhuan.chat")


def draw() -> None:
    """One run of the page; whatever goes wrong is one sentence, its details are in the log."""
    st.set_page_config(page_title="Chat-嬛嬛", page_icon="🌸", initial_sidebar_state="auto")
    try:
        _draw()
    except UserError as error:
        for line in error.problems:
            st.error(line)
    except Exception as error:
        wrong = EngineError("页面出错了，请刷新后重试", "the page failed: reload it and try again", error)
        st.error(f"{say('unexpected')} [{wrong.id}]")


def _draw() -> None:
    draw_style()
    state = page_state()
    desk = _desk(service())
    if desk is None:
        return
    draw_sidebar(state, desk)
    _heading(state, desk)
    draw_turns(state, desk)
    _starters(state, desk)
    _notices(state)
    text = st.chat_input(say("say", name=state.persona.name), key="say", max_chars=MOST_LETTERS)
    if text:
        state.send(desk, text)
        st.rerun()
    draw_running(state, desk)


def _desk(started: Service) -> Desk | None:
    """The desk once the engine is ready; until then the page says how far it is, or what went wrong."""
    if started.state == "failed":
        st.subheader(say("failed"))
        for line in started.problems:
            st.error(line)
        st.button(say("retry"), key="retry", type="primary", on_click=started.retry)
    elif started.state == "loading":
        _progress()
    return started.desk if started.state == "ready" else None


@st.fragment(run_every=1.0)
def _progress() -> None:
    started = service()
    if started.state != "loading":
        st.rerun()
    text = started.doing or say("loading")
    if started.share is None:
        st.info(text)
    else:
        st.progress(min(max(started.share, 0.0), 1.0), text)


def _heading(state: PageState, desk: Desk) -> None:
    persona = state.persona
    with st.container(horizontal=True, vertical_alignment="center"):
        st.image(avatar(state.conversation.persona, persona.name), width=72, alt=persona.name)
        with st.container():
            st.title(persona.name)
            st.caption(say("ai"))
    st.caption(say("answered_by", label=desk.engine.label, model=desk.engine.model))
    if desk.engine.fallback:
        st.caption(say("fallback"))


def _starters(state: PageState, desk: Desk) -> None:
    if state.conversation.turns:
        return
    st.caption(say("starters"))
    with st.container(horizontal=True):
        for number, starter in enumerate(state.persona.starters):
            st.button(starter, key=f"starter-{number}", on_click=state.send, args=(desk, starter))


def _notices(state: PageState) -> None:
    if state.notice:
        key, values = state.notice
        {"blocked": st.warning, "dropped": st.info}.get(key, st.success)(say(key, **values))
    english = (st.session_state.get("language") or browser_language()) == "en"
    for problem in state.problems:
        if isinstance(problem, EngineError):
            st.error(f"{problem.en if english else problem.zh} [{problem.id}]")
        else:
            for line in problem.problems:
                st.error(line)
