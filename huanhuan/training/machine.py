"""The machine a recipe is planned for: this one, or one that is described."""

from __future__ import annotations

import os
from dataclasses import dataclass

from huanhuan.errors import UserError
from huanhuan.training.memory import GIB
from huanhuan.training.speed import Card, find_card


@dataclass(frozen=True)
class Machine:
    """What a run may use. ``memory`` is that of one GPU, or the host's where there is none; bytes.

    ``gpus`` are those of all ``nodes`` together, ``host`` is the memory of one node.
    """

    name: str
    memory: float
    gpus: int
    card: Card | None
    host: float
    cores: int
    total: float = 0.0
    nodes: int = 1


def node_count() -> int:
    """Machines of the run, as XTuner is told of them."""
    return int(os.environ.get("NNODES", "1"))


def this_machine(gpu_memory: float | None = None, gpus: int | None = None, card: str | None = None) -> Machine:
    """This machine, or one with ``gpu_memory`` GiB on each of ``gpus`` GPUs of the kind ``card``.

    Raises: UserError for a card that is not in the table, or for more GPUs than this machine has.
    """
    import psutil

    nodes = node_count()
    host, cores = float(psutil.virtual_memory().available), psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if card is not None:
        known = find_card(card)
        if known is None:
            raise UserError(
                f"{card}: 不认识这张卡 / not in the table of cards: 用 --gpu-memory / give --gpu-memory instead"
            )
        memory = (gpu_memory or known.gib) * GIB
        return Machine(known.name, memory, gpus or 1, known, host, cores, memory, nodes)
    if gpu_memory is not None:
        memory = gpu_memory * GIB
        return Machine(f"{gpu_memory:g} GiB GPU", memory, gpus or 1, None, host, cores, memory, nodes)
    import torch

    if not torch.cuda.is_available():
        return Machine("CPU", host, gpus or 1, None, host, cores, host, nodes)
    present = torch.cuda.device_count() * nodes
    if gpus is not None and gpus > present:
        raise UserError(f"{gpus} GPUs: 这里只有 {present} 张 / there are {present} here: 用更少的卡 / use fewer")
    name = torch.cuda.get_device_name()
    free, total = map(float, torch.cuda.mem_get_info())
    major, minor = torch.cuda.get_device_capability()
    found = find_card(name) or Card(name, 0.0, total / GIB, (major, minor))
    return Machine(name, free, gpus or 1, found, host, cores, total, nodes)
