"""What runs where a recipe does not: the same recipe with other settings, more GPUs, or another recipe."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huanhuan.errors import UserError
from huanhuan.training.machine import Machine
from huanhuan.training.memory import GIB
from huanhuan.training.plan import DEMO_BASE, Plan, make_plan
from huanhuan.training.plan_recipe import Recipe, value_at

PACKS = (8192, 4096, 2048)
GPUS = (2, 4, 8)


@dataclass(frozen=True)
class Alternative:
    """One way to train that fits, as arguments of ``tools/train.py``."""

    arguments: str
    peak: float
    """Bytes on one GPU."""
    why: str

    @classmethod
    def of(cls, plan: Plan, why: str) -> Alternative:
        """The command line that is ``plan``."""
        options = [plan.recipe.name]
        processes = plan.machine.gpus // plan.machine.nodes
        if processes > 1:
            options += ["--nproc", str(processes)]
        if plan.deepspeed is not None:
            options += ["--deepspeed", plan.deepspeed]
        return cls(shlex.join([*options, *plan.recipe.overrides]), plan.memory.peak, why)

    def line(self) -> str:
        """``python tools/train.py … （12.9 GiB，… / …)``."""
        return f"python tools/train.py {self.arguments}  （{self.peak / GIB:.1f} GiB，{self.why}）"


def alternatives(plan: Plan, recipes: list[Recipe], most: int = 3) -> list[Alternative]:
    """At most ``most`` ways that fit the plan's machine, the nearest first."""
    found = [*_same_recipe(plan), *_other_recipes(plan, recipes), *_more_gpus(plan)]
    return found[:most]


def _fitting(path: Path, overrides: Sequence[str], machine: Machine, deepspeed: str | None) -> Plan | None:
    """The plan of a command line as it stands; None if that does not run."""
    try:
        plan = make_plan(Recipe.read(path, overrides), machine, deepspeed)
    except UserError:
        return None
    return plan if plan.fits else None


def _same_recipe(plan: Plan) -> Iterator[Alternative]:
    """Smaller packs cost little speed, checkpointing a third of it; both together if one is not enough."""
    recipe, pack = plan.recipe, plan.recipe.pack_length
    packs = [pack, *(each for each in PACKS if pack and each < pack)]
    for deepspeed in dict.fromkeys((plan.deepspeed, None)):
        for checkpointed in dict.fromkeys((plan.run.checkpointing, True)):
            for length in packs:
                changes = _with_packs(recipe, length) if length and length != pack else []
                if checkpointed and not plan.run.checkpointing:
                    changes += _with_checkpointing(plan)
                if not changes and deepspeed == plan.deepspeed:
                    continue
                fitting = _fitting(recipe.path, [*recipe.overrides, *changes], plan.machine, deepspeed)
                if fitting is not None:
                    yield Alternative.of(fitting, "同一配方，改设置 / the same recipe, other settings")
                    return


def _with_packs(recipe: Recipe, length: int) -> list[str]:
    """Overrides for packs of ``length`` tokens. More of them share a step and weigh as one: it stays what it was."""
    packs = (recipe.pack_length or length) // length
    changes = [f"{recipe.dataset_key}.pack_length={length}", f"{recipe.accumulation_key}={recipe.accumulation * packs}"]
    if recipe.padded_to and not recipe.through_trainer:
        changes.append(f"train_dataloader.collate_fn.pad_to={length}")
    if recipe.max_length > length:
        changes.append(f"{recipe.dataset_key}.max_length={length}")
    return changes


def _with_checkpointing(plan: Plan) -> list[str]:
    # Compiled layers do not get along with checkpointing over a compressed base.
    kernels = [] if plan.run.base == "plain" else ["model.kernels=liger"]
    return ["model.use_activation_checkpointing=True", *kernels]


def _other_recipes(plan: Plan, recipes: list[Recipe]) -> list[Alternative]:
    """Those over the same base first, then by what they train, then the character's own, then the fastest."""
    found: list[tuple[tuple[bool, bool, bool, float], Alternative]] = []
    for recipe in recipes:
        # The demo's base answers from memory what it was taught: no substitute for a model.
        toy = recipe.base == DEMO_BASE != plan.recipe.base
        if toy or recipe.path == plan.recipe.path:
            continue
        same_data = _same_data(plan.recipe, recipe)
        for deepspeed in dict.fromkeys((None, plan.deepspeed)):
            fitting = _fitting(recipe.path, same_data, plan.machine, deepspeed)
            if fitting is None:
                continue
            run, speed = fitting.run, fitting.speed
            rank = (
                recipe.base != plan.recipe.base,
                bool(run.rank) != bool(plan.run.rank),
                bool(same_data),
                -(speed.tokens if speed else 0),
            )
            method = f"LoRA, {run.base}" if run.rank else "full"
            found.append((rank, Alternative.of(fitting, f"{recipe.base.rpartition('/')[2]}, {method}")))
            break
    return [alternative for _, alternative in sorted(found, key=lambda each: each[0])]


def _same_data(recipe: Recipe, other: Recipe) -> list[str]:
    """Overrides that make ``other`` train the character of ``recipe``."""
    wanted = {f"{other.dataset_key}.path": recipe.data_file, other.held_out_key: recipe.held_out_file}
    wanted |= dict.fromkeys(other.persona_keys, recipe.values.get("persona"))
    return [f"{key}={value}" for key, value in wanted.items() if value and value_at(other.values, key) != value]


def _more_gpus(plan: Plan) -> Iterator[Alternative]:
    """The fewest GPUs of the same kind that DeepSpeed divides the recipe over."""
    if plan.run.base != "plain" or plan.machine.name == "CPU":
        return
    for gpus in (each for each in GPUS if each > plan.machine.gpus and each % plan.machine.nodes == 0):
        for deepspeed in dict.fromkeys((plan.deepspeed or "deepspeed_zero3", "deepspeed_zero3")):
            machine = replace(plan.machine, gpus=gpus)
            fitting = _fitting(plan.recipe.path, plan.recipe.overrides, machine, deepspeed)
            if fitting is not None:
                yield Alternative.of(fitting, f"{gpus} 张同样的卡 / {gpus} such GPUs")
                return
