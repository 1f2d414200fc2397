"""The commands that the documents show: the tools and recipes are there, and take the options that are written."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest

from huanhuan.paths import ROOT

DOCUMENTS = [*ROOT.glob("README*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")]
TOOLS = sorted(path.stem for path in ROOT.glob("tools/[!_]*.py"))


def commands(text: str) -> list[str]:
    """What stands behind ``python`` in a document, with lines that a backslash continues joined to it."""
    joined = text.replace("\\\n", " ")
    return re.findall(r"python (tools/\w+\.py[^\n`|&;#]*)", joined)


def options_of(tool: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    command: click.Command = importlib.import_module(tool).main
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words[0]]
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help", "-h"}


@pytest.mark.parametrize("name", ["README.md", "README_en.md"])
def test_every_tool_is_listed(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    listed = re.findall(r"^  (\w+)\.py ", text, re.MULTILINE)
    assert sorted(listed) == TOOLS


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_such_as_the_tools_take(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text("utf-8")
    for command in commands(text):
        script, *words = command.split()
        known = options_of(Path(script).stem, words, monkeypatch)
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in known, command
    for recipe in re.findall(r"\bconfigs/(huanhuan\w+)\.py", text):
        assert (ROOT / f"configs/{recipe}.py").is_file(), recipe
    for target in re.findall(r"`make ([\w-]+)`|^make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
        assert (path.parent / link).exists(), link
