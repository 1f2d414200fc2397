"""Causal attention inside packed sequences: a dialogue never sees the dialogue before it.

A pack is one row of tokens in which whole dialogues stand one after another. Three kernels give the same
result: ``flex`` (FlexAttention with a block mask, the fastest once compiled), ``varlen`` (the FlashAttention
kernel inside PyTorch, which needs no ``flash_attn`` package) and ``sdpa`` (a dense mask, runs everywhere).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Literal["auto", "flex", "varlen", "sdpa"]
KERNELS = ("flex", "varlen", "sdpa")


def choose_kernel(kernel: Kernel, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> Kernel:
    """What ``kernel="auto"`` means here: flex where layers are compiled, varlen on CUDA, sdpa elsewhere.

    Raises: ValueError for a name that is none of them.
    """
    if kernel != "auto":
        if kernel not in KERNELS:
            raise ValueError(f"attention kernel {kernel!r} is unknown: use auto, {', '.join(KERNELS)}")
        return kernel
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    if compiled:
        return "flex"
    # FlashAttention 2 needs Ampere or newer.
    return "varlen" if torch.cuda.get_device_capability(device) >= (8, 0) else "sdpa"


@dataclass(frozen=True)
class Documents:
    """Where the dialogues of a pack lie, in the form that one kernel wants.

    ``starts``: int32 ``(documents + 1,)``, the first token of each dialogue and then the pack's length.
    ``longest``: an upper bound on the tokens of one dialogue; varlen launches work for that many.
    ``mask``: flex's BlockMask, sdpa's bool ``(length, length)``, None for varlen.
    """

    kernel: Kernel
    starts: Tensor
    longest: int
    mask: Any = None


def document_ids(starts: Tensor, length: int) -> Tensor:
    """Index of the dialogue that each token belongs to, int64 ``(length,)``.

    >>> document_ids(torch.tensor([0, 2, 5], dtype=torch.int32), 5)
    tensor([0, 0, 1, 1, 1])
    """
    return torch.bucketize(torch.arange(length, device=starts.device, dtype=starts.dtype), starts[1:], right=True)


def locate_documents(starts: Tensor, length: int, longest: int, kernel: Kernel, *, compiled: bool = False) -> Documents:
    """Prepare a pack of ``length`` tokens for ``kernel``, once per step and not once per layer.

    ``compiled``: for layers that torch.compile has traced, which must not be traced anew for every pack.
    """
    mask = None
    if kernel == "varlen" and compiled:
        longest = 1 << max(longest - 1, 127).bit_length()
        torch._dynamo.maybe_mark_dynamic(starts, 0)
    if kernel == "sdpa":
        ids = document_ids(starts, length)
        mask = (ids[:, None] == ids[None, :]).tril()
    elif kernel == "flex":
        mask = _block_mask(document_ids(starts, length), length)
    return Documents(kernel, starts, longest, mask)


@functools.cache
def _compiled_block_mask() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    return cast("Callable[..., Any]", torch.compile(create_block_mask))


def _block_mask(ids: Tensor, length: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def same_document(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (ids[query] == ids[key])

    # Inductor crashes while compiling FlexAttention for a CPU; there the mask is built eagerly.
    create = _compiled_block_mask() if ids.device.type == "cuda" else create_block_mask
    return create(same_document, None, None, length, length, device=ids.device.type)


def attend(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """Causal attention within each dialogue.

    ``query`` is ``(length, heads, head_dim)``, ``key`` and ``value`` ``(length, kv_heads, head_dim)``; the
    result has the query's shape. Scores are scaled by ``head_dim ** -0.5``.
    """
    if documents.kernel == "varlen":
        return _varlen(query, key, value, documents)
    # (length, heads, head_dim) -> (1, heads, length, head_dim)
    query, key, value = (each.transpose(0, 1).unsqueeze(0) for each in (query, key, value))
    if documents.kernel == "flex":
        from torch.nn.attention.flex_attention import flex_attention

        output = flex_attention(query, key, value, block_mask=documents.mask, enable_gqa=True)
        return cast(Tensor, output).squeeze(0).transpose(0, 1)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(query, key, value, documents.mask).squeeze(0).transpose(0, 1)


def _varlen(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    # torch.nn.attention.varlen wraps the same operator from PyTorch 2.10 on, with other arguments in 2.11.
    return torch.ops.aten._flash_attention_forward(
        query, key, value, documents.starts, documents.starts, documents.longest, documents.longest, 0.0, True, False
    )[0]
