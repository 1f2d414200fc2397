"""Cross-entropy of the supervised tokens, without ever holding the logits of a whole pack."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from huanhuan.training.layers import linear

IGNORE = -100
# Positions whose logits are held at a time: 92,544 logits in bf16 are 0.18 MiB.
CHUNK = 2048


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions whose next token is supervised, and that next token.

    ``labels`` is ``(length,)`` with -100 where nothing is learned. A pack needs no special case at the border
    of two dialogues: the first token of a dialogue is never supervised.

    >>> supervised_positions(torch.tensor([-100, -100, 7, 8]))
    (tensor([1, 2]), tensor([7, 8]))
    """
    positions = (labels[1:] != IGNORE).nonzero().squeeze(1)
    return positions, labels[1:][positions]


def summed_cross_entropy(hidden: Tensor, head: nn.Module, targets: Tensor, *, fused: bool = False) -> Tensor:
    """Sum over ``targets`` of the negative log-likelihood under ``head(hidden)``, a float32 scalar.

    ``hidden`` is ``(supervised, hidden_size)``, ``targets`` ``(supervised,)``. ``fused`` uses liger-kernel's
    fused linear cross-entropy where the head is a plain linear layer; otherwise logits are made and thrown
    away chunk by chunk, in the backward pass once more.
    """
    if fused and type(head) is nn.Linear:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        # Liger's default chunk is a 23rd of the rows for InternLM2: too few for the product to be fast.
        budget = max(1, CHUNK * len(head.weight) // max(hidden.numel(), 1))
        loss = liger_fused_linear_cross_entropy(
            hidden, head.weight, targets, head.bias, ignore_index=IGNORE, reduction="sum", chunk_mem_const=budget
        )
        return cast(Tensor, loss).float()
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for part, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        if hidden.requires_grad and len(hidden) > CHUNK:
            total = total + cast(Tensor, checkpoint(_chunk_loss, part, head, target, use_reentrant=False))
        else:
            total = total + _chunk_loss(part, head, target)
    return total


def _chunk_loss(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    return F.cross_entropy(linear(head, hidden).float(), targets, reduction="sum")
