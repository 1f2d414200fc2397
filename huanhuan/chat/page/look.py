"""How the page looks: pictures and the few rules of style that Streamlit has no setting for."""

from __future__ import annotations

import functools

import streamlit as st
from streamlit.components import v2

from huanhuan.chat.cards import Card
from huanhuan.chat.page.texts import language
from huanhuan.chat.portrait import as_png, portrait_png, portrait_svg, square

# No text of a visitor or a model is ever put in here.
STYLE = """
<style>
.block-container { padding-top: 3.6rem; padding-bottom: 1rem; max-width: 46rem; }
[data-testid="stBottomBlockContainer"] { padding-top: .5rem; padding-bottom: 1.25rem; max-width: 46rem; }
[data-testid="stCaptionContainer"] { opacity: .8 !important; }
.st-key-heading { border-bottom: 1px solid #80606840; padding-bottom: .75rem; }
h1 { font-size: 1.9rem !important; }
h3 { font-size: 1.25rem !important; padding-bottom: .25rem !important; }
.st-key-heading h1 { line-height: 1.2; padding: 0 0 .15rem; }
.st-key-heading [data-testid="stElementToolbar"] { display: none; }
.st-key-heading [data-testid="stMarkdownContainer"], .st-key-heading [data-testid="stCaptionContainer"] { margin: 0; }
.st-key-heading p { margin: 0; line-height: 1.45; }
.st-key-heading img { border-radius: 50%; }
[data-testid="stChatMessage"] { padding: .6rem .8rem; gap: .75rem; }
[class*="st-key-visitor-"] [data-testid="stChatMessage"] { background: #a8324a14; border-radius: 1rem; }
[data-testid="stChatMessage"] img { object-fit: cover; }
[data-testid="stMarkdownContainer"] { overflow-wrap: anywhere; }
[class*="st-key-actions-"] { flex-wrap: wrap; column-gap: .75rem; row-gap: 0; }
[class*="st-key-actions-"] button { min-height: 2rem; padding: 0 .15rem; }
[data-testid="stChatMessage"]:has([class*="st-key-menu-"]) { position: relative; padding-right: 3.5rem; }
[class*="st-key-menu-"] { position: absolute; top: .5rem; right: .6rem; width: auto; }
[class*="st-key-menu-"] button { min-height: 2rem; padding: 0 .25rem; }
/* Only a picture for those who see it, its name for those who do not. */
:is([class*="st-key-menu-"], [class*="st-key-previous"], [class*="st-key-next"]) button p {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
[class*="st-key-starter-"] button { border-radius: 1.2rem; text-align: left; }
.st-key-hidden { position: absolute; height: 0; overflow: hidden; }
button:focus-visible, a:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
@media (max-width: 640px) {
  .block-container, [data-testid="stBottomBlockContainer"] { padding-left: .75rem; padding-right: .75rem; }
  .block-container { padding-top: 3.25rem; }
  h1 { font-size: 1.5rem !important; }
  [data-testid="stChatMessage"] { padding: .5rem; gap: .5rem; }
  [class*="st-key-actions-"] { column-gap: .35rem; }
  [class*="st-key-actions-"] button { min-height: 2.5rem; }
  [class*="st-key-actions-"] button p { font-size: .85rem; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
</style>
"""
# Streamlit's page says that it is English; screen readers choose their voice by this.
LANGUAGE = "export default ({ data }) => { document.documentElement.lang = data.language }"


def avatar(key: str, card: Card) -> str | bytes:
    """The character's picture as Streamlit takes it."""
    return _square(card.picture) if card.picture else _drawn(key, card.name)


@functools.lru_cache(maxsize=64)
def _square(picture: bytes) -> bytes:
    return square(picture)


@functools.lru_cache(maxsize=64)
def _drawn(key: str, name: str) -> str:
    return portrait_svg(key, name)


def card_picture(card: Card) -> bytes:
    """The picture of an exported card."""
    return as_png(card.picture) if card.picture else portrait_png(card.name)


def draw_style() -> None:
    """Put the rules into the page."""
    st.html(STYLE)


def tell_language() -> None:
    """Tell the browser which language the page is in."""
    tell = v2.component("huanhuan_language", js=LANGUAGE)
    with st.container(key="hidden"):
        tell(key="tell-language", data={"language": "zh-CN" if language() == "zh" else "en"})
