"""The schedule over runs of any length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.optim import OptimWrapper

from huanhuan.training.schedule import WarmupCosineLR, warmup_cosine


@given(st.integers(1, 500), st.floats(0, 0.5))
def test_rises_once_then_falls_to_zero(total: int, warmup: float) -> None:
    shares = [warmup_cosine(step, total, warmup) for step in range(total + 1)]
    rising = max(1, round(warmup * total))
    assert shares[rising - 1] == 1
    assert all(0 < share <= 1 for share in shares[:total])
    assert shares[:rising] == sorted(shares[:rising])
    assert shares[rising:] == sorted(shares[rising:], reverse=True)
    if total > rising:
        assert shares[total] == pytest.approx(0, abs=1e-9)


def test_sets_the_rate_of_each_step() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    # mmengine's Runner adds the end of the first epoch.
    scheduler = WarmupCosineLR(OptimWrapper(optimiser), warmup=0.2, end=1)
    scheduler.set_total(10)
    rates = []
    for _ in range(10):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    assert rates == pytest.approx([2 * warmup_cosine(step, 10, 0.2) for step in range(10)])


def test_resumes_where_it_was() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    stepped = torch.optim.SGD([parameter], lr=1.0)
    first = WarmupCosineLR(OptimWrapper(stepped))
    first.set_total(20)
    for _ in range(7):
        stepped.step()
        first.step()
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    second = WarmupCosineLR(OptimWrapper(optimiser))
    second.load_state_dict(first.state_dict())
    second.set_total(20)
    assert optimiser.param_groups[0]["lr"] == warmup_cosine(7, 20, 0.03)
