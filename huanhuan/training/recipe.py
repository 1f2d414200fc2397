"""Reading a recipe without training it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huanhuan.errors import Problems, UserError
from huanhuan.paths import CONFIGS

# Values at the top of a recipe that are read there, although others of the same name stand deeper.
READ_AT_THE_TOP = ("pretrained_model_name_or_path", "persona")


def find_recipe(name: str) -> Path:
    """The file of a recipe given as a path, or as a name in configs/.

    Raises: UserError naming the recipes there are.
    """
    candidates = (Path(name), CONFIGS / name, CONFIGS / f"{name}.py")
    for path in candidates:
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.py")))
    raise UserError(f"{name}: 没有这个配方 / no such recipe: use one of {known}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Any:
    """The recipe as an mmengine ``Config``; ``overrides`` are ``key=value`` as ``--cfg-options`` takes them.

    Raises: UserError with the reason if the file cannot be read as a recipe.
    """
    from mmengine.config import Config, DictAction

    problems = Problems()
    for each in overrides:
        if not each.partition("=")[0] or "=" not in each:
            problems.add(f"--cfg-options {each}: 需要 key=value / must be key=value")
    problems.raise_if_any()
    try:
        # With None mmengine finds out itself which of its two styles the file is written in.
        recipe = Config.fromfile(str(path), lazy_import=None)
        if overrides:
            parser = argparse.ArgumentParser()
            parser.add_argument("--cfg-options", nargs="+", action=DictAction)
            recipe.merge_from_dict(parser.parse_args(["--cfg-options", *overrides]).cfg_options)
    except UserError:
        raise
    except Exception as error:  # a recipe is Python: anything may be wrong with it
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: 配方读不了 / cannot load the recipe: {type(error).__name__}: {reason}: 改正它 / fix it"
        ) from error
    return recipe


def options_without_effect(recipe: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """One line for each ``key=value`` whose key ``recipe``, read without it, does not have or does not read.

    A key that is not there may be a setting that the recipe leaves at its default, so it is no error.
    """
    places = list(_places(recipe))
    notes = []
    for each in overrides:
        key = each.partition("=")[0]
        deeper = [place for place in places if place.endswith(f".{key}")]
        if key in places and key not in READ_AT_THE_TOP and "." not in key and deeper:
            meant, what = deeper[0], "没有作用 / has no effect"
        elif key in places:
            continue
        else:
            near = [*deeper, *get_close_matches(key, places, n=1, cutoff=0.75)]
            near += [place for place in places if place.rpartition(".")[2] == key.rpartition(".")[2]]
            meant, what = next(iter(near), ""), "配方里没有这一项 / is not in the recipe"
        notes.append(
            f"--cfg-options {key}: {what}{f': 是不是 / did you mean {meant}' if meant else ': 检查拼写 / check it'}?"
        )
    return notes


def _places(value: Any, at: str = "") -> Iterator[str]:
    """The dotted place of everything in a recipe, as --cfg-options names it."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        place = f"{at}.{key}" if at else str(key)
        yield place
        yield from _places(each, place)


def work_dir_of(path: Path, recipe: Any, work_dir: str | None = None) -> Path:
    """Where a run writes: the option, else the recipe's own, else XTuner's ``work_dirs/<recipe>`` below the current folder."""
    return Path(work_dir or own_work_dir(recipe) or Path("work_dirs") / path.stem)


def own_work_dir(recipe: Mapping[str, Any]) -> str | None:
    """The folder that a recipe itself names: ``work_dir``, or ``training_args.output_dir`` for Transformers' Trainer.

    >>> own_work_dir({"framework": "huggingface", "training_args": {"output_dir": "there"}})
    'there'
    """
    output_dir = (recipe.get("training_args") or {}).get("output_dir")
    candidates = (recipe.get("work_dir"), output_dir)
    if str(recipe.get("framework", "")).lower() == "huggingface":
        candidates = (output_dir, recipe.get("work_dir"))
    return next((str(each) for each in candidates if each), None)
