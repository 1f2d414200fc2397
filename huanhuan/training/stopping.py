"""Early stop: training ends when the held-out replies no longer get likelier."""

from __future__ import annotations

import math
from typing import Any

from mmengine.hooks import CheckpointHook, Hook

STATE = "early_stop"


class EarlyStopHook(Hook):
    """Ends training once ``patience`` validations in a row did not lower ``monitor`` by more than ``min_delta``.

    ``patience`` None, the default, never does. Unlike mmengine's hook of that kind it counts on where it was when
    a run is resumed, and it leaves a checkpoint of the step it stopped at beside the best one.
    """

    # Before CheckpointHook, so that the best checkpoint knows the count.
    priority = "NORMAL"

    def __init__(
        self, patience: int | None = None, min_delta: float = 0.0, monitor: str = "held_out/loss", rule: str = "less"
    ) -> None:
        if rule not in ("less", "greater"):
            raise ValueError(f"rule {rule!r}: use less or greater")
        self.patience, self.min_delta, self.monitor = patience, min_delta, monitor
        self.sign = 1.0 if rule == "less" else -1.0

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Count the validation that just ended; all processes see the same metrics and stop together."""
        value = (metrics or {}).get(self.monitor)
        if self.patience is None or value is None:
            return
        best, waited = runner.message_hub.get_info(STATE, [math.inf, 0])
        value *= self.sign
        # A validation that is not a number is no improvement.
        best, waited = (value, 0) if value < best - self.min_delta else (best, waited + 1)
        runner.message_hub.update_info(STATE, [best, waited])
        if waited < self.patience or runner.train_loop.stop_training:
            return
        runner.train_loop.stop_training = True
        runner.logger.info(
            f"提前停止 / early stop: {self.monitor} 连续 {waited} 次没有改善，最好 {best * self.sign:.4f} / "
            f"has not improved {waited} times in a row, best {best * self.sign:.4f}"
        )
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.save_last and runner.iter < runner.max_iters:
                hook._save_checkpoint_with_step(runner, runner.iter, {"epoch": runner.epoch, "iter": runner.iter})
