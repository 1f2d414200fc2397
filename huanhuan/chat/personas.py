"""The personas that can be chosen: every ``data/*/persona.toml``."""

from __future__ import annotations

from pathlib import Path

from huanhuan.errors import UserError
from huanhuan.paths import DATA
from huanhuan.persona import Persona, load_persona

DEFAULT = "huanhuan"


def load_personas(data: Path = DATA) -> tuple[dict[str, Persona], list[str]]:
    """The cards by folder name, the worked example first, and one line for each problem of the others.

    Raises: UserError with those lines if no card can be used.
    """
    cards: dict[str, Persona] = {}
    problems: list[str] = []
    paths = sorted(data.glob("*/persona.toml"), key=lambda path: (path.parent.name != DEFAULT, path.parent.name))
    for path in paths:
        try:
            cards[path.parent.name] = load_persona(path)
        except UserError as error:
            problems += error.problems
    if not cards:
        raise UserError(problems or [f"{data}: 没有角色卡 / holds no */persona.toml: see data/README.md"])
    return cards, problems
