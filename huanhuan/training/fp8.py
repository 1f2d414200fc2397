"""A frozen linear layer whose products run in FP8: twice the speed of bfloat16's on Ada, Hopper and Blackwell cards.

The weight is e4m3 with one scale per row, another one for each direction: held so (:class:`FrozenFP8Linear`), or
unpacked from NF4 each time (:class:`NF4LinearInFP8`), which takes a quarter of the memory. Activations and gradients
are cast row by row on the way in. Only LoRA trains beside it, so there is no weight gradient.

No library serves a frozen weight: torchao's Float8Linear keeps it in bfloat16 and casts it anew in both directions of
every step, and Transformers' FP8Linear has no backward pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
# Layers before this one keep the base's dtype. What the first layer rounds, every later one computes with: on the tiny
# base it alone makes two thirds of the gradients' error (bench/README.md), and it is one layer of 32.
FIRST_LAYER = 1
LARGEST = torch.finfo(FP8).max


def supports_fp8(device: torch.device) -> bool:
    """Whether the card multiplies FP8 (compute capability 8.9 or newer)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def scale_of(values: Tensor, dim: int = -1) -> Tensor:
    """What divides ``values`` into e4m3's range along ``dim``: float32, of size 1 along it."""
    return values.abs().amax(dim=dim, keepdim=True).float().clamp_min(1e-12) / LARGEST


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """``(rows, columns)`` as e4m3 and a float32 scale ``(rows, 1)``: ``values ≈ quantised * scale``."""
    scale = scale_of(values)
    return (values.float() / scale).to(FP8), scale


def scaled_product(rows: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``rows @ weight.T`` with ``rows`` ``(tokens, inner)`` cast to FP8 on the fly and ``weight`` ``(outer, inner)`` in FP8."""
    if rows.dim() != 2:
        raise ValueError(f"rows {tuple(rows.shape)}: a matrix is needed")  # as torch._scaled_mm says on a card
    quantised, scale = quantise_rows(rows)
    if rows.device.type == "cuda":
        return torch._scaled_mm(
            quantised, weight.t(), scale_a=scale, scale_b=weight_scale.t(), out_dtype=dtype, use_fast_accum=True
        )
    product = (quantised.float() * scale) @ (weight.float() * weight_scale).t()
    # Not `.to(dtype)` alone: where it changes nothing, PyTorch 2.11 compiles the layer with a gradient of zero.
    return product if dtype == product.dtype else product.to(dtype)


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, scale: Tensor, back: Tensor, back_scale: Tensor) -> Tensor:
        ctx.save_for_backward(back, back_scale)
        return scaled_product(rows, weight, scale, rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        back, back_scale = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        return scaled_product(gradient, back, back_scale, gradient.dtype), None, None, None, None


class FrozenFP8Linear(nn.Module):
    """Stands in for a frozen ``nn.Linear`` without bias; built from one, on that layer's device.

    Buffers: ``weight`` ``(out_features, in_features)`` for the forward product, ``transposed``
    ``(in_features, out_features)`` for the backward one (its scales run along the other side), and their scales.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.bias is not None:
            raise ValueError("FrozenFP8Linear holds no bias")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        quantised, scale = quantise_rows(weight)
        transposed, transposed_scale = quantise_rows(weight.t().contiguous())
        for name, value in (
            ("weight", quantised),
            ("scale", scale),
            ("transposed", transposed),
            ("transposed_scale", transposed_scale),
        ):
            self.register_buffer(name, value, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        rows = states.reshape(-1, self.in_features)
        product = _FrozenProduct.apply(rows, self.weight, self.scale, self.transposed, self.transposed_scale)
        return cast(Tensor, product).view(*states.shape[:-1], self.out_features)


# Block size and kind of the packed weight, its shape and dtype, and the block size of its scales.
Layout = tuple[int, str, tuple[int, int], torch.dtype, int]


class _UnpackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, back_scale: Tensor, layout: Layout, *packed: Tensor) -> Tensor:
        ctx.save_for_backward(back_scale, *packed)
        ctx.layout = layout
        weight = (_unpack(packed, layout).float() / scale).to(FP8)
        return scaled_product(rows, weight, scale, rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        back_scale, *packed = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        block, kind, shape, dtype, scale_block = ctx.layout
        # In the other 16-bit dtype: a compiler that saw the forward pass's own product here would unpack once and
        # keep the weights of all layers until then.
        dtype = torch.bfloat16 if dtype == torch.float16 else torch.float16
        weight = _unpack(packed, (block, kind, shape, dtype, scale_block))
        back = (weight.t().float() / back_scale).to(FP8).contiguous()
        return (scaled_product(gradient, back, back_scale, gradient.dtype), None, None, None, *(None for _ in packed))


def _unpack(packed: Sequence[Tensor], layout: Layout) -> Tensor:
    """The weight ``(out_features, in_features)`` of bitsandbytes' packed one, its scales double-quantised or not."""
    weight, absmax, *nested = packed
    block, kind, shape, dtype, scale_block = layout
    if nested:
        offset, scales, code = nested
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(absmax, scales, code, scale_block, torch.float32) + offset
    return torch.ops.bitsandbytes.dequantize_4bit(weight, absmax, block, kind, shape, dtype)


class NF4LinearInFP8(nn.Module):
    """Stands in for bitsandbytes' ``Linear4bit`` without bias, whose packed weight it keeps.

    Buffers: ``scale`` ``(out_features, 1)`` for the forward product and ``back_scale`` ``(in_features, 1)`` for the
    backward one.
    """

    def __init__(self, linear: Any) -> None:
        super().__init__()
        if linear.bias is not None:
            raise ValueError("NF4LinearInFP8 holds no bias")
        state = linear.weight.quant_state
        if state is None:
            raise ValueError("the layer is not quantised yet: move it to its device first")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        tensors = {"packed": linear.weight.data, "absmax": state.absmax}
        if state.nested:
            tensors |= {"offset": state.offset, "scales": state.state2.absmax, "code": state.state2.code}
        self._names = tuple(tensors)
        rows, columns = state.shape
        self._layout: Layout = (
            state.blocksize,
            state.quant_type,
            (rows, columns),
            state.dtype,
            state.state2.blocksize if state.nested else 0,
        )
        weight = _unpack(list(tensors.values()), self._layout)
        tensors |= {"scale": scale_of(weight), "back_scale": scale_of(weight, dim=0).t().contiguous()}
        for name, value in tensors.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """``(…, in_features)`` to ``(…, out_features)``."""
        rows = states.reshape(-1, self.in_features)
        packed = tuple(getattr(self, name) for name in self._names)
        product = _UnpackedProduct.apply(rows, self.scale, self.back_scale, self._layout, *packed)
        return cast(Tensor, product).view(*states.shape[:-1], self.out_features)


def freeze_in_fp8(model: nn.Module, device: torch.device) -> int:
    """Let the products of the base layers under LoRA adapters run in FP8 on ``device``; returns how many.

    A layer in NF4 stays in NF4 in memory. The output head, the embeddings and the layers before FIRST_LAYER keep their
    dtype.
    """
    from bitsandbytes.nn import Linear4bit

    replaced = 0
    for name, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        number = re.search(r"\.layers\.(\d+)\.", name)
        if number is None or int(number.group(1)) < FIRST_LAYER:
            continue
        if type(base) is nn.Linear:
            module.base_layer = FrozenFP8Linear(base.to(device))
        elif isinstance(base, Linear4bit):
            module.base_layer = NF4LinearInFP8(base)
        else:
            continue
        replaced += 1
    return replaced
