"""Merging into the base, shard by shard and row by row: peak memory does not grow with the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from huanhuan.errors import Problems, UserError
from huanhuan.export.adapter import Change
from huanhuan.export.weights import (
    LazyTensor,
    Weights,
    byte_size,
    shard_names,
    write_index,
    write_safetensors,
)

# Where the output head takes its weight from when it is tied.
HEAD_OF_EMBEDDING = {
    "model.tok_embeddings.weight": "output.weight",
    "model.embed_tokens.weight": "lm_head.weight",
}
# A mistake usually concerns every layer: this many are shown, the rest counted.
SHOWN = 5


@dataclass(frozen=True)
class MergedTensor:
    """One weight of the merged model: where it is read from, what is done to it, and the type it is written in."""

    source: LazyTensor
    dtype: torch.dtype
    change: Change | None = None
    trained: bool = False

    @property
    def size(self) -> int:
        """Bytes in the merged model."""
        return byte_size(self.source.shape, self.dtype)


@dataclass(frozen=True)
class MergePlan:
    """Everything about the merged weights but their content."""

    tensors: Mapping[str, MergedTensor]
    shards: Mapping[str, tuple[str, ...]]
    untied: bool
    """The base ties its output head to the embedding and the merged model cannot."""

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(each.size for each in self.tensors.values())


def plan_merge(
    base: Weights,
    config: Mapping[str, Any],
    *,
    changed: Mapping[str, Change],
    replaced: Mapping[str, LazyTensor],
    full: bool = False,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> MergePlan:
    """Work out the merged model from the base, its ``config.json`` and an adapter's changes.

    ``full`` says that ``replaced`` must cover every weight. ``dtype`` None keeps each weight's own type,
    ``max_shard_bytes`` None the base's own files.

    Raises: UserError, one line per weight that does not fit the base.
    """
    if config.get("quantization_config"):
        raise UserError(
            "底模是量化过的，不能合并 / the base is quantised and cannot be merged: --base with the original"
        )
    sources = dict(base.tensors)
    replaced = dict(replaced)
    untied = _untie(sources, config, changed, replaced, full=full)
    _check_fit(sources, changed, replaced, full=full)
    tensors = {}
    for name, source in sources.items():
        kept = source.dtype if dtype is None or not source.dtype.is_floating_point else dtype
        chosen = replaced.get(name, source)
        tensors[name] = MergedTensor(chosen, kept, changed.get(name), trained=name in changed or name in replaced)
    order = [name for names in base.layout.values() for name in names if name in tensors]
    added = [name for name in tensors if name not in set(order)]
    if max_shard_bytes is None:
        groups = [[name for name in names if name in tensors] for names in base.layout.values()]
        groups[-1] += added
    else:
        groups = _cut([*order, *added], tensors, max_shard_bytes)
    shards = {file: tuple(names) for file, names in zip(shard_names(len(groups)), groups, strict=True)}
    return MergePlan(tensors, shards, untied)


def _untie(
    sources: dict[str, LazyTensor],
    config: Mapping[str, Any],
    changed: Mapping[str, Change],
    replaced: dict[str, LazyTensor],
    *,
    full: bool,
) -> bool:
    """Give a tied output head a weight of its own in ``sources`` if training told it from the embedding."""
    for embedding, head in HEAD_OF_EMBEDDING.items():
        if embedding not in sources or not config.get("tie_word_embeddings", head not in sources):
            continue
        if full and head in replaced and embedding in replaced and _equal(replaced[head], replaced[embedding]):
            # One weight under two names.
            del replaced[head]
        if full and head not in replaced:
            return False
        if {embedding, head} & (changed.keys() | replaced.keys()):
            sources[head] = sources[embedding]
            return True
    return False


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    return one.shape == other.shape and all(
        torch.equal(ours, theirs) for (_, _, ours), (_, _, theirs) in zip(one.blocks(), other.blocks(), strict=True)
    )


def _check_fit(
    sources: Mapping[str, LazyTensor],
    changed: Mapping[str, Change],
    replaced: Mapping[str, LazyTensor],
    *,
    full: bool,
) -> None:
    advice = "检查配方、检查点和 --base 是否配套 / check that recipe, checkpoint and --base belong together"
    unknown, misshapen = [], []
    for name, shape in [*((n, c.shape) for n, c in changed.items()), *((n, t.shape) for n, t in replaced.items())]:
        if name not in sources:
            unknown.append(name)
        elif shape != sources[name].shape:
            misshapen.append(f"{name} {list(shape)}, base {list(sources[name].shape)}")
    # A buffer that older code saved; training never changes it.
    missing = [name for name in sources if name not in replaced and not name.endswith("inv_freq")] if full else []
    problems = Problems()
    for kind, found in (
        ("底模里没有 / not in the base", unknown),
        ("形状与底模不符 / shape differs from the base", misshapen),
        ("检查点里没有 / not in the checkpoint", missing),
    ):
        if found:
            more = f" …（共 {len(found)} 个 / {len(found)} in all）" if len(found) > SHOWN else ""
            problems.add(f"{kind}: {', '.join(found[:SHOWN])}{more}: {advice}")
    quantised = [name for name in changed if name in sources and sources[name].dtype.itemsize < 2]
    if quantised:
        problems.add(f"底模是量化过的 / the base is quantised: {quantised[0]}: --base with the original weights")
    problems.raise_if_any()


def _cut(order: list[str], tensors: Mapping[str, MergedTensor], limit: int) -> list[list[str]]:
    """Fill one shard after the other up to ``limit`` bytes; a larger tensor has a shard to itself."""
    groups: list[list[str]] = [[]]
    room = limit
    for name in order:
        if groups[-1] and tensors[name].size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= tensors[name].size
    return groups


def write_merged(plan: MergePlan, folder: Path, *, progress: bool = True) -> None:
    """Write the planned weights into ``folder``.

    Raises: UserError if a merged weight is not a finite number in the type it is written in.
    """
    from tqdm import tqdm

    with tqdm(
        total=plan.size, unit="B", unit_scale=True, desc="合并 / merging", disable=not progress, mininterval=0.5
    ) as bar:
        for file, names in plan.shards.items():
            write_safetensors(
                folder / file,
                {name: (plan.tensors[name].source.shape, plan.tensors[name].dtype) for name in names},
                lambda name: _blocks(name, plan.tensors[name]),
                bar.update,
            )
    write_index(folder, plan.shards, plan.size)


def _blocks(name: str, tensor: MergedTensor) -> Iterator[torch.Tensor]:
    for start, stop, rows in tensor.source.blocks():
        if tensor.change is not None:
            rows = tensor.change.rows(rows.float(), start, stop)
        rows = rows.to(tensor.dtype)
        if tensor.trained and not torch.isfinite(rows).all():
            raise UserError(
                f"{name}: 合并后有 NaN 或溢出（{tensor.dtype}）/ NaN or overflow after merging: "
                f"用更早的检查点或 --dtype bf16 / use an earlier checkpoint or --dtype bf16"
            )
        yield rows
