"""The page's script: Streamlit runs it from top to bottom at every click."""

from __future__ import annotations

from huanhuan.chat.page.main import draw

draw()
