"""A file to a script: the one entry to reading."""

from __future__ import annotations

from huanhuan.errors import UserError
from huanhuan.text.clean import split_lines
from huanhuan.text.fountain import parse_fountain
from huanhuan.text.labels import Speakers
from huanhuan.text.layouts import LAYOUTS, detect_layout
from huanhuan.text.model import Script, Skipped
from huanhuan.text.rows import classify
from huanhuan.text.script import parse
from huanhuan.text.sources import SourceFile, read_text


def read_script(
    source: SourceFile, speakers: Speakers, *, encoding: str | None = None, layout: str | None = None
) -> Script:
    """Read one file. ``speakers`` knows the names given by the user and the labels of earlier files, and learns.

    Raises: UserError if the file cannot be read as text.
    """
    text, found = read_text(source, encoding)
    if source.path.suffix.lower() == ".fountain":
        layout = layout or "fountain"
    return parse_text(
        text,
        source.name,
        speakers,
        encoding=found,
        layout=layout,
        markdown=source.path.suffix.lower() in (".md", ".markdown"),
    )


def parse_text(
    text: str,
    file: str,
    speakers: Speakers,
    *,
    encoding: str = "utf-8",
    layout: str | None = None,
    markdown: bool = False,
) -> Script:
    """The script that ``text`` is; a text in which nobody speaks gives a script without scenes.

    Raises: UserError for an unknown ``layout``.
    """
    if layout and layout not in LAYOUTS:
        raise UserError(f"--layout {layout}: 未知版式 / unknown layout: use one of {', '.join(LAYOUTS)}")
    lines = split_lines(text)
    chosen = layout or detect_layout(lines)
    script = Script(file, encoding, chosen or "none", len(lines) - (not lines[-1]))
    if chosen is None:
        script.skipped = [
            Skipped(file, number, number, "unlabelled", line.strip())
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        return script
    if chosen == "fountain":
        return parse_fountain(script, lines, speakers)
    if chosen == "quotes":
        # Loaded only here: its patterns take longer to compile than a short script to read.
        from huanhuan.text.novel import parse_novel

        return parse_novel(script, lines, speakers)
    return parse(script, lines, classify(lines, chosen, markdown=markdown), speakers)
