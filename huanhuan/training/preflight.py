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

GIB = 2**30
# Packages whose other versions are known not to run this; see the requirements files for the reasons.
CRITICAL = ("transformers", "peft", "xtuner", "mmengine")


def check(path: Path, recipe: Any, work_dir: Path) -> dict[str, str]:
    """Check everything a run needs; return what to add to its environment.

    The base is downloaded here if it must be, so that a missing network shows before anything else is done.

    Raises: UserError with every problem found, one line each.
    """
    problems = Problems()
    for find in (_data_problems, _version_problems):
        for problem in find(recipe):
            problems.add(problem)
    environment: dict[str, str] = {}
    try:
        base = Path(find_base(recipe.pretrained_model_name_or_path))
    except UserError as error:
        for problem in error.problems:
            problems.add(problem)
    else:
        environment[ENVIRONMENT] = str(base)
        for problem in _space_problems(recipe, base, work_dir):
            problems.add(problem)
    problems.raise_if_any()
    click.echo(f"检查通过 / checked: {path.name}", err=True)
    return environment


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


def _space_problems(recipe: Any, base: Path, work_dir: Path) -> Iterator[str]:
    """Only what cannot possibly fit: the weights themselves must fit into memory and one checkpoint onto the disk."""
    stored = base_bytes(base)
    if not stored:
        yield f"{base}: 没有权重文件 / holds no weights: 下载完整的模型 / fetch the whole model"
        return
    model = recipe.model
    llm = model.get("llm", model)
    quantised = bool((llm.get("quantization_config") or {}).get("load_in_4bit"))
    trains_all = not (model.get("lora") or recipe.get("lora"))
    # NF4 takes half a byte and a scale; embeddings and head stay in 16 bits, about a tenth of a 7B model.
    needed = stored * (0.36 if quantised else 1.0) * (2 if trains_all else 1)
    free, where = _free_memory()
    if needed > free:
        yield (
            f"{where}: 需要至少 {needed / GIB:.1f} GiB，可用 {free / GIB:.1f} GiB / at least {needed / GIB:.1f} GiB of memory "
            f"needed, {free / GIB:.1f} GiB free: 换小一些的配方 / choose a smaller recipe (configs/README.md)"
        )
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


def _free_memory() -> tuple[float, str]:
    """Free bytes of the GPU, or of the machine where there is none, and which of them."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]), torch.cuda.get_device_name()
    import psutil

    return float(psutil.virtual_memory().available), "CPU"
