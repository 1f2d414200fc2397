"""The learning rate as a share of the run, whatever its length turns out to be."""

from __future__ import annotations

import math
from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler


def warmup_cosine(step: int, total: int, warmup: float, final: float = 0.0) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``total``.

    The first ``warmup`` x ``total`` steps, at least one, rise in a line to 1; a half cosine falls to ``final``.

    >>> [round(warmup_cosine(step, 10, 0.2), 2) for step in (0, 1, 2, 6, 9, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.04, 0.0]
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    progress = min(1.0, (step - rising) / max(1, total - rising))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """:func:`warmup_cosine` over the whole run.

    mmengine's own schedulers want their first and last step written down, or epochs, which a small data set
    packed into five rows turns into a warm-up of no step at all. ``PackedTrainLoop`` tells this one the total.
    """

    def __init__(self, optimizer: Any, *args: Any, warmup: float = 0.03, final: float = 0.0, **kwargs: Any) -> None:
        self.warmup, self.final = warmup, final
        self.total: int | None = None
        # Unless the recipe says by_epoch=False, mmengine fills in an end of one epoch, and a loop of steps has one.
        kwargs |= {"by_epoch": False, "end": INF}
        super().__init__(optimizer, *args, **kwargs)

    def set_total(self, total: int) -> None:
        """Say how many steps the run has, and set the learning rate of the step it stands at."""
        self.total = total
        for group, value in zip(self.optimizer.param_groups, self._get_value(), strict=True):
            group[self.param_name] = value

    def _get_value(self) -> list[float]:
        share = 0.0 if self.total is None else warmup_cosine(self.last_step, self.total, self.warmup, self.final)
        return [base * share for base in self.base_values]
