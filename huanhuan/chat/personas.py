"""The personas that can be chosen: every ``data/*/persona.toml``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from huanhuan.errors import UserError
from huanhuan.paths import DATA
from huanhuan.persona import Persona, load_persona

DEFAULT = "huanhuan"


def load_personas(data: Path = DATA, environ: Mapping[str, str] = os.environ) -> tuple[dict[str, Persona], list[str]]:
    """The cards by folder name, and one line for each problem of the others.

    First comes the one whose folder ``HUANHUAN_PERSONA`` names, else the worked example.

    Raises: UserError with those lines if no card can be used.
    """
    first = environ.get("HUANHUAN_PERSONA", "").strip() or DEFAULT
    cards: dict[str, Persona] = {}
    problems: list[str] = []
    paths = sorted(data.glob("*/persona.toml"), key=lambda path: (path.parent.name != first, path.parent.name))
    for path in paths:
        try:
            cards[path.parent.name] = load_persona(path)
        except UserError as error:
            problems += error.problems
    if not cards:
        raise UserError(problems or [f"{data}: 没有角色卡 / holds no */persona.toml: see data/README.md"])
    if first != DEFAULT and first not in cards:
        problems.append(
            f"HUANHUAN_PERSONA={first}: 没有可用的角色卡 / no usable card data/{first}/persona.toml: "
            f"choose from {', '.join(cards)}"
        )
    return cards, problems
