"""What must hold before a training run starts: data, base, versions, memory and disk."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from huanhuan.dataset.validate import validate_file
from huanhuan.errors import Problems, UserError
from huanhuan.paths import ROOT, in_checkout
from huanhuan.persona import load_persona
from huanhuan.training.base import ENVIRONMENT, find_base
from huanhuan.training.machine import this_machine
from huanhuan.training.memory import GIB, Shape
from huanhuan.training.plan import Recipe, known_shape, obstacles, run_of, shape_in

# Packages whose other versions are known not to run this; see the requirements files for the reasons.
CRITICAL = ("transformers", "peft", "xtuner", "mmengine")


def check(path: Path, recipe: Any, work_dir: Path, *, gpus: int = 1, deepspeed: str | None = None) -> dict[str, str]:
    """Check everything a run on ``gpus`` GPUs needs; return what to add to its environment.

    The base is downloaded here if it must be, once everything else is known to be right.

    Raises: UserError with every problem found, one line each.
    """
    problems = Problems()
    for find in (_data_problems, _version_problems):
        for problem in find(recipe):
            problems.add(problem)
    name = recipe.pretrained_model_name_or_path
    try:
        shape = known_shape(name)
        told = _memory_problems(path, recipe, shape, gpus, deepspeed) if shape else []
    except UserError as error:
        shape, told = None, error.problems
    for problem in told:
        problems.add(problem)
    # Nothing is fetched for a run that cannot be.
    problems.raise_if_any()
    base = Path(find_base(name))
    late = _memory_problems(path, recipe, shape_in(base), gpus, deepspeed) if shape is None else []
    for problem in (*late, *_disk_problems(recipe, base, work_dir)):
        problems.add(problem)
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


def base_bytes(base: Path) -> int:
    """Bytes of the base's weight files."""
    files = list(base.glob("*.safetensors")) or list(base.glob("pytorch_model*.bin"))
    return sum(file.stat().st_size for file in files)


def _memory_problems(path: Path, recipe: Any, shape: Shape, gpus: int, deepspeed: str | None) -> Iterator[str]:
    """What tools/plan.py says of this machine, and that it is the place to look."""
    try:
        run = run_of(Recipe.of(path, recipe), shape, gpus=gpus, deepspeed=deepspeed)
        found = list(obstacles(run, this_machine(gpus=gpus)))
    except UserError as error:
        found = error.problems
    for each in found:
        yield f"{each}（详见 / see python tools/plan.py {path.stem}）"


def _disk_problems(recipe: Any, base: Path, work_dir: Path) -> Iterator[str]:
    """The disk must hold the checkpoints that are kept at a time."""
    stored = base_bytes(base)
    if not stored:
        yield f"{base}: 没有权重文件 / holds no weights: 下载完整的模型 / fetch the whole model"
        return
    trains_all = not (recipe.model.get("lora") or recipe.get("lora"))
    folder = work_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free
    # A LoRA checkpoint with its optimiser state is at most a tenth of the base; two are kept while a third is written.
    checkpoint = stored * (3 if trains_all else 0.1) * 3
    if checkpoint > disk:
        yield (
            f"{work_dir}: 检查点需要 {checkpoint / GIB:.1f} GiB 磁盘，剩 {disk / GIB:.1f} GiB / checkpoints need "
            f"{checkpoint / GIB:.1f} GiB of disk, {disk / GIB:.1f} GiB are free: 清理或换 --work-dir / free some or use --work-dir"
        )
