"""The training loop: every supervised token of an optimiser step weighs the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.logging import print_log
from xtuner.engine.runner import TrainLoop

from huanhuan.errors import UserError
from huanhuan.training.data import count_supervised
from huanhuan.training.hooks import ThroughputHook
from huanhuan.training.schedule import WarmupCosineLR
from huanhuan.training.steps import loop_passes, packs_per_step, whole_steps


class StepWindows:
    """Reads ahead the packs of one optimiser step and tells each its share of the step's mean loss.

    mmengine divides every loss by the number of packs that are accumulated, and data parallelism divides the
    gradients by the number of processes: a pack with three supervised tokens would weigh as much as one with
    three hundred. ``loss_scale`` = packs x processes / supervised tokens of them all undoes both, so that
    sum of a pack's token losses x ``loss_scale`` adds up to the mean over the step's tokens.
    """

    def __init__(self, packs: Iterator[dict[str, Any]], accumulation: int) -> None:
        self._packs = packs
        self._accumulation = accumulation
        self._window: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if not self._window:
            self._window = [next(self._packs) for _ in range(self._accumulation)]
            tokens = torch.tensor(float(sum(map(count_supervised, self._window))))
            all_reduce(tokens)
            for pack in self._window:
                pack["data"]["loss_scale"] = self._accumulation * get_world_size() / max(float(tokens), 1.0)
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

    ``min_steps``: optimiser steps that a run given in epochs makes at least, by more epochs over a small data set.

    ``log_lines``: how many training losses the log of a short run has at least, if it has as many iterations.

    An iteration is one pack, as in XTuner; an optimiser step takes as many as the recipe accumulates. Validations,
    checkpoints and the end of the run all fall on the border of two steps: DeepSpeed and mmengine would resume
    otherwise in the middle of one, with half of its gradients lost.

    Raises: UserError where a checkpoint is resumed that does not lie on such a border.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        *,
        validations: int = 6,
        min_steps: int = 0,
        log_lines: int = 25,
        **kwargs: Any,
    ) -> None:
        if validations < 1:
            raise UserError(
                f"[train_cfg.validations] {validations}: 至少 1 / must be at least 1: the held-out loss keeps the best"
            )
        super().__init__(runner, dataloader, **kwargs)
        self.log_lines = log_lines
        self.accumulation = packs_per_step(runner.cfg)
        settings = {**kwargs, "min_steps": min_steps}
        self._max_iters = loop_passes(len(self.dataloader), self.accumulation, settings)
        epochs = self._max_iters / len(self.dataloader)
        if kwargs.get("max_epochs") and self._max_iters == min_steps * self.accumulation:
            print_log(f"数据少 / little data: min_steps={min_steps}, {epochs:.1f} epochs", "current")
        interval = whole_steps(self._max_iters / validations, self.accumulation)
        self.val_interval, self.dynamic_milestones, self.dynamic_intervals = interval, [0], [interval]
        self.dataloader_iterator = StepWindows(endless(self.dataloader), self.accumulation)

    def run(self) -> Any:
        """Train; schedule, checkpoints and log learn here how long the run is."""
        if self._iter % self.accumulation:
            raise UserError(
                f"iter {self._iter}: 检查点不在 {self.accumulation} 包一步的边界上 / the checkpoint lies within a step of "
                f"{self.accumulation} packs: resume another one, or with the accumulative_counts it was made with"
            )
        for scheduler in self.runner.param_schedulers or []:
            if isinstance(scheduler, WarmupCosineLR):
                scheduler.set_total(self._max_iters)
        for hook in self.runner.hooks:
            if isinstance(hook, CheckpointHook) and not hook.by_epoch and hook.interval > 0:
                hook.interval = whole_steps(hook.interval, self.accumulation)
            elif isinstance(hook, (LoggerHook, ThroughputHook)):
                # Else a short run would leave a curve of one point.
                hook.interval = max(1, min(hook.interval, self._max_iters // self.log_lines))
        return super().run()
