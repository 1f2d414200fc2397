"""What export needs to know from a training recipe, read without building anything of it."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.errors import Problems, UserError
from huanhuan.paths import WORK_DIRS, in_checkout
from huanhuan.persona import load_persona
from huanhuan.training import recipe as training_recipe

# LoraConfig fields that decide how the trained tensors are read; the others matter to training only.
MEANINGFUL_FIELDS = (
    "r",
    "lora_alpha",
    "target_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "modules_to_save",
)


@dataclass(frozen=True)
class ExportRecipe:
    """The part of a recipe that export reads."""

    path: Path
    base: str
    """Name or folder of the base, as the recipe gives it."""
    lora: dict[str, Any] | None
    """Arguments of ``peft.LoraConfig``; None for full finetuning."""
    work_dirs: tuple[Path, ...]
    """Where training may have left its checkpoints, the most likely first."""
    system: str
    """The persona's system prompt, empty if the recipe names none."""
    base_finder: str | None
    """Dotted name of the recipe's own function from base name to folder (``model_resource``)."""

    @property
    def name(self) -> str:
        """The recipe's file name without its ending."""
        return self.path.stem


def load_recipe(path: Path | str, options: Sequence[str] = ()) -> ExportRecipe:
    """Read a recipe; ``options`` are ``key=value`` changes as ``xtuner train --cfg-options`` takes them.

    Raises: UserError if the file is missing, is not a recipe or lacks a base.
    """
    path = training_recipe.find_recipe(str(path))
    config = training_recipe.load_recipe(path, options)
    return _extract(config.to_dict(keep_imported=True), path)


def _extract(values: Mapping[str, Any], path: Path) -> ExportRecipe:
    problems = Problems()
    model = values.get("model")
    if not isinstance(model, Mapping):
        problems.add(f"{path}: [model] 没有模型设置 / no model settings: is it a training recipe?")
        model = {}
    base = values.get("pretrained_model_name_or_path") or _nested(model, "llm", "pretrained_model_name_or_path")
    base = base or model.get("pretrained_model_name_or_path")
    if not isinstance(base, str):
        problems.add(f"{path}: [pretrained_model_name_or_path] 没有写底模 / names no base: add it to the recipe")
    # XTuner's own loop takes LoRA inside the model, its Transformers loop beside it.
    lora = model.get("lora") or values.get("lora")
    if lora is not None and str(lora.get("type", "peft.LoraConfig")).rpartition(".")[2] != "LoraConfig":
        problems.add(f"{path}: [lora] 只支持 LoRA / only peft.LoraConfig can be exported, not {lora['type']}")
    problems.raise_if_any()
    given = training_recipe.own_work_dir(values)
    # XTuner resolves its default against the folder it was started in, which usually is the checkout.
    here, checkout = Path("work_dirs") / path.stem, WORK_DIRS / path.stem
    default = (here,) if here.absolute() == checkout else (here, checkout)
    return ExportRecipe(
        path=path,
        base=str(base),
        lora={key: value for key, value in lora.items() if key != "type"} if lora else None,
        work_dirs=(Path(given),) if given else default,
        system=_system_prompt(values),
        base_finder=_nested(values, "model_resource", "fn"),
    )


def find_base_folder(recipe: ExportRecipe, override: Path | None) -> Path:
    """The folder with the base's weights: ``override``, else what the recipe's own finder returns.

    Raises: UserError if there is none.
    """
    if override is not None:
        folder = override
    elif recipe.base_finder:
        from mmengine.utils.misc import get_object_from_string

        finder: Any = get_object_from_string(recipe.base_finder)
        if not callable(finder):
            raise UserError(f"{recipe.path}: [model_resource.fn] {recipe.base_finder}: 不是函数 / is not a function")
        folder = Path(str(finder(recipe.base)))
    elif Path(recipe.base).is_dir():
        folder = Path(recipe.base)
    else:
        from huanhuan.training.base import find_base

        folder = Path(find_base(recipe.base))
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: 底模里没有 config.json / no config.json in the base: check --base")
    return folder


def trained_settings(config_text: str) -> dict[str, Any] | None:
    """The LoRA settings written down in a checkpoint's own copy of its recipe, None if it has none.

    The copy is Python source; it is parsed, never run.

    >>> trained_settings("model = dict(lora=dict(r=8, lora_alpha=16, type='peft.LoraConfig'), type='M')")
    {'r': 8, 'lora_alpha': 16, 'type': 'peft.LoraConfig'}
    """
    try:
        tree = ast.parse(config_text)
    except (SyntaxError, ValueError):
        return None
    found: Any = None
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        if statement.targets[0].id == "model":
            found = (_literal(statement.value) or {}).get("lora", found)
        elif statement.targets[0].id == "lora" and found is None:
            found = _literal(statement.value)
    return found if isinstance(found, dict) else None


def differing_settings(recipe: Mapping[str, Any], trained: Mapping[str, Any]) -> list[str]:
    """Fields of two LoRA settings that would make the same tensors mean something else, one text each.

    >>> differing_settings({"r": 8, "lora_alpha": 16}, {"r": 8, "lora_alpha": 32})
    ['lora_alpha: recipe 16, checkpoint 32']
    """
    from peft.tuners.lora.config import LoraConfig

    defaults = LoraConfig()
    differences = []
    for field in MEANINGFUL_FIELDS:
        ours, theirs = (settings.get(field, getattr(defaults, field)) for settings in (recipe, trained))
        # XTuner fills target_modules in when the recipe leaves them out.
        if field == "target_modules" and (ours is None or theirs is None):
            continue
        if _comparable(ours) != _comparable(theirs):
            differences.append(f"{field}: recipe {ours}, checkpoint {theirs}")
    return differences


def _comparable(value: Any) -> Any:
    if isinstance(value, (list, tuple, set)):
        return sorted(map(str, value))
    return value or None


def _literal(node: ast.expr) -> Any:
    """The value of a literal that may contain ``dict(...)`` calls; None where it is anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {each.arg: _literal(each.value) for each in node.keywords if each.arg}
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_literal(each) for each in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _nested(values: Mapping[str, Any], *keys: str) -> Any:
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _system_prompt(values: Mapping[str, Any]) -> str:
    """The system prompt of the persona card that the recipe names; empty if it names none or the card is gone."""
    card = values.get("persona")
    if not isinstance(card, str) or not in_checkout(card).is_file():
        return ""
    return load_persona(in_checkout(card)).system
