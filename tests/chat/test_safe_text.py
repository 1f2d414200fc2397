"""Text as Markdown that is shown and not obeyed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huanhuan.chat.safe_text import plain_markdown, safe_markdown


def shown(markdown: str) -> str:
    """What a reader sees: escapes, joiners and line breaks undone."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown).replace("\u2060", "").replace("  \n", "\n")


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("*笑*", "*笑*"),
        ("她*微微一笑*说道", "她*微微一笑*说道"),
        ("他**重重地**说：*嗯*。", "他**重重地**说：*嗯*。"),
        ("OK*笑*OK", "OK*笑*OK"),
        # CommonMark begins no emphasis between a letter and a quotation mark.
        ("她*“哼”*地走了", "她*\u2060“哼”\u2060*地走了"),
        ("说*(笑)*吧", "说*\u2060\\(笑\\)\u2060*吧"),
        ("日本*ああ*語", "日本*ああ*語"),
        ("2*3*4", r"2\*3\*4"),
        ("f(*a, *b)", r"f\(\*a\, \*b\)"),
        ("* 笑 *", r"\* 笑 \*"),
        ("***笑***", r"\*\*\*笑\*\*\*"),
        ("*一行\n一行*", "\\*一行  \n一行\\*"),
        ("    码\n\t码", "码  \n码"),
    ],
)
def test_only_emphasis_means_something(text: str, markdown: str) -> None:
    assert safe_markdown(text) == markdown


@given(st.text(st.sampled_from("甲a1 *_!<>[]()#:$`~\\\n&“。-|"), max_size=40))
def test_every_other_mark_is_escaped(text: str) -> None:
    markdown = safe_markdown(text)
    left = re.sub(r"\\[!-/:-@\[-`{-~]", "", markdown)
    assert not re.search(r"[!<>\[\]()#:$`~\\&|_-]", left)
    assert re.sub(r"[*\s]", "", shown(markdown)) == re.sub(r"[*\s]", "", text)


@given(st.text(max_size=40))
def test_a_label_shows_exactly_its_letters_on_one_line(text: str) -> None:
    markdown = plain_markdown(text)
    assert "\n" not in markdown and shown(markdown) == " ".join(text.split())
    assert not re.search(r"[!-/:-@\[-`{-~]", re.sub(r"\\[!-/:-@\[-`{-~]", "", markdown))
