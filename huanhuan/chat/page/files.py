"""The sidebar's files: what can be taken along, and what can be brought."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import streamlit as st

from huanhuan.chat.cards import card_json, card_png, read_card
from huanhuan.chat.desk import Desk
from huanhuan.chat.page.look import card_picture
from huanhuan.chat.page.state import PageState
from huanhuan.chat.page.texts import language, say
from huanhuan.chat.transfer import from_json, is_conversation, to_json, to_markdown
from huanhuan.errors import UserError


def draw_exports(state: PageState, desk: Desk) -> None:
    """A button for every file; each is made only when somebody clicks."""
    conversation, persona, spoken = state.conversation, state.persona, language()
    name = file_name(persona.name)
    if conversation.turns:

        def markdown() -> str:
            state.note(desk)
            return to_markdown(conversation, persona, spoken)

        def everything() -> str:
            state.note(desk)
            return to_json(conversation, persona, state.system)

        title = f"{name}-{file_name(conversation.title)}"
        _download("markdown", f"{title}.md", "text/markdown", markdown)
        _download("json", f"{title}.json", "application/json", everything)
    card = persona
    if state.system != persona.system and st.checkbox(say("card_edited"), key="card-edited"):
        card = replace(persona, system=state.system)
    _download("card_json", f"{name}.json", "application/json", lambda: card_json(card))
    _download("card_png", f"{name}.png", "image/png", lambda: card_png(card, card_picture(persona)))


def _download(key: str, file: str, mime: str, make: Callable[[], str | bytes]) -> None:
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


def draw_import(state: PageState, desk: Desk) -> None:
    """One uploader for cards and conversations; a new key after each file makes it empty again."""
    file = st.file_uploader(
        say("import"), ["json", "png"], key=f"import-{state.imports}", help=say("import_help"), max_upload_size=4
    )
    if file is None:
        return
    content = file.getvalue()
    state.problems, state.notice = [], None
    try:
        if is_conversation(content):
            state.take(desk, from_json(content))
        else:
            state.adopt(desk, read_card(content))
    except UserError as error:
        state.problems = [error]
    state.imports += 1
    st.rerun()


def file_name(text: str) -> str:
    """``text`` as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", text).strip("_")[:40] or "huanhuan"
