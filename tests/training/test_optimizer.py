"""Small updates of bfloat16 weights are not lost."""

from __future__ import annotations

import torch
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn

from huanhuan.training.optimizer import CompensatedAdamW8bit

STEPS = 60


def train(kind: type[AdamW8bit], dtype: torch.dtype) -> tuple[Tensor, Tensor, AdamW8bit]:
    """Weights before and after steps of 2e-5 along gradients that are the same for every kind."""
    torch.manual_seed(0)
    before = (torch.randn(64, 128) * 0.02).bfloat16()
    weight = nn.Parameter(before.to(dtype))
    optimiser = kind([weight], lr=2e-5, weight_decay=0)
    for step in range(STEPS):
        torch.manual_seed(step)
        weight.grad = (torch.randn(64, 128) + 0.5).bfloat16().to(dtype)
        optimiser.step()
    return before.float(), weight.detach(), optimiser


def test_weight_and_remainder_are_the_float32_weight() -> None:
    before, wide, _ = train(AdamW8bit, torch.float32)
    _, weight, optimiser = train(CompensatedAdamW8bit, torch.bfloat16)
    (state,) = optimiser.state.values()
    assert weight.dtype == state["remainder"].dtype == torch.bfloat16
    together = weight.float() + state["remainder"].float()
    moved = (wide - before).norm()
    assert float((together - wide).norm() / moved) < 0.01
    # bfloat16 alone is as near as it can be.
    torch.testing.assert_close(weight, wide.bfloat16(), rtol=2**-7, atol=0)


def test_without_it_most_of_the_way_is_lost() -> None:
    before, wide, _ = train(AdamW8bit, torch.float32)
    _, rounded, _ = train(AdamW8bit, torch.bfloat16)
    moved = (wide - before).norm()
    assert float((rounded.float() - wide).norm() / moved) > 0.3


def test_float32_weights_are_bitsandbytes_own() -> None:
    _, wide, _ = train(AdamW8bit, torch.float32)
    _, own, optimiser = train(CompensatedAdamW8bit, torch.float32)
    assert torch.equal(own, wide)
    assert all("remainder" not in state for state in optimiser.state.values())


def test_the_remainder_is_saved_and_restored() -> None:
    _, weight, optimiser = train(CompensatedAdamW8bit, torch.bfloat16)
    saved = optimiser.state_dict()
    copy = nn.Parameter(weight.clone())
    restored = CompensatedAdamW8bit([copy], lr=2e-5, weight_decay=0)
    restored.load_state_dict(saved)
    for parameter, each in ((weight, optimiser), (copy, restored)):
        each.param_groups[0]["params"][0].grad = torch.ones(64, 128).bfloat16()
        each.step()
        assert parameter.dtype == torch.bfloat16
    assert torch.equal(optimiser.param_groups[0]["params"][0], copy)
