"""The decoder layer's parts against what they stand in for, and what compiling it must keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from mmengine.config import ConfigDict
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from huanhuan.training import model as training_model
from huanhuan.training.data import Dialogue, collate_pack
from huanhuan.training.layers import decoder_layer, hidden_states, limit_activations, linear, rotary_tables
from huanhuan.training.model import PackedFinetune

TARGETS = ["wqkv", "wo", "w1", "w2", "w3"]


def build(folder: Path, *, nf4: bool = False, **switches: Any) -> PackedFinetune:
    llm: Any = ConfigDict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=str(folder),
        trust_remote_code=True,
        torch_dtype=torch.float32,
    )
    if nf4:
        llm["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = PackedFinetune(llm, lora=lora, **switches)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def pack(lengths: list[int], seed: int = 0, pad_to: int = 64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    dialogues = []
    for length in lengths:
        ids = torch.randint(10, 300, (length,), generator=generator).tolist()
        dialogues.append(Dialogue(ids, [-100] * (length // 2) + ids[length // 2 :], ""))
    return collate_pack([dialogues], pad_to=pad_to)["data"]


def gradients(model: PackedFinetune, data: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    model.compute_loss(data)["loss"].backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.fixture
def fresh_compiler() -> Iterator[dict[str, Any]]:
    """torch.compile without what other tests compiled; its counters."""
    import torch._functorch.config as functorch
    from torch._dynamo.utils import counters
    from torch.utils.flop_counter import flop_registry

    torch._dynamo.reset()
    counters.clear()
    formulas = dict(flop_registry)
    with functorch.patch(activation_memory_budget=1.0):
        yield cast("dict[str, Any]", counters)
    flop_registry.clear()
    flop_registry.update(formulas)
    torch._dynamo.reset()


def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models on the CPU run compiled layers, all but the code generation."""
    layer = torch.compile(decoder_layer, backend="aot_eager_decomp_partition", dynamic=False)

    def run(*arguments: Any, **options: Any) -> Tensor:
        return hidden_states(*arguments, **{**options, "layer_function": layer})

    monkeypatch.setattr(training_model, "hidden_states", run)


def test_rotary_tables_are_those_of_the_released_code(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, trust_remote_code=True)
    positions = torch.arange(40)
    rotary = model.model.layers[0].attention.rotary_emb
    wanted = rotary(torch.zeros(1, 1, 40, 16), positions.unsqueeze(0))
    for got, want in zip(rotary_tables(model.config, positions, torch.float32), wanted, strict=True):
        torch.testing.assert_close(got, want.squeeze(0))


def config(scaling: Any) -> Any:
    return SimpleNamespace(hidden_size=64, num_attention_heads=4, rope_theta=1e6, rope_scaling=scaling)


def test_linear_scaling_divides_the_positions() -> None:
    scaled = rotary_tables(config({"type": "linear", "factor": 2.0}), torch.tensor([6]), torch.float32)
    plain = rotary_tables(config(None), torch.tensor([3]), torch.float32)
    torch.testing.assert_close(scaled, plain)


def test_another_scaling_is_refused() -> None:
    with pytest.raises(ValueError, match="yarn"):
        rotary_tables(config({"type": "yarn", "factor": 2.0}), torch.tensor([1]), torch.float32)


def test_lora_is_pefts_with_and_without_a_residual(tiny_base: Path) -> None:
    layer: Any = build(tiny_base).causal_lm.model.layers[0]
    states, residual = torch.randn(7, 64), torch.randn(7, 64)
    torch.testing.assert_close(linear(layer.attention.wo, states), layer.attention.wo(states))
    torch.testing.assert_close(linear(layer.attention.wo, states, residual), layer.attention.wo(states) + residual)


def test_an_adapter_in_float32_multiplies_in_the_dtype_of_the_states(tiny_base: Path) -> None:
    layer: Any = build(tiny_base).causal_lm.model.layers[0].to(torch.bfloat16)
    for name, parameter in layer.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
    states = torch.randn(7, 64).bfloat16()
    output = linear(layer.attention.wo, states)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert layer.attention.wo.lora_B["default"].weight.grad.dtype == torch.float32


def test_dora_is_refused(tiny_base: Path) -> None:
    layer: Any = build(tiny_base).causal_lm.model.layers[0]
    layer.attention.wo.use_dora["default"] = True
    with pytest.raises(ValueError, match="DoRA"):
        linear(layer.attention.wo, torch.randn(3, 64))


def test_a_recomputed_layer_leaves_out_its_last_product(tiny_base: Path) -> None:
    model = build(tiny_base, use_activation_checkpointing=True)
    feed_forward = model.causal_lm.model.layers[0].feed_forward
    calls: list[str] = []
    for name in ("w1", "w2"):
        base = getattr(feed_forward, name).base_layer
        base.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.compute_loss(pack([20, 30]))["loss"].backward()
    assert sorted(calls) == ["w1", "w1", "w2"]


def test_layers_are_compiled_once(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, fresh_compiler: dict[str, Any]
) -> None:
    compiled(monkeypatch)
    model = build(tiny_base)
    for seed, lengths in enumerate(([20, 30], [5, 5, 5, 5, 5], [60])):
        model.compute_loss(pack(lengths, seed))["loss"].backward()
    assert fresh_compiler["stats"]["unique_graphs"] == 1
    assert not fresh_compiler["graph_break"]


@pytest.mark.parametrize(
    "switches", [{}, {"fp8_base": True}, {"fp8_base": True, "nf4": True}], ids=["float32", "fp8", "nf4-fp8"]
)
@pytest.mark.parametrize("budget", [1.0, 0.2])
def test_compiling_changes_no_gradient(
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    fresh_compiler: dict[str, Any],
    switches: dict[str, Any],
    budget: float,
) -> None:
    model, data = build(tiny_base, **switches), pack([20, 30])
    want = gradients(model, data)
    compiled(monkeypatch)
    limit_activations(budget)
    got = gradients(model, data)
    # The first layer's products do not run in FP8.
    assert fresh_compiler["stats"]["unique_graphs"] == (2 if switches else 1)
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-3, atol=1e-6)


def test_a_budget_keeps_less(tiny_base: Path, monkeypatch: pytest.MonkeyPatch, fresh_compiler: dict[str, Any]) -> None:
    compiled(monkeypatch)
    model, data = build(tiny_base), pack([20, 30])
    kept = []
    for budget in (1.0, 0.1):
        torch._dynamo.reset()
        limit_activations(budget)
        tensors: list[int] = []

        def count(tensor: Tensor, tensors: list[int] = tensors) -> Tensor:
            tensors.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.compute_loss(data)["loss"].backward()
        kept.append(sum(tensors))
    assert kept[1] < 0.8 * kept[0]


def test_an_unpacked_weight_is_not_kept_for_the_backward_pass(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, fresh_compiler: dict[str, Any]
) -> None:
    # A length that no weight has.
    model, data = build(tiny_base, nf4=True, fp8_base=True), pack([20, 30], pad_to=72)
    feed_forward = model.causal_lm.model.layers[1].feed_forward
    weight = {feed_forward.w1.in_features, feed_forward.w1.out_features}
    compiled(monkeypatch)
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.compute_loss(data)["loss"].backward()
    assert any(set(each.shape) == {72, feed_forward.w1.out_features} for each in kept)
    assert not [each.shape for each in kept if set(each.shape) == weight]
