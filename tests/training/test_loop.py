"""Every supervised token of an optimiser step weighs the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from transformers import AutoModelForCausalLM

from huanhuan.training import loop
from huanhuan.training.data import Dialogue, collate_pack
from huanhuan.training.loop import StepWindows, endless
from huanhuan.training.model import PackedFinetune


def pack(supervised: int) -> dict[str, Any]:
    length = supervised + 2
    labels = [-100, -100] + [5] * supervised
    return collate_pack([[Dialogue([5] * length, labels, "")]])


@given(
    supervised=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    accumulation=st.integers(1, 4),
)
def test_scales_add_up_to_the_mean_over_the_steps_tokens(supervised: list[int], accumulation: int) -> None:
    packs = (pack(each) for each in supervised)
    windows = list(itertools.islice(StepWindows(packs, lambda: accumulation, len(supervised)), len(supervised)))
    for first in range(0, len(supervised), accumulation):
        step = windows[first : first + accumulation]
        tokens = sum(supervised[first : first + accumulation])
        # mmengine divides each loss by the packs of the step.
        weights = [each["data"]["loss_scale"] / len(step) for each in step]
        assert weights == pytest.approx([1 / max(tokens, 1)] * len(step))


def test_processes_weigh_by_tokens_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has 3 supervised tokens, the other 9: each token is worth a twelfth after the mean over both."""

    def add_nine(tokens: torch.Tensor) -> None:
        tokens += 9

    monkeypatch.setattr(loop, "all_reduce", add_nine)
    monkeypatch.setattr(loop, "get_world_size", lambda: 2)
    window = next(StepWindows(iter([pack(3)]), lambda: 1, 1))
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
    windows = StepWindows(iter([collate_pack([[each]]) for each in dialogues]), lambda: 3, 3)
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
