"""The loss of supervised positions only, made in chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from huanhuan.training import loss as module
from huanhuan.training.loss import summed_cross_entropy, supervised_positions


@given(st.lists(st.sampled_from([-100, 3, 7]), min_size=1, max_size=30))
def test_positions_are_those_whose_next_token_is_learned(labels: list[int]) -> None:
    positions, targets = supervised_positions(torch.tensor(labels))
    expected = [at - 1 for at in range(1, len(labels)) if labels[at] != -100]
    assert positions.tolist() == expected
    assert targets.tolist() == [labels[at + 1] for at in expected]


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(0, 23), chunk=st.integers(1, 9), trained=st.booleans())
def test_chunks_change_neither_loss_nor_gradient(rows: int, chunk: int, trained: bool) -> None:
    torch.manual_seed(rows)
    head = nn.Linear(8, 50, bias=False).requires_grad_(trained)
    hidden = torch.randn(rows, 8, requires_grad=True)
    targets = torch.randint(0, 50, (rows,))
    wanted = F.cross_entropy(head(hidden), targets, reduction="sum")
    inputs = [hidden, head.weight] if trained else [hidden]
    want = torch.autograd.grad(wanted, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        got_loss = summed_cross_entropy(hidden, head, targets)
        got = torch.autograd.grad(got_loss, inputs)
    torch.testing.assert_close(got_loss, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_summed_in_float32() -> None:
    head = nn.Linear(8, 50, bias=False).bfloat16()
    hidden, targets = torch.randn(300, 8).bfloat16(), torch.randint(0, 50, (300,))
    got = summed_cross_entropy(hidden, head, targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, F.cross_entropy(head(hidden).float(), targets, reduction="sum"))
