"""Early stop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.logging import MessageHub

from huanhuan.training.stopping import EarlyStopHook


class Runner:
    """What the hook touches of a runner; the checkpoints it asks for are counted."""

    def __init__(self, name: str) -> None:
        self.message_hub = MessageHub.get_instance(name)
        self.train_loop = SimpleNamespace(stop_training=False)
        self.iter, self.max_iters, self.epoch = 5, 100, 0
        self.told: list[str] = []
        self.logger = SimpleNamespace(info=self.told.append)
        self.hooks: list[Any] = []


def validations(hook: EarlyStopHook, runner: Runner, values: list[float]) -> int | None:
    """How many of ``values`` are reported before the hook stops the run; None if it does not."""
    for number, value in enumerate(values, 1):
        hook.after_val_epoch(runner, {hook.monitor: value})
        if runner.train_loop.stop_training:
            return number
    return None


@pytest.mark.parametrize(
    ("patience", "min_delta", "values", "stopped"),
    [
        (2, 0.0, [3.0, 2.0, 2.1, 1.9, 2.0, 2.0], 6),
        (2, 0.0, [3.0, 2.0, 2.0, 2.0], 4),
        (1, 0.1, [3.0, 2.95], 2),
        (1, 0.0, [3.0, 2.95], None),
        (2, 0.0, [3.0, float("nan"), float("nan")], 3),
        (None, 0.0, [1.0, 2.0, 3.0, 4.0], None),
    ],
)
def test_patience(
    patience: int | None, min_delta: float, values: list[float], stopped: int | None, request: pytest.FixtureRequest
) -> None:
    runner = Runner(request.node.name)
    assert validations(EarlyStopHook(patience, min_delta), runner, values) == stopped
    assert len(runner.told) == (stopped is not None)


def test_higher_may_be_better(request: pytest.FixtureRequest) -> None:
    hook = EarlyStopHook(1, monitor="accuracy", rule="greater")
    assert validations(hook, Runner(request.node.name), [0.1, 0.2, 0.3, 0.25]) == 4


def test_a_resumed_run_counts_on(request: pytest.FixtureRequest) -> None:
    first = Runner(f"{request.node.name}-1")
    assert validations(EarlyStopHook(3), first, [1.0, 2.0, 2.0]) is None
    # What a checkpoint keeps of a run's messages.
    resumed = Runner(f"{request.node.name}-2")
    resumed.message_hub.load_state_dict(first.message_hub.state_dict())
    assert validations(EarlyStopHook(3), resumed, [2.0]) == 1


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="lower"):
        EarlyStopHook(1, rule="lower")
