"""The frozen FP8 layer against the layer it is made from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from huanhuan.training.fp8 import FrozenFP8Linear, freeze_in_fp8, quantise_rows, supports_fp8


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 5), columns=st.integers(1, 40), exponent=st.integers(-12, 12), seed=st.integers(0, 99))
def test_a_row_keeps_three_bits_of_mantissa(rows: int, columns: int, exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * 2.0**exponent
    quantised, scale = quantise_rows(values)
    error = (quantised.float() * scale - values).abs()
    # Half a step of e4m3: 2^-4 of the value, or of its smallest normal number, 2^-6 of 448 to the row's largest.
    smallest = values.abs().amax(-1, keepdim=True) * 2.0**-6 / 448
    assert bool((error <= torch.maximum(values.abs(), smallest) * 2.0**-4 * 1.001).all())


def test_a_row_of_zeros_stays_zero() -> None:
    quantised, scale = quantise_rows(torch.zeros(2, 4))
    assert float((quantised.float() * scale).abs().sum()) == 0


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_backward_are_near_the_layers_own(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 48, bias=False)
    frozen = FrozenFP8Linear(layer)
    states = torch.randn(64, 96)
    upstream = torch.randn(64, 48)
    plain = states.clone().requires_grad_()
    layer(plain).backward(upstream)
    given_states = states.to(dtype).requires_grad_()
    output = frozen(given_states)
    output.backward(upstream.to(dtype))
    assert output.dtype == dtype
    assert plain.grad is not None and given_states.grad is not None
    assert relative(output.float(), layer(states)) < 0.05
    assert relative(given_states.grad.float(), plain.grad) < 0.05
    # Wrong by more than nothing: it is FP8 that runs, not the layer itself.
    assert relative(output.float(), layer(states)) > 0.005


def test_it_takes_no_bias() -> None:
    with pytest.raises(ValueError, match="bias"):
        FrozenFP8Linear(nn.Linear(16, 16))


def test_only_base_layers_of_blocks_are_replaced() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(16, 16, bias=False)

    model = nn.ModuleDict({"layers": nn.ModuleList([Adapted(), Adapted()]), "output": Adapted()})
    root = nn.ModuleDict({"model": model})
    assert freeze_in_fp8(root, torch.device("cpu")) == 2
    kinds = [type(module.base_layer).__name__ for module in root.modules() if isinstance(module, Adapted)]
    assert kinds == ["FrozenFP8Linear", "FrozenFP8Linear", "Linear"]


def test_a_cpu_has_no_fp8() -> None:
    assert not supports_fp8(torch.device("cpu"))
