"""DeepSpeed checkpoints: a folder with a piece of every tensor per process."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from huanhuan.errors import UserError
from huanhuan.export.checkpoint import load_untrusted
from huanhuan.export.weights import LazyTensor

# The only class of DeepSpeed's whose value is needed: an enumeration of integers.
KNOWN = {"deepspeed.runtime.zero.config.ZeroStageEnum": int}


@dataclass(frozen=True)
class Pieces:
    """A tensor whose elements lie one after another in flat pieces; rows of it are put together when asked for."""

    pieces: tuple[torch.Tensor, ...]
    shape: tuple[int, ...]

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """``[...]`` or a slice of rows without a step."""
        if rows is ... or not self.shape:
            return _joined(self.pieces).view(self.shape)
        start, stop, _ = rows.indices(self.shape[0])
        width = math.prod(self.shape[1:])
        return _joined(cut(self.pieces, start * width, (stop - start) * width)).view(-1, *self.shape[1:])

    def lazy(self) -> LazyTensor:
        """As the rest of the export takes it."""
        return LazyTensor(self.shape, self.pieces[0].dtype, lambda: self)


def _joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces))


def cut(pieces: Sequence[torch.Tensor], start: int, count: int) -> tuple[torch.Tensor, ...]:
    """Views of the ``count`` elements from ``start`` on of flat ``pieces`` thought one after another.

    >>> cut([torch.arange(3), torch.arange(3, 6)], 2, 2)
    (tensor([2]), tensor([3]))

    Raises: ValueError if they hold fewer.
    """
    found, missing = [], count
    for piece in pieces:
        if start < piece.numel() and missing:
            found.append(piece[start : start + missing])
            missing -= found[-1].numel()
        start = max(0, start - piece.numel())
    if missing:
        raise ValueError(f"the pieces are {missing} elements short")
    # A tensor of no elements still has a type.
    return tuple(found) or (pieces[0][:0],)


def load_zero_folder(folder: Path) -> dict[str, Any]:
    """``{"state_dict": …, "meta": …}`` of a ZeRO-1, 2 or 3 checkpoint folder: lazy tensors, those trained in fp32.

    The files are memory-mapped and nothing in them is executed. The layout is that of DeepSpeed's own
    ``deepspeed.utils.zero_to_fp32``, which holds the whole model in memory.

    Raises: UserError if the folder holds no DeepSpeed checkpoint, or not all of one; ValueError if it is damaged.
    """
    states = [load_untrusted(file, KNOWN) for file in _by_process(folder, "optim_states")]
    models = [load_untrusted(file, KNOWN) for file in _by_process(folder, "model_states")]
    if not states:
        raise UserError(
            f"{folder}: 不是检查点目录 / not a checkpoint folder (no *_optim_states.pt): check --checkpoint"
        )
    optimizers = [each["optimizer_state_dict"] for each in states]
    stage, processes = int(optimizers[0]["zero_stage"]), optimizers[0]["partition_count"]
    processes = max(processes) if isinstance(processes, list) else processes
    for name, found, wanted in (
        ("optim_states", len(states), processes),
        ("model_states", len(models), processes if stage == 3 else 1),
    ):
        if found < wanted:
            raise UserError(
                f"{folder}: *_{name}.pt 应有 {wanted} 个，只有 {found} 个 / {found} of {wanted} files *_{name}.pt: "
                f"把每台机器写出的都拷到这里 / copy here what every machine wrote"
            )
    read = _partitioned if stage == 3 else _flattened
    # In DeepSpeed's order, which is that of its own conversion.
    tensors = {name: LazyTensor.of(models[0]["module"][name].float()) for name in _buffers(models[0])}
    tensors |= {name: pieces.lazy() for name, pieces in read(models, optimizers)}
    tensors |= {alias: tensors[name] for alias, name in models[0]["shared_params"].items() if name in tensors}
    meta = next((each["meta"] for each in (*models, *states) if isinstance(each.get("meta"), Mapping)), {})
    return {"state_dict": tensors, "meta": meta}


def _by_process(folder: Path, kind: str) -> list[Path]:
    """``zero_pp_rank_10_…`` is the eleventh process's."""
    return sorted(
        folder.glob(f"*_{kind}.pt"), key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)]
    )


def _buffers(model: Mapping[str, Any]) -> list[str]:
    wanted = set(model["buffer_names"])
    return [name for name in model["module"] if name in wanted]


def _flattened(
    models: Sequence[Mapping[str, Any]], optimizers: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Pieces]]:
    """Stages 1 and 2: the tensors of a parameter group one after another, cut among the processes wherever it falls."""
    frozen = models[0].get("frozen_param_fragments") or {}
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        yield name, Pieces((_flat(frozen[name]),), tuple(shape))
    groups = zip(*(each["single_partition_of_fp32_groups"] for each in optimizers), strict=True)
    # DeepSpeed pads a group to a multiple of this.
    border = 2 * len(optimizers)
    for shapes, partitions in zip(models[0]["param_shapes"], groups, strict=True):
        flat, offset = [_flat(each) for each in partitions], 0
        for name, shape in shapes.items():
            count = math.prod(shape)
            yield name, Pieces(cut(flat, offset, count), tuple(shape))
            offset += count
        held = sum(each.numel() for each in flat)
        if -(-offset // border) != -(-held // border):
            raise ValueError(f"the tensors of a group have {offset} elements, its pieces {held}")


def _partitioned(
    models: Sequence[Mapping[str, Any]], optimizers: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Pieces]]:
    """Stage 3: every tensor cut into as many equal pieces as there are processes, the last one padded."""
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        pieces = [_flat(each["frozen_param_fragments"][name]) for each in models]
        yield name, Pieces(cut(pieces, 0, math.prod(shape)), tuple(shape))
    owned = [[_flat(group) for group in each["fp32_flat_groups"]] for each in optimizers]
    offset = 0
    for shapes in models[0]["param_shapes"]:
        for name, shape in shapes.items():
            share = -(-math.prod(shape) // len(owned))
            pieces = [piece for groups in owned for piece in cut(groups, offset, share)]
            yield name, Pieces(cut(pieces, 0, math.prod(shape)), tuple(shape))
            offset += share
    held = sum(group.numel() for group in owned[0])
    if offset != held:
        raise ValueError(f"the tensors have {offset} elements on a process, its pieces {held}")


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1)
