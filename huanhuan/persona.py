"""The persona card of a character: ``data/<character>/persona.toml``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.errors import Problems, UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True)
class Identity:
    """Questions about who the character is, and answers of which any one fits any of them."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Persona:
    """Who the character is: one system prompt for training, evaluation and the page alike."""

    name: str
    aliases: tuple[str, ...]
    system: str
    greeting: str
    starters: tuple[str, ...]
    identity: tuple[Identity, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The name and every alias."""
        return (self.name, *self.aliases)


_TEXTS = ("name", "system", "greeting")
_LISTS = ("aliases", "starters")
_KEYS = (*_TEXTS, *_LISTS, "identity")


def load_persona(path: Path | str) -> Persona:
    """Read and validate a persona card; the keys are those of :class:`Persona`.

    Raises: UserError with every problem of the file, one line each.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: 找不到角色卡 / no such persona card: check --persona") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: 角色卡必须是 UTF-8 编码 / the card is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: 读不了角色卡 / cannot read the card: {error.strerror}: check the path") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: TOML 语法错误 / not valid TOML: {error}: correct that line") from None
    return _parse(values, path)


def _parse(values: dict[str, Any], path: Path) -> Persona:
    problems = Problems()
    for key in values:
        if key not in _KEYS:
            problems.add(f"{path}: [{key}] 未知字段 / unknown key: use one of {', '.join(_KEYS)}")
    for key in _TEXTS:
        if not _is_text(values.get(key)):
            problems.add(f'{path}: [{key}] 需要非空文字 / must be a non-empty string: add {key} = "…"')
    for key in _LISTS:
        _check_texts(values.get(key, []), f"{path}: [{key}]", problems)
    if not values.get("starters"):
        problems.add(f'{path}: [starters] 至少要有一个起始问题 / needs at least one line: add starters = ["…"]')
    identity = values.get("identity", [])
    if not isinstance(identity, list) or not all(isinstance(entry, dict) for entry in identity):
        problems.add(f"{path}: [identity] 需要 [[identity]] 表 / must be [[identity]] tables: see data/README.md")
        identity = []
    for number, entry in enumerate(identity, 1):
        for key in entry:
            if key not in ("questions", "answers"):
                problems.add(f"{path}: [identity #{number}] {key} 未知字段 / unknown key: use questions, answers")
        for key in ("questions", "answers"):
            place = f"{path}: [identity #{number}.{key}]"
            if not entry.get(key):
                problems.add(f'{place} 不能为空 / must not be empty: add {key} = ["…"]')
            else:
                _check_texts(entry[key], place, problems)
    problems.raise_if_any()
    return Persona(
        name=values["name"].strip(),
        aliases=tuple(alias.strip() for alias in values.get("aliases", [])),
        system=values["system"].strip(),
        greeting=values["greeting"].strip(),
        starters=tuple(starter.strip() for starter in values["starters"]),
        identity=tuple(Identity(tuple(entry["questions"]), tuple(entry["answers"])) for entry in identity),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _check_texts(value: Any, place: str, problems: Problems) -> None:
    """Add a problem unless ``value`` is a list of distinct non-empty strings."""
    if not isinstance(value, list) or not all(_is_text(item) for item in value):
        problems.add(f'{place} 需要由非空文字组成的列表 / must be a list of non-empty strings: write ["…", "…"]')
        return
    for item in sorted({item for item in value if value.count(item) > 1}):
        problems.add(f"{place} “{item}” 重复 / appears twice: keep one")
