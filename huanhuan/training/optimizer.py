"""An optimiser for training every weight in bfloat16 without losing the small updates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit
from torch import Tensor

# Values that share a scale in bitsandbytes' 8-bit states.
BLOCK = 256


class CompensatedAdamW8bit(AdamW8bit):
    """bitsandbytes' AdamW with 8-bit states, keeping what rounding to bfloat16 leaves out of each weight.

    At a learning rate of 2e-5 a step moves a weight of 0.02 by a sixth of the distance to the next bfloat16
    number: rounded, nearly every step is lost. Here the remainder is kept beside the weight, in bfloat16 too
    (Kahan's summation), and the update is computed on the sum in float32: two bytes a weight instead of the four
    of a float32 copy.

    The states are bitsandbytes' own (Dettmers et al., arXiv:2110.02861), but the whole step of a weight is one
    compiled kernel that reads and writes every number once: bitsandbytes' own kernel, which knows no remainder
    and so needs a pass before and one after it, takes several times as long. Weights in float32 are updated by
    bitsandbytes.
    """

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Any, gindex: int, pindex: int) -> None:
        """One step of one parameter; ``state["remainder"]`` has its shape and dtype."""
        state = self.state[p]
        if p.dtype == torch.float32:
            super().update_step(group, p, gindex, pindex)
            return
        if "remainder" not in state:
            state["remainder"] = torch.zeros_like(p.data)
        if state["state1"].dtype != torch.uint8 or p.numel() % BLOCK:
            # Few weights: their states are in float32, or the last block is not full.
            self._update_apart(group, p, gindex, pindex)
            return
        config = self.get_config(gindex, pindex, group)
        state["step"] += 1
        beta1, beta2 = config["betas"][:2]
        correction1, correction2 = 1 - beta1 ** state["step"], (1 - beta2 ** state["step"]) ** 0.5
        # Tensors, because a compiled kernel would be compiled anew for every other number.
        numbers = [
            torch.tensor(value)
            for value in (
                config["lr"] * correction2 / correction1,
                config["eps"] * correction2,
                1 - config["lr"] * config["weight_decay"],
            )
        ]
        step = _compiled(_fused_step) if p.device.type == "cuda" else _fused_step
        values = (p.data, state["remainder"], p.grad, state["state1"], state["state2"])
        # As blocks, so that one compiled kernel serves weights of every shape.
        blocks = (each.contiguous().view(-1, BLOCK) for each in values)
        scales = (state["absmax1"], state["absmax2"], state["qmap1"], state["qmap2"])
        step(*blocks, *scales, *numbers, beta1, beta2)

    def _update_apart(self, group: dict[str, Any], p: Any, gindex: int, pindex: int) -> None:
        """The same by bitsandbytes' own step on the float32 sum of weight and remainder."""
        weights, gradient, remainder = p.data, p.grad, self.state[p]["remainder"]
        p.grad = None
        p.data, p.grad = weights.float() + remainder.float(), gradient.float()
        super().update_step(group, p, gindex, pindex)
        p.grad = None
        _split(p.data, weights, remainder)
        p.data, p.grad = weights, gradient


def _fused_step(
    weights: Tensor,
    remainder: Tensor,
    gradient: Tensor,
    codes1: Tensor,
    codes2: Tensor,
    absmax1: Tensor,
    absmax2: Tensor,
    map1: Tensor,
    map2: Tensor,
    rate: Tensor,
    eps: Tensor,
    decay: Tensor,
    beta1: float,
    beta2: float,
) -> None:
    """AdamW on blocks ``(blocks, 256)``, in place: weights and remainders in 16 bits, states as 8-bit codes.

    ``absmax`` ``(blocks,)`` scales the values ``map`` ``(256,)`` of the codes; ``rate`` and ``eps`` hold the bias
    corrections already.
    """
    wide = gradient.float()
    first = map1[codes1.int()] * absmax1[:, None] * beta1 + wide * (1 - beta1)
    second = map2[codes2.int()] * absmax2[:, None] * beta2 + wide * wide * (1 - beta2)
    joined = (weights.float() + remainder.float() - rate * first / (second.sqrt() + eps)) * decay
    _split(joined, weights, remainder)
    for moments, codes, absmax, values, least in (
        (first, codes1, absmax1, map1, 0),
        # A second moment rounded to zero would leave the next step to be divided by nothing but its own gradient.
        (second, codes2, absmax2, map2, 1),
    ):
        largest = moments.abs().amax(dim=1)
        absmax.copy_(largest)
        scaled = moments / torch.where(largest > 0, largest, 1.0)[:, None]
        # The map is sorted: the nearest of its values changes midway between two of them.
        nearest = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2, out_int32=True)
        codes.copy_(nearest.clamp_min(least).to(torch.uint8))


def _split(joined: Tensor, weights: Tensor, remainder: Tensor) -> None:
    rounded = joined.to(weights.dtype)
    weights.copy_(rounded)
    remainder.copy_(joined - rounded.float())


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
