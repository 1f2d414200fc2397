"""How long a run is, in passes of one pack or batch and in optimiser steps. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def packs_per_step(recipe: Mapping[str, Any]) -> int:
    """Packs that one process accumulates in an optimiser step: DeepSpeed's setting if it trains, else mmengine's."""
    strategy = recipe.get("strategy") or {}
    own = (recipe.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    return int(strategy.get("gradient_accumulation_steps") or own)


def whole_steps(iterations: float, accumulation: int) -> int:
    """``iterations``, one pack each, rounded up to a whole number of optimiser steps.

    >>> whole_steps(7, 1), whole_steps(7, 4), whole_steps(8, 4), whole_steps(0.5, 1)
    (7, 8, 8, 1)
    """
    return max(1, -int(-iterations // accumulation)) * accumulation


def loop_passes(batches: int, accumulation: int, settings: Mapping[str, Any]) -> int:
    """Passes that a process makes in :class:`huanhuan.training.loop.PackedTrainLoop`, given ``train_cfg``.

    ``batches`` are those of one epoch on one process.

    >>> loop_passes(6, 4, {"max_epochs": 3}), loop_passes(6, 4, {"max_epochs": 3, "min_steps": 30})
    (20, 120)
    """
    epochs = settings.get("max_epochs")
    asked = whole_steps(settings.get("max_iters") or batches * (epochs or 1), accumulation)
    return max(asked, int(settings.get("min_steps") or 0) * accumulation) if epochs else asked


def loop_validations(passes: int, accumulation: int, settings: Mapping[str, Any]) -> int:
    """How often that loop validates in ``passes``.

    >>> loop_validations(20, 4, {"validations": 6}), loop_validations(20, 4, {"validations": 2})
    (5, 2)
    """
    return -(-passes // whole_steps(passes / int(settings.get("validations", 6)), accumulation))


def trainer_passes(batches: int, accumulation: int, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Optimiser steps and passes of :class:`huanhuan.training.trainer.PackedTrainer`, given its arguments.

    It counts the steps of an epoch rounded down, and makes one more where batches are left over.

    >>> trainer_passes(6, 4, {"num_train_epochs": 4}), trainer_passes(8, 4, {"max_steps": 5})
    ((4, 12), (5, 20))
    >>> trainer_passes(2, 1, {"num_train_epochs": 3, "min_steps": 30})
    (30, 30)
    """
    most = int(settings.get("max_steps") or -1)
    epochs = float(settings.get("num_train_epochs") or 3)
    steps = most if most > 0 else -int(-epochs * max(batches // accumulation, 1) // 1)
    if most <= 0:
        steps = max(steps, int(settings.get("min_steps") or 0))
    whole, more = divmod(steps, -(-batches // accumulation))
    return steps, whole * batches + min(more * accumulation, batches)
