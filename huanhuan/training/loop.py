"""The training loop: every supervised token of an optimiser step weighs the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from xtuner.engine.runner import TrainLoop

from huanhuan.training.data import count_supervised
from huanhuan.training.schedule import WarmupCosineLR


class StepWindows:
    """Reads ahead the packs of one optimiser step and tells each its share of the step's mean loss.

    mmengine divides every loss by the number of packs that are accumulated, and data parallelism divides the
    gradients by the number of processes: a pack with three supervised tokens would weigh as much as one with
    three hundred. ``loss_scale`` = packs x processes / supervised tokens of them all undoes both, so that
    sum of a pack's token losses x ``loss_scale`` adds up to the mean over the step's tokens.
    """

    def __init__(self, packs: Iterator[dict[str, Any]], accumulation: Callable[[], int], max_iters: int) -> None:
        self._packs = packs
        self._accumulation = accumulation
        self._left = max_iters
        self._window: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if not self._window:
            # mmengine divides the last, shorter step by what is left of it.
            size = max(1, min(self._accumulation(), self._left))
            self._window = [next(self._packs) for _ in range(size)]
            tokens = torch.tensor(float(sum(map(count_supervised, self._window))))
            all_reduce(tokens)
            for pack in self._window:
                pack["data"]["loss_scale"] = size * get_world_size() / max(float(tokens), 1.0)
        self._left -= 1
        return self._window.pop(0)


def endless(dataloader: Any) -> Iterator[dict[str, Any]]:
    """Packs for ever, shuffled anew each epoch.

    mmengine's own iterator sleeps two seconds between epochs, for the sake of worker processes: with a small
    data set that is most of the training time.
    """
    for epoch in itertools.count():
        if hasattr(dataloader.sampler, "set_epoch"):
            dataloader.sampler.set_epoch(epoch)
        yield from dataloader


class PackedTrainLoop(TrainLoop):
    """XTuner's training loop (``max_iters`` or ``max_epochs``) over :class:`StepWindows`.

    ``validations``: how many times, evenly spaced and the last step included, the held-out loss is computed.
    A number of steps, as mmengine has it, would have to be chosen anew for every data set.
    """

    def __init__(self, runner: Any, dataloader: Any, *, validations: int = 6, **kwargs: Any) -> None:
        super().__init__(runner, dataloader, **kwargs)
        interval = max(1, -(-self._max_iters // validations))
        self.val_interval, self.dynamic_milestones, self.dynamic_intervals = interval, [0], [interval]
        self.dataloader_iterator = StepWindows(endless(self.dataloader), self._accumulation, self._max_iters)

    def run(self) -> Any:
        """Train; the schedule learns here how long the run is."""
        for scheduler in self.runner.param_schedulers or []:
            if isinstance(scheduler, WarmupCosineLR):
                scheduler.set_total(self._max_iters)
        return super().run()

    def _accumulation(self) -> int:
        """Packs per optimiser step; known only once the optimiser is built."""
        strategy = self.runner.cfg.get("strategy")
        if strategy and "gradient_accumulation_steps" in strategy:
            return int(strategy["gradient_accumulation_steps"])
        return int(getattr(self.runner.optim_wrapper, "_accumulative_counts", 1))
