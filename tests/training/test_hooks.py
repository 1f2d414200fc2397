"""The stop at numbers that are not finite, and what a checkpoint keeps of the random generators."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub

from huanhuan.errors import UserError
from huanhuan.training import hooks
from huanhuan.training.hooks import RandomStateHook, StopAtNaNHook, random_state, set_random_state, state_is_kept


class Runner:
    """What the hooks touch of a runner."""

    def __init__(self, name: str, accumulation: int = 1, saving: int = 100, validating: int = 100) -> None:
        self.iter, self.max_iters = 0, 1000
        self.train_loop = SimpleNamespace(accumulation=accumulation, val_interval=validating)
        self.hooks = [CheckpointHook(by_epoch=False, interval=saving)]
        self.optim_wrapper = SimpleNamespace()
        self.message_hub = MessageHub.get_instance(name)
        self._resume = True
        self.said = ""


def losses(hook: StopAtNaNHook, runner: Runner, values: list[float]) -> int | None:
    """After how many iterations the hook ends a run with these losses; None if it does not."""
    for number, value in enumerate(values):
        runner.iter = number
        batch = {"data_samples": [f"train.jsonl:{number + 1}"]}
        try:
            hook.after_train_iter(runner, number, batch, {"loss": torch.tensor(value)})
        except UserError as error:
            runner.said = str(error)
            return number + 1
    return None


NAN = float("nan")


@pytest.mark.parametrize(
    ("every", "saving", "validating", "found"),
    [
        (1, 100, 100, 3),
        (10, 100, 100, 10),
        # Before anything is kept.
        (10, 4, 100, 4),
        (10, 100, 5, 5),
    ],
)
def test_the_first_bad_step_and_its_records_are_named(
    every: int, saving: int, validating: int, found: int, request: pytest.FixtureRequest
) -> None:
    runner = Runner(request.node.name, saving=saving, validating=validating)
    assert losses(StopAtNaNHook(every), runner, [1.0, 1.0, NAN, NAN, *[1.0] * 20]) == found
    assert "step 3:" in runner.said and "(records train.jsonl:3)" in runner.said


def test_a_step_of_several_packs_names_the_records_of_all(request: pytest.FixtureRequest) -> None:
    runner = Runner(request.node.name, accumulation=3)
    assert losses(StopAtNaNHook(10), runner, [1.0] * 4 + [NAN] + [1.0] * 9) == 10
    assert "step 2:" in runner.said and "(records train.jsonl:4, train.jsonl:5, train.jsonl:6)" in runner.said


def test_all_is_looked_at_before_the_end(request: pytest.FixtureRequest) -> None:
    runner = Runner(request.node.name)
    runner.max_iters = 3
    assert losses(StopAtNaNHook(10), runner, [1.0, 1.0, NAN]) == 3


@pytest.mark.parametrize("value", [float("inf"), NAN])
def test_a_gradient_counts_too(value: float, request: pytest.FixtureRequest) -> None:
    runner = Runner(request.node.name, saving=2)
    runner.message_hub.update_scalar("train/grad_norm", value)
    assert losses(StopAtNaNHook(10), runner, [1.0, 1.0]) == 2
    # Where a loss scale is searched for, steps with such gradients are left out.
    runner.optim_wrapper = SimpleNamespace(loss_scaler=None)
    assert losses(StopAtNaNHook(10), runner, [1.0, 1.0]) is None


def test_finite_numbers_go_on(request: pytest.FixtureRequest) -> None:
    assert losses(StopAtNaNHook(2), Runner(request.node.name), [1.0] * 20) is None


def test_another_processs_bad_loss_stops_this_one(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def second_is_ill(flags: torch.Tensor, operation: str) -> None:
        assert operation == "max"
        flags[1] = 1

    monkeypatch.setattr(hooks, "all_reduce", second_is_ill)
    runner = Runner(request.node.name)
    assert losses(StopAtNaNHook(3), runner, [1.0] * 9) == 3
    assert "step 2:" in runner.said and "train.jsonl" not in runner.said


@pytest.mark.parametrize(("iteration", "kept"), [(2, False), (3, True), (4, True), (6, False), (7, True), (999, True)])
def test_what_a_checkpoint_or_a_validation_follows(iteration: int, kept: bool, request: pytest.FixtureRequest) -> None:
    runner = Runner(request.node.name, saving=4, validating=5)
    runner.iter = iteration
    assert state_is_kept(runner) == kept


def draw() -> list[float]:
    return [float(torch.rand(())), float(numpy.random.rand()), random.random()]


def test_random_states_are_those_of_every_process(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    runner = Runner(request.node.name, saving=1)
    torch.manual_seed(7)
    other = random_state()
    wanted_other = draw()
    torch.manual_seed(3)
    monkeypatch.setattr(hooks, "all_gather_object", lambda own: [own, other])
    hook, checkpoint = RandomStateHook(), {}
    hook.after_train_iter(runner, 0)
    hook.before_save_checkpoint(runner, checkpoint)
    wanted = draw()
    monkeypatch.setattr(hooks, "get_world_size", lambda: 2)
    for rank, numbers in ((0, wanted), (1, wanted_other)):
        monkeypatch.setattr(hooks, "get_rank", lambda rank=rank: rank)
        resumed = RandomStateHook()
        resumed.after_load_checkpoint(runner, checkpoint)
        draw()
        resumed.before_train_iter(runner, 0)
        assert draw() == numbers
        # Once only.
        resumed.before_train_iter(runner, 1)
        assert draw() != numbers


def test_an_uninterrupted_run_draws_what_a_resumed_one_does(request: pytest.FixtureRequest) -> None:
    """A validation between the checkpoint and the next step draws numbers, and a resumed run has none there."""
    runner, hook = Runner(request.node.name, saving=1), RandomStateHook()
    hook.after_train_iter(runner, 0)
    checkpoint: dict[str, Any] = {}
    hook.before_save_checkpoint(runner, checkpoint)
    draw()
    hook.before_train_iter(runner, 1)
    whole = draw()
    resumed = RandomStateHook()
    resumed.after_load_checkpoint(runner, checkpoint)
    resumed.before_train_iter(runner, 1)
    assert draw() == whole


def test_by_another_number_of_processes_they_stay_as_they_are(request: pytest.FixtureRequest) -> None:
    runner, hook = Runner(request.node.name, saving=1), RandomStateHook()
    state = random_state()
    hook.after_load_checkpoint(runner, {"random_states": [state, state]})
    hook.before_train_iter(runner, 0)
    went_on = draw()
    set_random_state(state)
    assert draw() == went_on


def test_states_survive_torchs_restricted_loading(tmp_path: Any) -> None:
    torch.save(random_state(), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    wanted = draw()
    set_random_state(state)
    assert draw() == wanted
