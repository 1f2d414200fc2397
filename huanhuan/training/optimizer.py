"""An optimiser for training every weight in bfloat16 without losing the small updates."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit
from mmengine.logging import print_log
from torch import Tensor
from torch.nn import functional as F

# Values that share a scale in bitsandbytes' 8-bit states.
BLOCK = 256
# Weights that are updated at a time: both moments of them are in float32 then. More than any layer has; DeepSpeed
# hands over all weights of a process as one, and bitsandbytes' own kernel counts them in 32 bits.
PART = 2**29
# On a CPU so few that both moments stay in its caches, in memory that is not asked for anew: twice as fast.
PART_ON_CPU = 2**20
# So many weights on a CPU, where DeepSpeed's offloading puts them, are worth the seconds of compiling their step.
LARGE = 2**24


class CompensatedAdamW8bit(AdamW8bit):
    """bitsandbytes' AdamW with 8-bit states, keeping what rounding to bfloat16 leaves out of each weight.

    At a learning rate of 2e-5 a step moves a weight of 0.02 by a sixth of the distance to the next bfloat16
    number: rounded, nearly every step is lost. Here the remainder is kept beside the weight, in bfloat16 too
    (Kahan's summation), and the update is computed on the sum in float32: two bytes a weight instead of the four
    of a float32 copy.

    The states are bitsandbytes' own (Dettmers et al., arXiv:2110.02861), but the whole step of a weight is one
    compiled kernel that reads and writes every number once: bitsandbytes' own kernel, which knows no remainder
    and so needs a pass before and one after it, takes several times as long. Weights in float32 need no remainder.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As bitsandbytes' own, without its wait for the card after every parameter."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for gindex, group in enumerate(self.param_groups):
            for pindex, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.init_state(group, p, gindex, pindex)
                self.update_step(group, p, gindex, pindex)
        return loss

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Any, gindex: int, pindex: int) -> None:
        """One step of one parameter; ``state["remainder"]`` of one in 16 bits has its shape and dtype."""
        state = self.state[p]
        if p.dtype != torch.float32 and "remainder" not in state:
            state["remainder"] = torch.zeros_like(p.data)
        if state["state1"].dtype != torch.uint8:
            # So few weights that bitsandbytes keeps their states in float32.
            self._update_apart(group, p, gindex, pindex)
            return
        p.data = p.data.contiguous()
        config = self.get_config(gindex, pindex, group)
        state["step"] += 1
        beta1, beta2 = config["betas"][:2]
        correction1, correction2 = 1 - beta1 ** state["step"], (1 - beta2 ** state["step"]) ** 0.5
        step = functools.partial(
            _step_for(p),
            map1=state["qmap1"],
            map2=state["qmap2"],
            # Tensors, because a compiled kernel would be compiled anew for every other number.
            rate=torch.tensor(config["lr"] * correction2 / correction1),
            eps=torch.tensor(config["eps"] * correction2),
            decay=torch.tensor(1 - config["lr"] * config["weight_decay"]),
            beta1=beta1,
            beta2=beta2,
        )
        values = {
            "weights": p.data,
            "remainder": state.get("remainder"),
            "gradient": p.grad.contiguous(),
            "codes1": state["state1"],
            "codes2": state["state2"],
        }
        flat = {name: each if each is None else each.view(-1) for name, each in values.items()}
        on_cpu = p.device.type == "cpu"
        size = PART_ON_CPU if on_cpu else PART
        with _every_core() if on_cpu else contextlib.nullcontext():
            for start in range(0, p.numel(), size):
                part = {name: each if each is None else each[start : start + size] for name, each in flat.items()}
                blocks = slice(start // BLOCK, (start + size) // BLOCK)
                _in_blocks(step, part, {name: state[name][blocks] for name in ("absmax1", "absmax2")})

    def _update_apart(self, group: dict[str, Any], p: Any, gindex: int, pindex: int) -> None:
        """The same by bitsandbytes' own step on the float32 sum of weight and remainder."""
        if p.dtype == torch.float32:
            super().update_step(group, p, gindex, pindex)
            return
        weights, gradient, remainder = p.data, p.grad, self.state[p]["remainder"]
        p.grad = None
        p.data, p.grad = weights.float() + remainder.float(), gradient.float()
        super().update_step(group, p, gindex, pindex)
        p.grad = None
        _split(p.data, weights, remainder)
        p.data, p.grad = weights, gradient


def _in_blocks(step: Callable[..., None], values: dict[str, Tensor | None], scales: dict[str, Tensor]) -> None:
    """Call ``step`` on flat ``values`` as blocks, so that one compiled kernel serves weights of every shape.

    A last block that is not full is filled up with zeros and copied back.
    """
    length = next(len(each) for each in values.values() if each is not None)
    whole, count = length - length % BLOCK, length // BLOCK

    def blocks(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[:whole].view(-1, BLOCK)

    if whole:
        step(
            **{name: blocks(each) for name, each in values.items()},
            **{name: each[:count] for name, each in scales.items()},
        )
    if whole == length:
        return
    ends = {name: None if each is None else each[whole:] for name, each in values.items()}
    padded = {
        name: None if end is None else F.pad(end, (0, BLOCK - len(end))).view(1, BLOCK) for name, end in ends.items()
    }
    step(**padded, **{name: each[count:] for name, each in scales.items()})
    for name, end in ends.items():
        filled = padded[name]
        if end is not None and filled is not None:
            end.copy_(filled.view(-1)[: len(end)])


def _fused_step(
    weights: Tensor,
    remainder: Tensor | None,
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
    """AdamW on blocks ``(blocks, 256)``, in place: weights and remainders in 16 bits, or weights in 32; 8-bit codes.

    ``absmax`` ``(blocks,)`` scales the values ``map`` ``(256,)`` of the codes; ``rate`` and ``eps`` hold the bias
    corrections already.
    """
    wide = gradient.float()
    first = map1[codes1.int()] * absmax1[:, None] * beta1 + wide * (1 - beta1)
    second = map2[codes2.int()] * absmax2[:, None] * beta2 + wide * wide * (1 - beta2)
    joined = weights.float() if remainder is None else weights.float() + remainder.float()
    joined = (joined - rate * first / (second.sqrt() + eps)) * decay
    if remainder is None:
        weights.copy_(joined)
    else:
        _split(joined, weights, remainder)
    for moments, codes, absmax, signed in ((first, codes1, absmax1, True), (second, codes2, absmax2, False)):
        largest = moments.abs().amax(dim=1)
        absmax.copy_(largest)
        nearest = dynamic_code(moments / torch.where(largest > 0, largest, 1.0)[:, None], signed=signed)
        if not signed:
            # A second moment rounded to zero would leave the next step to be divided by nothing but its own gradient.
            nearest = nearest.clamp_min(1)
        codes.copy_(nearest.to(torch.uint8))


def dynamic_code(values: Tensor, *, signed: bool) -> Tensor:
    """The codes, as whole float32 numbers, of what is nearest to ``values`` in bitsandbytes' dynamic 8-bit map.

    ``values`` lie in [-1, 1], or in [0, 1] without a sign. The map is that of Dettmers (arXiv:1511.04561), in
    bitsandbytes' ``create_dynamic_map``: decade d of seven, from 10^(d-7) to 10^(d-6), holds n = 2^d values (2^(d+1)
    without a sign) at the middles of n equal parts, and the largest value of all is 1. Their codes count up from n,
    from n - 1 without a sign; a sign mirrors them around 127. Computed, because searching the map for each of
    8 x 10^9 weights takes longer than everything else in their step.
    """
    first = 1 if signed else 2
    size = values.abs()
    count, top = torch.full_like(size, first), torch.full_like(size, 1e-6)
    for decade in range(6):
        held = first << decade
        # Midway between this decade's last value and the next one's first.
        above = size > 10.0 ** (decade - 6) * (1 + 0.9 / held)
        count = torch.where(above, 2.0 * held, count)
        top = torch.where(above, 10.0 ** (decade - 5), top)
    place = ((size / top - 0.1) * (count / 0.9)).floor().clamp_min(0)
    code = count + torch.minimum(place, count - 1)
    if not signed:
        code = code - 1
    smallest, largest = 1e-7 * (1 + 4.5 / first), 1 - 0.45 / (first << 6)
    code = torch.where(size <= smallest / 2, 0.0, code)
    code = torch.where(size > (1 + largest) / 2, 128.0 if signed else 255.0, code)
    # There is no -1.
    return torch.where(values < 0, 127 - code.clamp_max(127), 127 + code) if signed else code


def _split(joined: Tensor, weights: Tensor, remainder: Tensor) -> None:
    rounded = _rounded(joined, weights.dtype)
    weights.copy_(rounded)
    remainder.copy_(joined - rounded)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """``values``, float32, rounded to what ``dtype`` can hold, ties to even, and still in float32.

    To bfloat16 by the bits: a compiler is free to leave a cast and the cast back out, and torch.compile does, so
    that nothing is rounded and no remainder is left.
    """
    if dtype != torch.bfloat16:
        return values.to(dtype).float()
    bits = values.view(torch.int32)
    # A NaN stays one, since its first mantissa bit is the one that is set.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).view(torch.float32)


def _step_for(weights: Tensor) -> Callable[..., None]:
    """The fused step as ``weights`` take it: compiled on a GPU, and for many weights on a CPU."""
    if weights.dtype == torch.float16:  # its rounding would be compiled away
        return _fused_step
    if weights.device.type == "cuda":
        return _compiled()
    return _compiled_for_cpu() if weights.numel() >= LARGE else _fused_step


@functools.cache
def _compiled() -> Callable[..., None]:
    return torch.compile(_fused_step, dynamic=True)


@functools.cache
def _compiled_for_cpu() -> Callable[..., None]:
    """The compiled step if it can be compiled here, which takes a C++ compiler, else the step itself."""
    step = _compiled()
    # As many blocks as a part has: by those the compiler decides whether the kernel uses more than one thread.
    count = PART_ON_CPU // BLOCK
    blocks = {name: torch.zeros(count, BLOCK) for name in ("weights", "gradient")}
    codes = {name: torch.zeros(count, BLOCK, dtype=torch.uint8) for name in ("codes1", "codes2")}
    scales = {name: torch.zeros(count) for name in ("absmax1", "absmax2")}
    maps = {name: torch.zeros(256) for name in ("map1", "map2")}
    numbers = {name: torch.tensor(1.0) for name in ("rate", "eps", "decay")}
    try:
        with _every_core():  # the number of threads is compiled in
            step(remainder=None, beta1=0.9, beta2=0.999, **blocks, **codes, **scales, **maps, **numbers)
    except Exception as error:  # whatever a compiler, or the lack of one, raises
        reason = " ".join(str(error).split())[:160]
        print_log(
            "优化器的一步编译不了，CPU 上会慢几十倍：请安装 g++ 和 Python 头文件 / the optimiser's step cannot be compiled and "
            f"takes tens of times as long on the CPU: install g++ and Python's headers ({reason})",
            "current",
            logging.WARNING,
        )
        return _fused_step
    return step


@contextlib.contextmanager
def _every_core() -> Iterator[None]:
    """With this process's share of the machine's cores: torchrun leaves each of its processes a single thread."""
    threads = torch.get_num_threads()
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    if processes:
        torch.set_num_threads(max(threads, (os.cpu_count() or 1) // int(processes)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
