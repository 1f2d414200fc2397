"""The sidebar: conversations, characters, settings, files, language."""

from __future__ import annotations

import functools

import streamlit as st

from huanhuan.chat.cards import card_json, card_png, read_card
from huanhuan.chat.conversation import Conversation
from huanhuan.chat.desk import Desk
from huanhuan.chat.engine import Sampling
from huanhuan.chat.page.look import card_picture
from huanhuan.chat.page.state import DEFAULTS, PageState, file_name
from huanhuan.chat.page.texts import LANGUAGES, browser_language, say
from huanhuan.chat.transfer import FORMAT, from_json, to_json, to_markdown
from huanhuan.errors import UserError


def draw_sidebar(state: PageState, desk: Desk) -> None:
    """Everything beside the conversation."""
    with st.sidebar:
        _personas(state, desk)
        _conversations(state, desk)
        with st.expander(say("settings"), key="settings-box", icon=":material/tune:"):
            _settings(state)
        with st.expander(say("files"), key="files-box", icon=":material/swap_vert:"):
            _exports(state, desk)
            _import(state, desk)
        st.session_state.setdefault("language", browser_language())
        st.selectbox(say("language"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, key="language")


def _personas(state: PageState, desk: Desk) -> None:
    keys = list(state.cards)
    # The open conversation decides what is chosen here, whatever was clicked before.
    st.session_state.persona = state.conversation.persona
    st.selectbox(
        say("persona"),
        keys,
        format_func=lambda key: state.cards[key].name,
        key="persona",
        on_change=lambda: state.start(desk, st.session_state.persona),
    )


def _conversations(state: PageState, desk: Desk) -> None:
    st.button(say("new"), key="new", icon=":material/add_comment:", width="stretch", on_click=state.start, args=(desk,))
    st.session_state.conversation = state.place
    st.selectbox(
        say("conversations"),
        range(len(state.conversations)),
        format_func=lambda place: _title(state, state.conversations[place]),
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


def _title(state: PageState, conversation: Conversation) -> str:
    return f"{state.cards[conversation.persona].name}：{conversation.title or say('untitled')}"


def _settings(state: PageState) -> None:
    kept = st.session_state
    kept.setdefault("temperature", float(DEFAULTS.temperature))
    kept.setdefault("top_p", float(DEFAULTS.top_p))
    kept.setdefault("length_limit", DEFAULTS.max_new_tokens)
    kept.setdefault("speed", False)
    st.slider(say("temperature"), 0.0, 1.5, step=0.05, key="temperature", help=say("temperature_help"))
    st.slider(say("top_p"), 0.05, 1.0, step=0.05, key="top_p", help=say("top_p_help"))
    st.slider(say("length_limit"), 16, 1024, step=16, key="length_limit")
    state.sampling = Sampling(kept.temperature, kept.top_p, DEFAULTS.top_k, kept.length_limit)
    key = f"system-{state.conversation.persona}"
    kept.setdefault(key, state.system)
    text = st.text_area(say("system"), key=key, help=say("system_help"), max_chars=6000, height=120)
    if text.strip() and text != state.persona.system:
        state.systems[state.conversation.persona] = text
    else:
        state.systems.pop(state.conversation.persona, None)
    st.toggle(say("speed"), key="speed")
    st.button(say("reset"), key="reset", on_click=_reset, args=(state,))


def _reset(state: PageState) -> None:
    for key in ("temperature", "top_p", "length_limit"):
        st.session_state.pop(key, None)
    st.session_state[f"system-{state.conversation.persona}"] = state.persona.system
    state.systems.pop(state.conversation.persona, None)


def _exports(state: PageState, desk: Desk) -> None:
    persona, conversation = state.persona, state.conversation
    name = file_name(persona.name)
    # Made only when somebody clicks.
    files = [
        ("card_json", f"{name}.json", "application/json", functools.partial(card_json, persona)),
        ("card_png", f"{name}.png", "image/png", functools.partial(_card_png, persona)),
    ]
    if conversation.turns:
        title = f"{name}-{file_name(conversation.title)}"
        answered = f"{desk.engine.label} · {desk.engine.model}"
        files = [
            ("markdown", f"{title}.md", "text/markdown", lambda: to_markdown(conversation, persona.name, answered)),
            ("json", f"{title}.json", "application/json", lambda: to_json(conversation, persona.name, state.system)),
            *files,
        ]
    for key, file, mime, make in files:
        st.download_button(
            say(key),
            make,
            file,
            mime,
            key=f"export-{key}",
            on_click="ignore",
            icon=":material/download:",
            width="stretch",
        )


def _card_png(persona) -> bytes:
    return card_png(persona, card_picture(persona.name))


def _import(state: PageState, desk: Desk) -> None:
    """One uploader for cards and conversations; a new key after each file makes it empty again."""
    file = st.file_uploader(
        say("import"), ["json", "png"], key=f"import-{state.imports}", help=say("import_help"), max_upload_size=4
    )
    if file is None:
        return
    content = file.getvalue()
    state.imports += 1
    state.problems, state.notice = [], None
    try:
        if FORMAT.encode() in content[:4000]:
            state.take(desk, from_json(content))
        else:
            state.adopt(desk, read_card(content))
    except UserError as error:
        state.problems = [error]
    st.rerun()
