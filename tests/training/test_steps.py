"""The length of a run, as the loops themselves have it."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from transformers import Trainer, TrainingArguments

from huanhuan.training.loop import PackedTrainLoop
from huanhuan.training.steps import loop_passes, loop_validations, trainer_passes, whole_steps


def test_whole_steps_round_up() -> None:
    assert [whole_steps(each, 4) for each in (0.5, 1, 4, 4.5, 9)] == [4, 4, 4, 8, 12]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "validations": 2},
        {"max_epochs": 3, "min_steps": 30},
        {"max_epochs": 0.5, "min_steps": 1},
        {"max_iters": 7, "min_steps": 30, "validations": 4},
        {"max_iters": 7, "validations": 100},
    ],
)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_xtuners_loop_is_as_long(accumulation: int, settings: dict[str, Any]) -> None:
    packs: Any = list(range(6))
    runner: Any = SimpleNamespace(cfg=ConfigDict(optim_wrapper=dict(accumulative_counts=accumulation)))
    loop = PackedTrainLoop(runner, torch.utils.data.DataLoader(packs), **settings)
    passes = loop_passes(6, accumulation, settings)
    assert passes == loop.max_iters
    # mmengine validates at multiples of the interval, and at the end.
    validated = [each for each in range(1, passes + 1) if each % loop.val_interval == 0 or each == passes]
    assert loop_validations(passes, accumulation, settings) == len(validated)


class Counted(torch.nn.Module):
    """A model that counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.passes = 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.passes += 1
        return {"loss": (self.weight * x.float()).mean()}


@pytest.mark.parametrize(
    ("settings", "batches", "accumulation"),
    [
        *itertools.product(({"num_train_epochs": 3}, {"num_train_epochs": 1.5}, {"max_steps": 5}), (6, 8), (1, 4)),
        ({}, 2, 4),
    ],
)
def test_the_trainer_is_as_long(settings: dict[str, Any], batches: int, accumulation: int, tmp_path: Path) -> None:
    model = Counted()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    dataset: Any = [{"x": torch.ones(1)} for _ in range(batches)]
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
    trainer.train()
    assert trainer_passes(batches, accumulation, settings) == (trainer.state.global_step, model.passes)
