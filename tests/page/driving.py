"""Reading and driving the page under ``AppTest``."""

from __future__ import annotations

import re
from typing import Any

from streamlit.testing.v1 import AppTest


def plain(markdown: str) -> str:
    return re.sub(r"\\(.)", r"\1", markdown).replace("  \n", "\n")


def said(page: AppTest) -> list[str]:
    """The text of every bubble."""
    return [plain(each.value) for message in page.chat_message for each in message.markdown]


def button(page: AppTest, start: str) -> Any:
    """The last button whose key begins so."""
    return [each for each in page.button if (each.key or "").startswith(start)][-1]


def keys(page: AppTest) -> list[str]:
    return [each.key or "" for each in page.button]


def send(page: AppTest, text: str) -> AppTest:
    return page.chat_input[0].set_value(text).run()
