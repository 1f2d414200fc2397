"""Reading and driving the page under ``AppTest``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from huanhuan.chat.page import files, sessions, turns

SCRIPT = Path(__file__).parents[2] / "huanhuan/chat/page/script.py"


def plain(markdown: str) -> str:
    return re.sub(r"\\(.)", r"\1", markdown).replace("  \n", "\n")


def said(page: AppTest) -> list[str]:
    """The text of every bubble."""
    return [plain(each.value) for message in page.chat_message for each in message.markdown]


def small_print(page: AppTest) -> str:
    """Every caption, joined."""
    return " | ".join(each.value for each in page.caption)


def button(page: AppTest, start: str) -> Any:
    """The last button whose key begins so."""
    return [each for each in page.button if (each.key or "").startswith(start)][-1]


def keys(page: AppTest) -> list[str]:
    return [each.key or "" for each in page.button]


def send(page: AppTest, text: str) -> AppTest:
    return page.chat_input[0].set_value(text).run()


def opened(**query: str) -> AppTest:
    """The page after its first run, the engine ready or failed."""
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    sessions.service().wait(10)
    return page.run()


def upload(page: AppTest, content: bytes, name: str = "file.json") -> AppTest:
    number = page.session_state.page.imports
    uploader = next(each for each in page.get("file_uploader") if each.key == f"import-{number}")
    uploader.set_value((name, content, "application/json")).run()  # type: ignore[attr-defined]
    return page


def interrupted(page: AppTest, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> AppTest:
    """Do something that starts a reply; the script ends in the middle of it, as when its visitor clicks."""
    with monkeypatch.context() as patch:
        patch.setattr(turns, "follow", lambda *_: st.stop())
        act()
    return page


class Downloads:
    """What each download button would hand out: its file's name, and how it is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._made: dict[str, tuple[str, Callable[[], str | bytes]]] = {}
        original = st.download_button

        def record(label: str, data: Any, file_name: str, *args: Any, key: str, **options: Any) -> Any:
            self._made[key] = (file_name, data)
            return original(label, data, file_name, *args, key=key, **options)

        monkeypatch.setattr(files.st, "download_button", record)

    def name(self, key: str) -> str:
        return self._made[f"export-{key}"][0]

    def content(self, key: str) -> bytes:
        made = self._made[f"export-{key}"][1]()
        return made.encode() if isinstance(made, str) else made
