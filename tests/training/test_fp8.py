"""The frozen FP8 layer against the layer it is made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from huanhuan.training.fp8 import FrozenFP8Linear, NF4LinearInFP8, freeze_in_fp8, quantise_rows, supports_fp8


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


def nf4(dtype: torch.dtype, double_quant: bool = True) -> Linear4bit:
    torch.manual_seed(0)
    packed: Any = Params4bit
    layer = Linear4bit(96, 64, bias=False, compute_dtype=dtype, compress_statistics=double_quant, quant_type="nf4")
    layer.weight = packed(
        (torch.randn(64, 96) * 0.05).to(dtype),
        requires_grad=False,
        compress_statistics=double_quant,
        quant_type="nf4",
        module=layer,
    )
    return layer.to("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double_quant", [True, False])
def test_over_nf4_products_are_near_bitsandbytes_own(dtype: torch.dtype, double_quant: bool) -> None:
    layer = nf4(dtype, double_quant)
    frozen = NF4LinearInFP8(layer)
    states, upstream = torch.randn(32, 96, dtype=dtype), torch.randn(32, 64, dtype=dtype)
    plain, given_states = states.clone().requires_grad_(), states.clone().requires_grad_()
    want, output = layer(plain), frozen(given_states)
    want.backward(upstream)
    output.backward(upstream)
    assert plain.grad is not None and given_states.grad is not None
    assert output.dtype == dtype
    for got, wanted in ((output, want), (given_states.grad, plain.grad)):
        assert 0.005 < relative(got.float(), wanted.float()) < 0.06


@pytest.mark.parametrize("frozen", [FrozenFP8Linear(nn.Linear(96, 64, bias=False)), NF4LinearInFP8(nf4(torch.float32))])
def test_the_released_code_hands_over_batches(frozen: nn.Module) -> None:
    """Sampled replies go through ``generate``, whose states are (batch, length, features)."""
    states = torch.randn(2, 5, 96)
    together = torch.cat([frozen(each) for each in states])
    torch.testing.assert_close(frozen(states).reshape(-1, 64), together)


def test_over_nf4_the_weight_stays_packed() -> None:
    frozen = NF4LinearInFP8(nf4(torch.bfloat16))
    held = sum(each.numel() * each.element_size() for each in frozen.buffers())
    # Half a byte a weight, a byte per 64 of them, and a scale for each row and column.
    assert held < 64 * 96 * (0.5 + 1 / 64) + (64 + 96) * 4 + 256 * 4 + 64


def test_what_is_not_packed_yet_is_refused() -> None:
    with pytest.raises(ValueError, match="not quantised"):
        NF4LinearInFP8(Linear4bit(64, 64, bias=False, quant_type="nf4"))


@pytest.mark.parametrize("kind", [FrozenFP8Linear, NF4LinearInFP8])
def test_it_takes_no_bias(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="bias"):
        kind(nn.Linear(16, 16))


def test_only_base_layers_of_blocks_after_the_first_are_replaced() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer: nn.Module = nn.Linear(16, 16, bias=False)

    packed = Adapted()
    packed.base_layer = nf4(torch.bfloat16)
    # A layer as PEFT names it: model.layers.N.feed_forward.w1.
    layers = nn.ModuleList(nn.ModuleDict({"w1": each}) for each in (Adapted(), Adapted(), packed))
    root = nn.ModuleDict({"model": nn.ModuleDict({"layers": layers, "output": Adapted()})})
    assert freeze_in_fp8(root, torch.device("cpu")) == 2
    kinds = [type(module.base_layer).__name__ for module in root.modules() if isinstance(module, Adapted)]
    assert kinds == ["Linear", "FrozenFP8Linear", "NF4LinearInFP8", "Linear"]


def test_a_cpu_has_no_fp8() -> None:
    assert not supports_fp8(torch.device("cpu"))
