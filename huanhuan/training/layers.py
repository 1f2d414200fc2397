"""The forward pass of InternLM2's decoder over a pack, written once for every way to run it.

The modules are those of the released modelling code (or XTuner's copy of it), quantised and wrapped by PEFT
as they may be; only the order of operations is ours. That buys what the released code cannot do: dialogues
in a pack that do not see each other, rotary tables computed once per step instead of once per layer, layers
that compile without a graph break, and logits for the supervised tokens only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from huanhuan.training.attention import Documents, attend

Kernels = Literal["plain", "compile", "liger"]


def limit_activations(budget: float) -> None:
    """Let layers compiled from now on keep this share of their activations and compute the rest again.

    Between 0 (only each layer's input is kept, as by checkpointing) and 1. It holds for the whole process:
    torch.compile reads it when it divides a layer's graph into forward and backward, and keeps what costs most
    to compute, which it judges by floating-point operations.
    """
    from torch._functorch import config
    from torch.utils.flop_counter import flop_registry, shape_wrapper

    config.activation_memory_budget = budget
    # PyTorch's own formula refuses fewer key heads than query heads; tokens of a dialogue guessed at 256.
    attention: Any = torch.ops.aten._flash_attention_forward
    flop_registry[attention] = shape_wrapper(lambda query, *rest, **named: 4 * math.prod(query) * 256)
    try:
        product: Any = torch.ops.bitsandbytes.gemm_4bit
    except AttributeError:
        return
    # Without a formula, a product over NF4 would count as free.
    flop_registry[product] = shape_wrapper(lambda rows, weight, shape, *rest, **named: 2 * math.prod(rows) * shape[0])


def rotary_tables(config: Any, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(length, head_dim)`` of InternLM2's rotary embedding at ``positions`` ``(length,)``.

    Dynamic NTK scaling changes nothing below ``max_position_embeddings``, which no dialogue may exceed and each
    starts again at position 0; linear scaling divides the positions.

    Raises: ValueError for another kind of scaling.
    """
    scaling: dict[str, Any] = getattr(config, "rope_scaling", None) or {"type": "dynamic"}
    if scaling["type"] not in ("dynamic", "linear"):
        raise ValueError(f"rope_scaling {scaling['type']!r} is not InternLM2's: use dynamic or linear")
    head_dim = config.hidden_size // config.num_attention_heads
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    scaled = positions.float() / (scaling["factor"] if scaling["type"] == "linear" else 1.0)
    angles = torch.outer(scaled, config.rope_theta ** (-steps / head_dim))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """Rotary embedding of ``(length, heads, head_dim)`` states."""
    if kernels == "liger":
        from liger_kernel.ops.rope import LigerRopeFunction

        query, key = (each.transpose(0, 1).unsqueeze(0) for each in (query, key))
        rotate = cast("Callable[..., tuple[Tensor, Tensor]]", LigerRopeFunction.apply)
        query, key = rotate(query, key, cos.unsqueeze(0), sin.unsqueeze(0))
        return query.squeeze(0).transpose(0, 1), key.squeeze(0).transpose(0, 1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + _rotate_half(query) * sin, key * cos + _rotate_half(key) * sin


def _norm(module: nn.Module, states: Tensor, kernels: Kernels) -> Tensor:
    if kernels == "liger":
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        normalise = cast("Callable[..., Tensor]", LigerRMSNormFunction.apply)
        return normalise(states, module.weight, module.variance_epsilon, 0.0, "llama", False)
    return module(states)


def linear(module: nn.Module, states: Tensor, residual: Tensor | None = None) -> Tensor:
    """``module(states)``, plus ``residual``, LoRA's products in the dtype of the states whatever the adapter's own is.

    PEFT casts the states to the adapter's dtype instead: with an adapter in float32, which it must be for
    small updates not to be rounded away, the products would run at a fraction of the speed.
    """
    low_rank = list(_low_rank(module, states))
    base = module.base_layer if hasattr(module, "base_layer") else module
    if residual is not None:
        # The base's product comes last: recomputing a checkpointed layer ends with the last tensor that the
        # backward pass needs, and of the layer's last product it needs nothing.
        for low, up in low_rank:
            residual = residual + F.linear(low, up) if torch.compiler.is_compiling() else residual.addmm(low, up.t())
        return residual + base(states)  # pyright: ignore[reportCallIssue]
    output = base(states)  # pyright: ignore[reportCallIssue]
    for low, up in low_rank:
        # Compiled, the sum is part of the next kernel; in place here, it is part of the product.
        output = output + F.linear(low, up) if torch.compiler.is_compiling() else output.addmm_(low, up.t())
    return output


def _low_rank(module: Any, states: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each active adapter of a LoRA layer: ``scaling * A(states)``, ``(length, rank)``, and the matrix ``B``."""
    if not hasattr(module, "lora_A") or module.disable_adapters:
        return
    for name in module.active_adapters:
        if module.use_dora.get(name):
            raise ValueError("DoRA is not supported by this recipe's forward pass: set use_dora=False")
        low = F.linear(module.lora_dropout[name](states), module.lora_A[name].weight.to(states.dtype))
        yield low * module.scaling[name], module.lora_B[name].weight.to(states.dtype)


def decoder_layer(
    layer: nn.Module, states: Tensor, cos: Tensor, sin: Tensor, documents: Documents, kernels: Kernels
) -> Tensor:
    """One InternLM2 decoder layer over a pack: ``(length, hidden_size)`` in and out."""
    module: Any = layer
    attention, feed_forward = module.attention, module.feed_forward
    length, heads, groups = len(states), attention.num_key_value_heads, attention.num_key_value_groups

    fused = linear(attention.wqkv, _norm(module.attention_norm, states, kernels))
    # The fused projection's layout is (kv_head, queries of that head + key + value, head_dim).
    fused = fused.view(length, heads, groups + 2, attention.head_dim)
    query = fused[:, :, :groups].reshape(length, heads * groups, attention.head_dim)
    query, key = _rotate(query, fused[:, :, groups], cos, sin, kernels)
    attended = attend(query, key, fused[:, :, groups + 1], documents)
    states = linear(attention.wo, attended.reshape(length, -1), states)

    normed = _norm(module.ffn_norm, states, kernels)
    gate, up = linear(feed_forward.w1, normed), linear(feed_forward.w3, normed)
    if kernels == "liger":
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        inner = cast(Tensor, LigerSiLUMulFunction.apply(gate, up))
    else:
        inner = F.silu(gate) * up
    return linear(feed_forward.w2, inner, states)


def hidden_states(
    model: Any,
    input_ids: Tensor,
    positions: Tensor,
    documents: Documents,
    *,
    kernels: Kernels = "plain",
    layer_function: Any = decoder_layer,
    checkpointing: bool = False,
) -> Tensor:
    """Final hidden states ``(length, hidden_size)`` of an InternLM2ForCausalLM over one pack.

    ``input_ids`` and ``positions`` are int64 ``(length,)``; ``layer_function`` is :func:`decoder_layer` or its
    compiled form; ``checkpointing`` recomputes each layer in the backward pass.
    """
    decoder = model.model
    states = decoder.tok_embeddings(input_ids)
    if torch.is_grad_enabled() and not states.requires_grad:
        # Over a frozen embedding only the first layer's input would need no gradient: compiled twice for that.
        states.requires_grad_()
    cos, sin = rotary_tables(model.config, positions, states.dtype)
    for layer in decoder.layers:
        arguments = (layer, states, cos, sin, documents, kernels)
        if checkpointing and torch.is_grad_enabled():
            states = cast(Tensor, checkpoint(layer_function, *arguments, use_reentrant=False))
        else:
            states = layer_function(*arguments)
    # A call of the module, whatever the kernels: only that gathers a weight which ZeRO-3 has divided.
    return decoder.norm(states)
