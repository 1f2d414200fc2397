"""Every supervised token of an optimiser step weighs the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.hooks import CheckpointHook, LoggerHook
from transformers import AutoModelForCausalLM
from xtuner.engine.runner import TrainLoop

from huanhuan.errors import UserError
from huanhuan.training import loop
from huanhuan.training.data import Dialogue, collate_pack
from huanhuan.training.hooks import ThroughputHook
from huanhuan.training.loop import PackedTrainLoop, StepWindows, endless, packs_per_step
from huanhuan.training.model import PackedFinetune


def pack(supervised: int) -> dict[str, Any]:
    length = supervised + 2
    labels = [-100, -100] + [5] * supervised
    return collate_pack([[Dialogue([5] * length, labels, "")]])


@given(steps=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=4))
def test_scales_add_up_to_the_mean_over_the_steps_tokens(steps: list[list[int]]) -> None:
    windows = StepWindows((pack(each) for step in steps for each in step), 3)
    for supervised in steps:
        step = [next(windows) for _ in range(3)]
        # mmengine divides each loss by the packs of the step.
        weights = [each["data"]["loss_scale"] / 3 for each in step]
        assert weights == pytest.approx([1 / max(sum(supervised), 1)] * 3)


def test_processes_weigh_by_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has 3 supervised tokens, the other 9: each token is worth a twelfth after the mean over both."""

    def add_nine(tokens: torch.Tensor) -> None:
        tokens += 9

    monkeypatch.setattr(loop, "all_reduce", add_nine)
    monkeypatch.setattr(loop, "get_world_size", lambda: 2)
    window = next(StepWindows(iter([pack(3)]), 1))
    assert window["data"]["loss_scale"] / 2 == pytest.approx(1 / 12)


def test_accumulated_gradients_are_those_of_one_pack(tiny_base: Path) -> None:
    llm = ConfigDict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=str(tiny_base),
        trust_remote_code=True,
        torch_dtype=torch.float32,
    )
    model = PackedFinetune(llm)
    dialogues = [
        Dialogue([9, 20, 30, 40, 50], [-100, -100, -100, 40, 50], ""),
        Dialogue([9, 60, 70, 80], [-100, 60, 70, 80], ""),
        Dialogue([9, 90, 100], [-100, -100, 100], ""),
    ]

    def gradients() -> list[torch.Tensor]:
        found = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        model.zero_grad()
        return found

    model.compute_loss(collate_pack([dialogues])["data"])["loss"].backward()
    want = gradients()
    windows = StepWindows(iter([collate_pack([[each]]) for each in dialogues]), 3)
    for _ in range(3):
        (model.compute_loss(next(windows)["data"])["loss"] / 3).backward()
    for got, wanted in zip(gradients(), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


class Loader:
    """Two packs an epoch, and a sampler that remembers the epochs it was told."""

    def __init__(self) -> None:
        self.sampler = self
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[str]:
        return iter((f"{self.epochs[-1]}a", f"{self.epochs[-1]}b"))


def test_epochs_follow_one_another_shuffled_anew() -> None:
    loader = Loader()
    assert list(itertools.islice(endless(loader), 5)) == ["0a", "0b", "1a", "1b", "2a"]
    assert loader.epochs == [0, 1, 2]


def test_packs_per_step_are_deepspeeds_where_it_trains() -> None:
    recipe: dict[str, Any] = {"optim_wrapper": {"accumulative_counts": 4}}
    assert packs_per_step(recipe) == 4
    assert packs_per_step({**recipe, "strategy": {"gradient_accumulation_steps": 2}}) == 2
    assert packs_per_step({}) == 1


class Packs(torch.utils.data.Dataset[int]):
    """Six packs."""

    def __len__(self) -> int:
        return 6


def a_loop(accumulation: int = 1, hooks: list[Any] | None = None, **settings: Any) -> PackedTrainLoop:
    """A loop over six packs of a runner that is never started."""
    runner: Any = SimpleNamespace(
        cfg=ConfigDict(optim_wrapper=dict(accumulative_counts=accumulation)), hooks=hooks or [], param_schedulers=[]
    )
    return PackedTrainLoop(runner, torch.utils.data.DataLoader(Packs()), **settings)


@pytest.mark.parametrize(
    ("accumulation", "settings", "iterations", "interval"),
    [
        (1, {"max_epochs": 3}, 18, 3),
        # Whole steps: 18 packs are four and a half of four.
        (4, {"max_epochs": 3}, 20, 4),
        (4, {"max_epochs": 3, "validations": 2}, 20, 12),
        (1, {"max_epochs": 3, "min_steps": 30}, 30, 5),
        (4, {"max_epochs": 3, "min_steps": 30}, 120, 20),
        (1, {"max_epochs": 9, "min_steps": 30}, 54, 9),
        # Said outright, it is what was meant.
        (1, {"max_iters": 2, "min_steps": 30}, 2, 1),
        (2, {"max_iters": 3}, 4, 2),
    ],
)
def test_runs_and_their_validations_end_with_a_step(
    accumulation: int, settings: dict[str, Any], iterations: int, interval: int
) -> None:
    built = a_loop(accumulation, **settings)
    assert (built.max_iters, built.val_interval) == (iterations, interval)


def test_checkpoints_wait_for_the_end_of_a_step_and_a_short_run_logs_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainLoop, "run", lambda self: None)
    saving, never = CheckpointHook(by_epoch=False, interval=5), CheckpointHook(by_epoch=False, interval=-1)
    logging, speed = LoggerHook(interval=10), ThroughputHook(interval=10)
    a_loop(4, [saving, never, logging, speed], max_iters=100).run()
    assert (saving.interval, never.interval, logging.interval, speed.interval) == (8, -1, 4, 4)
    a_loop(1, [logging], max_iters=6).run()
    assert logging.interval == 1
    long = LoggerHook(interval=10)
    a_loop(1, [long], max_iters=5000).run()
    assert long.interval == 10


def test_a_checkpoint_from_within_a_step_is_refused() -> None:
    within = a_loop(4, max_iters=8)
    within._iter = 3
    with pytest.raises(UserError, match="iter 3"):
        within.run()


def test_no_validation_is_refused() -> None:
    with pytest.raises(UserError, match="validations"):
        a_loop(max_iters=8, validations=0)
