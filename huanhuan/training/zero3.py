"""DeepSpeed ZeRO-3 under this project's own forward pass: a module's weights come and go as one.

Stage 3 gathers a module's weights when the module is called, on every process at once. The forward pass of
:mod:`huanhuan.training.layers` calls functions on modules instead, and reads weights of modules that it never
calls (LoRA's, the head's). So a decoder layer, and the head, is made to run such a function when it is called
with one, and is declared a leaf: all weights below it are gathered before, released after, and gathered again
for the backward pass. That is one collective per layer instead of one per weight, too, and as many on each
process whatever its pack holds.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from huanhuan.training.loss import summed_cross_entropy


def is_partitioned() -> bool:
    """Whether the model is being built for ZeRO-3: XTuner's strategy says so to Transformers before the model is."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()


def join_lone_process(*, uses_deepspeed: bool | None = None) -> None:
    """Let DeepSpeed start in a process that no launcher started: without these variables it looks for MPI.

    ``uses_deepspeed`` None asks Transformers, which XTuner's strategy has told before the model is built.
    """
    from transformers.integrations import deepspeed as integration

    if uses_deepspeed is None:
        uses_deepspeed = integration.deepspeed_config() is not None
    if not uses_deepspeed or "RANK" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def make_leaves(modules: Iterable[nn.Module]) -> None:
    """Let ``module(function, *arguments)`` run ``function(module, *arguments)`` with all weights below it gathered.

    Called otherwise a module does what it did, so that generation runs the released code.
    """
    from deepspeed.utils import set_z3_leaf_module

    for module in modules:
        module.forward = functools.partial(_run, module, module.forward)
        set_z3_leaf_module(module, True)


def _run(module: nn.Module, released: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    if arguments and callable(arguments[0]) and not isinstance(arguments[0], Tensor):
        return arguments[0](module, *arguments[1:])
    return released(*arguments, **options)


def through_module(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function(module, …)`` as a call of the module, which :func:`make_leaves` has prepared."""
    return functools.partial(_call, function)


def _call(function: Callable[..., Tensor], module: nn.Module, *arguments: Any) -> Tensor:
    return module(function, *arguments)


class _Gathered(nn.Module):
    """A linear layer whose call does not release its weights: one gathering serves every chunk of the loss."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Not registered as a submodule.
        self._linear = (linear,)

    def forward(self, states: Tensor) -> Tensor:
        """What the layer itself would return."""
        return F.linear(states, self._linear[0].weight, self._linear[0].bias)


def gathered_loss(head: nn.Module, hidden: Tensor, targets: Tensor, *, fused: bool) -> Tensor:
    """:func:`huanhuan.training.loss.summed_cross_entropy` with the weights of ``head`` gathered once."""
    if isinstance(head, nn.Linear) and not fused:
        head = _Gathered(head)
    return summed_cross_entropy(hidden, head, targets, fused=fused)
