"""What must hold before a training run starts: data, base, versions, memory and disk."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from huanhuan.dataset.validate import validate_file
from huanhuan.errors import Problems, UserError, disk_size
from huanhuan.files import free_space, nearest_existing
from huanhuan.paths import ROOT, in_checkout
from huanhuan.persona import load_persona
from huanhuan.training.base import ENVIRONMENT, find_base, local_base
from huanhuan.training.machine import this_machine
from huanhuan.training.memory import Shape, checkpoint_of
from huanhuan.training.plan import known_shape, obstacles, shape_in
from huanhuan.training.plan_data import count_data
from huanhuan.training.plan_recipe import Length, Recipe, run_of, value_at
from huanhuan.weight_files import indexed_files, safetensors_damage

# Packages whose other versions are known not to run this; see the requirements files for the reasons.
CRITICAL = ("transformers", "peft", "xtuner", "mmengine")


def check(path: Path, recipe: Any, work_dir: Path, *, gpus: int = 1, deepspeed: str | None = None) -> dict[str, str]:
    """Check everything a run on ``gpus`` GPUs needs; return what to add to its environment.

    The base is downloaded here if it must be, once everything else is known to be right.

    Raises: UserError with every problem found, one line each.
    """
    problems = Problems()
    for find in (_data_problems, _version_problems):
        problems.extend(find(recipe))
    name = recipe.pretrained_model_name_or_path
    try:
        shape = known_shape(name)
        told = list(_memory_problems(path, recipe, shape, gpus, deepspeed)) if shape else []
    except UserError as error:
        shape, told = None, error.problems
    here = local_base(name) if shape else None
    problems.extend(told)
    if here:
        problems.extend(_base_problems(here))
    problems.extend(_folder_problems(work_dir))
    if shape:
        problems.extend(_disk_problems(path, recipe, shape, work_dir, gpus, deepspeed))
    # Nothing is fetched for a run that cannot be.
    problems.raise_if_any()
    base = Path(find_base(name))
    if shape is None:
        shape = shape_in(base)
        problems.extend(_memory_problems(path, recipe, shape, gpus, deepspeed))
        problems.extend(_disk_problems(path, recipe, shape, work_dir, gpus, deepspeed))
    if here is None:
        problems.extend(_base_problems(base))
    problems.raise_if_any()
    click.echo(f"检查通过 / checked: {path.name}", err=True)
    return {ENVIRONMENT: str(base)}


def _data_problems(recipe: Any) -> Iterator[str]:
    for loader in ("train_dataloader", "val_dataloader"):
        file = ((recipe.get(loader) or {}).get("dataset") or {}).get("path")
        if file is None:
            continue
        try:
            yield from validate_file(in_checkout(file)).errors
        except UserError as error:
            yield from error.problems
    if recipe.get("persona"):
        try:
            load_persona(in_checkout(recipe.persona))
        except UserError as error:
            yield from error.problems


def pinned_versions(file: Path) -> dict[str, str]:
    """The exact pins of a requirements file: ``{"torch": "2.8.0"}`` for a line ``torch==2.8.0  # why``."""
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)", file.read_text("utf-8"), re.MULTILINE)
    return {name.lower(): version for name, version in pins}


def _version_problems(recipe: Any) -> Iterator[str]:
    pins = pinned_versions(ROOT / "requirements.txt") | pinned_versions(ROOT / "requirements-train.txt")
    for name, wanted in pins.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = None
        if found is None and name in CRITICAL:
            yield f"{name}: 没有安装 / is not installed: make setup"
        elif found is not None and found.split("+")[0] != wanted:
            if name in CRITICAL:
                yield f"{name} {found}: 需要 {wanted} / {wanted} is needed: make setup"
            else:
                click.echo(f"提示 / note: {name} {found}, 测试过的是 {wanted} / tested with {wanted}", err=True)


