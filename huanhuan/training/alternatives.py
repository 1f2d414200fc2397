"""What runs where a recipe does not: the same recipe with other settings, more GPUs, or another recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from huanhuan.errors import UserError
from huanhuan.training.machine import Machine
from huanhuan.training.memory import GIB, Run, memory_of
from huanhuan.training.plan import Plan, Recipe, obstacles, run_of, shape_of
from huanhuan.training.speed import speed_of

PACKS = (8192, 4096, 2048)
GPUS = (2, 4, 8)


@dataclass(frozen=True)
class Alternative:
    """One way to train that fits, as arguments of ``tools/train.py``."""

    arguments: str
    peak: float
    """Bytes on one GPU."""
    why: str

    def line(self) -> str:
        """``python tools/train.py … （12.9 GiB，… / …)``."""
        return f"python tools/train.py {self.arguments}  （{self.peak / GIB:.1f} GiB，{self.why}）"


def alternatives(plan: Plan, recipes: list[Recipe], most: int = 3) -> list[Alternative]:
    """At most ``most`` ways that fit the plan's machine, the nearest first."""
    found = [*_same_recipe(plan), *_other_recipes(plan, recipes), *_more_gpus(plan)]
    return found[:most]


def _fits(run: Run, machine: Machine, positions: float) -> bool:
    speed = speed_of(run, machine.card, cores=machine.cores if machine.card is None and machine.name == "CPU" else 0)
    return not any(obstacles(run, machine, speed, positions))


def _same_recipe(plan: Plan) -> Iterator[Alternative]:
    """Smaller packs cost little speed, checkpointing a third of it; both together if one is not enough."""
    recipe, run = plan.recipe, plan.run
    pack = recipe.pack_length
    packs = [pack, *(each for each in PACKS if each < pack)] if pack else [None]
    checkpointing = [False, True] if not run.checkpointing else [True]
    for checkpointed in checkpointing:
        for length in packs:
            changed = run.changed(
                checkpointing=checkpointed,
                tokens=length * recipe.batch_size if length else run.tokens,
                accumulation=run.accumulation * (pack // length if pack and length else 1),
            )
            if changed == run or not _fits(changed, plan.machine, plan.positions):
                continue
            options = list(recipe.overrides)
            if length is not None and length != pack:
                # Packs that share a step weigh as one: the step stays what it was.
                options += [
                    f"train_dataloader.dataset.pack_length={length}",
                    f"train_dataloader.collate_fn.pad_to={length}",
                    f"optim_wrapper.accumulative_counts={changed.accumulation}",
                ]
                if recipe.max_length > length:
                    options.append(f"train_dataloader.dataset.max_length={length}")
            if checkpointed and not run.checkpointing:
                options.append("model.use_activation_checkpointing=True")
                if run.base != "plain":
                    # Compiled layers do not get along with checkpointing over such a base.
                    options.append("model.kernels=liger")
            yield Alternative(
                " ".join([recipe.path.stem, *options]),
                memory_of(changed).peak,
                "同一配方，改设置 / the same recipe, other settings",
            )
            return


def _other_recipes(plan: Plan, recipes: list[Recipe]) -> list[Alternative]:
    """Those over the same base first, then by what they train, then the fastest."""
    found: list[tuple[tuple[bool, bool, float], Alternative]] = []
    for recipe in recipes:
        if recipe.path == plan.recipe.path:
            continue
        try:
            run = run_of(recipe, shape_of(recipe.base), gpus=plan.machine.gpus, data=plan.data)
        except UserError:
            continue
        if not _fits(run, plan.machine, plan.positions):
            continue
        speed = speed_of(run, plan.machine.card, cores=plan.machine.cores)
        rank = (recipe.base != plan.recipe.base, bool(run.rank) != bool(plan.run.rank), -(speed.tokens if speed else 0))
        method = f"LoRA, {run.base}" if run.rank else "full"
        why = f"{recipe.base.rpartition('/')[2]}, {method}"
        found.append((rank, Alternative(recipe.path.stem, memory_of(run).peak, why)))
    return [alternative for _, alternative in sorted(found, key=lambda each: each[0])]


def _more_gpus(plan: Plan) -> Iterator[Alternative]:
    """The fewest GPUs of the same kind that ZeRO-3 divides the recipe over."""
    if plan.run.base != "plain" or plan.machine.name == "CPU":
        return
    for gpus in GPUS:
        changed = plan.run.changed(gpus=gpus, zero=3)
        if gpus > plan.machine.gpus and _fits(changed, plan.machine, plan.positions):
            arguments = [plan.recipe.path.stem, f"--nproc {gpus} --deepspeed deepspeed_zero3", *plan.recipe.overrides]
            yield Alternative(" ".join(arguments), memory_of(changed).peak, f"{gpus} 张同样的卡 / {gpus} such GPUs")
            return
