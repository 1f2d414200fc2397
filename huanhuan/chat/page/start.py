"""The page before there is an engine: how far its start is, why it failed, or how to get a model."""

from __future__ import annotations

import streamlit as st

from huanhuan.chat.page.sessions import PageService, service
from huanhuan.chat.page.texts import LANGUAGES, browser_language, say, sentence
from huanhuan.chat.safe_text import plain_markdown

# Each way to a model: its heading, what it means, what to type.
WAYS = (
    ("train_one", "train_one_text", "make character"),
    (
        "name_one",
        "name_one_text",
        "HUANHUAN_MODEL=models/my-model streamlit run app.py\n"
        "HUANHUAN_MODEL=kmno4zx/huanhuan-chat-internlm2 streamlit run app.py",
    ),
    (
        "serve_one",
        "serve_one_text",
        "HUANHUAN_API_BASE=http://192.168.1.20:23333/v1 HUANHUAN_API_KEY=… streamlit run app.py",
    ),
)


def draw_start(started: PageService) -> None:
    """Draw what there is to say while nobody can be answered."""
    if started.state == "loading":
        _progress()
        return
    if started.no_model:
        _no_model()
    else:
        st.subheader(say("failed"), anchor=False)
        if started.problem:
            st.error(sentence(started.problem))
    st.button(say("retry"), key="retry", type="primary", icon=":material/refresh:", on_click=started.retry)
    st.session_state.setdefault("language", browser_language())
    st.selectbox(say("language"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, key="language", width=220)


def _no_model() -> None:
    st.title(say("no_model"), anchor=False)
    st.markdown(say("no_model_intro"))
    for heading, text, command in WAYS:
        st.subheader(say(heading), anchor=False)
        st.markdown(say(text))
        st.code(command, language="bash", wrap_lines=True)
    st.markdown(say("read_more"))


@st.fragment(run_every=1.0)
def _progress() -> None:
    started = service()
    if started.state != "loading":
        st.rerun()
    text = plain_markdown(started.doing) or say("loading")
    if started.share is None:
        st.info(text)
    else:
        st.progress(min(max(started.share, 0.0), 1.0), text)
