"""The whole export: recipe and checkpoint in, a model folder or an adapter folder out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from huanhuan.errors import UserError, disk_size
from huanhuan.export.adapter import Adapter, adapter_from_checkpoint, write_adapter
from huanhuan.export.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from huanhuan.export.merge import plan_merge, write_merged
from huanhuan.export.model_folder import (
    load_tokenizer,
    read_config,
    write_model_files,
    write_provenance,
)
from huanhuan.export.recipe import ExportRecipe, find_base_folder, load_recipe
from huanhuan.export.weights import read_weights
from huanhuan.files import free_space, new_folder

DTYPES = {"keep": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Configuration, code and tokenizer beside the weights.
SMALL_FILES = 64 * 2**20


@dataclass(frozen=True)
class Exported:
    """What an export wrote and from what."""

    folder: Path
    checkpoint: Path
    base: str
    weight_bytes: int


def export(
    recipe_path: Path,
    out: Path,
    *,
    checkpoint: str | None = None,
    work_dir: Path | None = None,
    base: Path | None = None,
    adapter_only: bool = False,
    overwrite: bool = False,
    max_shard_size: str | None = None,
    dtype: str = "keep",
    options: Sequence[str] = (),
    progress: bool = True,
) -> Exported:
    """Turn a training checkpoint into a model folder that anyone can load, or into a PEFT adapter.

    ``checkpoint`` None is the newest one of the recipe's work dir (or of ``work_dir``), ``best`` the best one;
    ``dtype`` is one of DTYPES; ``max_shard_size`` such as ``2GB`` cuts the weights anew instead of keeping the
    base's files; ``options`` are the ``--cfg-options`` training was started with.

    Raises: UserError with every problem found; ``out`` then is as it was.
    """
    max_shard_bytes = _parse_size(max_shard_size) if max_shard_size else None
    recipe = load_recipe(recipe_path, options)
    if adapter_only and recipe.lora is None:
        raise UserError(
            f"{recipe_path}: 全量微调没有适配器 / full finetuning has no adapter: 去掉 --adapter-only / drop --adapter-only"
        )
    found = find_checkpoint((work_dir,) if work_dir else recipe.work_dirs, checkpoint)
    _protect(out, found)
    with new_folder(out, overwrite=overwrite) as folder:
        loaded = load_checkpoint(found)
        provenance = _provenance(recipe, found, adapter_only=adapter_only)
        adapter = None
        if recipe.lora is not None or any(".lora_" in name for name in loaded.tensors):
            adapter = adapter_from_checkpoint(loaded, recipe.lora)
        if adapter_only:
            assert adapter is not None
            size = _adapter_bytes(adapter, dtype)
            _check_space(out, size)
            write_adapter(adapter, folder, recipe.base, DTYPES[dtype])
            write_provenance(folder, provenance)
            return Exported(out, found, recipe.base, size)
        base_folder = find_base_folder(recipe, base)
        _protect(out, base_folder)
        size = _merge(base_folder, folder, out, adapter, loaded, DTYPES[dtype], max_shard_bytes, provenance, progress)
    return Exported(out, found, recipe.base, size)


def _merge(
    base: Path,
    folder: Path,
    out: Path,
    adapter: Adapter | None,
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    max_shard_bytes: int | None,
    provenance: dict[str, Any],
    progress: bool,
) -> int:
    """Write the merged model of ``base`` into ``folder`` (which becomes ``out``); the bytes of its weights."""
    changed, replaced = adapter.changes() if adapter else ({}, dict(checkpoint.tensors))
    plan = plan_merge(
        read_weights(base),
        read_config(base),
        changed=changed,
        replaced=replaced,
        full=adapter is None,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )
    _check_space(out, plan.size)
    tokenizer = load_tokenizer(base)
    write_model_files(base, folder, tokenizer, untied=plan.untied, dtype=dtype, provenance=provenance)
    write_merged(plan, folder, progress=progress)
    return plan.size


def _provenance(recipe: ExportRecipe, checkpoint: Path, *, adapter_only: bool) -> dict[str, Any]:
    return {
        "kind": "adapter" if adapter_only else "merged",
        "method": "full" if recipe.lora is None else "lora",
        "recipe": recipe.name,
        # A base given as a folder is named by it alone: where it lay says nothing elsewhere.
        "base": Path(recipe.base).name if Path(recipe.base).is_absolute() else recipe.base,
        "checkpoint": checkpoint.name,
        "system": recipe.system,
    }


def _adapter_bytes(adapter: Adapter, dtype: str) -> int:
    chosen = DTYPES[dtype]
    return sum(tensor.numel() * (chosen or tensor.dtype).itemsize for tensor in adapter.tensors.values())


def _protect(out: Path, needed: Path) -> None:
    """Refuse an ``out`` whose replacement would delete what it is made from."""
    out, needed = out.resolve(), needed.resolve()
    if out == needed or out in needed.parents:
        raise UserError(
            f"{out}: 会覆盖 {needed.name}，换一个 --out / would overwrite {needed.name}, which is needed: choose another"
        )


def _check_space(out: Path, needed: int) -> None:
    free = free_space(out)
    if free < needed + SMALL_FILES:
        raise UserError(
            f"{out}: 磁盘空间不足，需要 {disk_size(needed + SMALL_FILES)}，剩余 {disk_size(free)} / "
            f"not enough disk space, {disk_size(needed + SMALL_FILES)} needed, {disk_size(free)} free: "
            "清理或换 --out / free some or choose another --out"
        )


def _parse_size(text: str) -> int:
    from accelerate.utils import convert_file_size_to_int

    try:
        size = int(convert_file_size_to_int(text))
    except ValueError:
        size = 0
    if size <= 0:
        raise UserError(f"--max-shard-size {text}: 写成 2GB 或 500MB / write it as 2GB or 500MB")
    return size
