"""How the page looks: pictures and the few rules of style that Streamlit has no setting for."""

from __future__ import annotations

import functools

import streamlit as st

from huanhuan.chat.portrait import portrait_png, portrait_svg

# No text of a visitor or a model is ever put in here.
STYLE = """
<style>
.block-container { padding-top: 4.2rem; max-width: 46rem; }
[class*="st-key-actions-"] { opacity: .72; flex-wrap: wrap; }
[class*="st-key-actions-"]:hover, [class*="st-key-actions-"]:focus-within { opacity: 1; }
[class*="st-key-actions-"] button { min-height: 2rem; }
[data-testid="stMarkdownContainer"] { overflow-wrap: anywhere; }
button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
@media (max-width: 640px) {
  .block-container { padding-left: 1rem; padding-right: 1rem; }
  [class*="st-key-actions-"] button { min-height: 2.5rem; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
</style>
"""


@functools.lru_cache(maxsize=256)
def avatar(key: str, name: str) -> str:
    """The character's picture as Streamlit takes it."""
    return portrait_svg(key, name)


@functools.lru_cache(maxsize=16)
def card_picture(name: str) -> bytes:
    """The picture of an exported card."""
    return portrait_png(name)


def draw_style() -> None:
    """Put the rules into the page."""
    st.html(STYLE)