def _base_problems(base: Path) -> Iterator[str]:
    """What is missing or cut off among the base's weight files, of which an index names all."""
    advice = "重新下载底模 / download the base again"
    files = sorted([*base.glob("*.safetensors"), *base.glob("pytorch_model*.bin")])
    for index in (*base.glob("*.safetensors.index.json"), *base.glob("pytorch_model*.index.json")):
        try:
            named = indexed_files(index)
        except ValueError:
            yield f"{index}: 索引损坏 / damaged index: {advice}"
            continue
        if not any((base / name).is_file() for name in named) and files:
            continue  # an index of weights in the other format, which were not fetched
        for name in named:
            if not (base / name).is_file():
                yield f"{base / name}: 缺少权重文件 / weights missing: {advice}"
    if not files:
        yield f"{base}: 没有权重文件 / holds no weights: {advice}"
    for file in files:
        wrong = safetensors_damage(file) if file.suffix == ".safetensors" else None
        if wrong is not None:
            yield f"{file}: 权重损坏 / damaged weights ({wrong}): {advice}"


def _folder_problems(work_dir: Path) -> Iterator[str]:
    there = nearest_existing(work_dir)
    if not there.is_dir():
        yield f"{there}: 是文件而不是目录 / is a file, not a folder: 换一个 --work-dir / choose another"
    elif not os.access(there, os.W_OK):
        yield f"{there}: 没有写权限 / may not be written: 换一个 --work-dir / choose another"


def _memory_problems(path: Path, recipe: Any, shape: Shape, gpus: int, deepspeed: str | None) -> Iterator[str]:
    """What tools/plan.py says of this machine, and that it is the place to look."""
    try:
        read = Recipe.of(path, recipe)
        run = run_of(read, shape, gpus=gpus, deepspeed=deepspeed)
        found = [*read.contradictions(), *obstacles(run, this_machine(gpus=gpus))]
    except UserError as error:
        found = error.problems
    for each in found:
        yield f"{each}（详见 / see python tools/plan.py {path.stem}）"


def _disk_problems(
    path: Path, recipe: Any, shape: Shape, work_dir: Path, gpus: int, deepspeed: str | None
) -> Iterator[str]:
    """The disk must hold the checkpoints that are kept at a time."""
    disk = free_space(work_dir)
    try:
        needed = checkpoint_space(Recipe.of(path, recipe), shape, gpus=gpus, deepspeed=deepspeed)
    except UserError:
        return  # the data cannot be read or the settings contradict each other, which is told elsewhere
    if needed > disk:
        free, wanted = disk_size(disk), disk_size(needed)
        yield (
            f"{work_dir}: 检查点需要 {wanted} 磁盘，剩 {free} / checkpoints need {wanted} of disk, {free} are free: "
            "清理或换 --work-dir / free some or use --work-dir"
        )


def checkpoint_space(recipe: Recipe, shape: Shape, *, gpus: int = 1, deepspeed: str | None = None) -> float:
    """Bytes of all checkpoints that lie on the disk at a time.

    Raises: UserError if the training file cannot be read.
    """
    weights, states = checkpoint_of(run_of(recipe, shape, gpus=gpus, deepspeed=deepspeed))
    file = recipe.data_file
    packs = count_data(file, recipe.max_length, None).packs(recipe.pack_length) if file else 0
    # Twice as many, because tokens are estimated here: it only has to tell one checkpoint from several.
    whole, light = kept_checkpoints(recipe, recipe.length(max(2 * packs, 1), gpus))
    return whole * (weights + states) + light * weights


def kept_checkpoints(recipe: Recipe, length: Length) -> tuple[int, int]:
    """How many checkpoints there are at most at a time: such that a run is resumed from, and weights alone."""
    if recipe.through_trainer:
        every, limit = recipe.trainer.get("save_steps", 500), int(recipe.trainer.get("save_total_limit") or 0)
        if recipe.trainer.get("save_strategy") == "epoch":
            every = length.steps / length.epochs
        saves = -int(-length.steps // (every if every >= 1 else every * length.steps))
        # The oldest goes after the newest is written, and at the end the result is saved beside them.
        return min(saves, limit + 1) if limit > 0 else saves, 1
    hook = value_at(recipe.values, "default_hooks.checkpoint") or {}
    every, limit = int(hook.get("interval", -1)), int(hook.get("max_keep_ckpts", -1))
    once = hook.get("by_epoch", True) or not 0 < every < length.passes
    # A new best one saves the run's state once more.
    saves = 1 if once else -(-length.passes // every) + length.validations
    best = hook.get("save_best") or ()
    # mmengine removes the oldest before it writes, and keeps the best without the optimiser's states.
    return min(saves, limit) if limit > 0 else saves, 1 if isinstance(best, str) else len(best)
