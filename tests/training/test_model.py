"""The packed forward pass against the released one, and packs against dialogues one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from huanhuan.training.data import Dialogue, collate_pack, encode_record
from huanhuan.training.hooks import SampleRepliesHook
from huanhuan.training.model import PackedFinetune

TARGETS = ["wqkv", "wo", "w1", "w2", "w3", "output"]
RECORDS = [
    {"conversation": [{"system": "你是园丁", "input": "你是谁？", "output": "我是种花的人。"}]},
    {"conversation": [{"input": "早些起来", "output": "好。"}, {"input": "下雨了", "output": "那就等天晴了再说吧。"}]},
    {"conversation": [{"input": "月光", "output": "碎了"}]},
]


def llm_config(folder: Path, **extra: Any) -> ConfigDict:
    return ConfigDict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=str(folder),
        trust_remote_code=True,
        torch_dtype=torch.float32,
        **extra,
    )


def build(folder: Path, *, lora: bool = True, llm: dict[str, Any] | None = None, **switches: Any) -> PackedFinetune:
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM") if lora else None
    model = PackedFinetune(llm_config(folder, **(llm or {})), lora=adapter, **switches)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(scope="module")
def dialogues(tiny_tokenizer: Any) -> list[Dialogue]:
    encoded = [encode_record(record, tiny_tokenizer) for record in RECORDS]
    return [Dialogue(each["input_ids"], each["labels"], f"r:{number}") for number, each in enumerate(encoded, 1)]


def gradients(model: PackedFinetune) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def loss_of(model: PackedFinetune, dialogues: list[Dialogue], **options: Any) -> torch.Tensor:
    return model.compute_loss(collate_pack([dialogues], **options)["data"])["loss"]


@pytest.mark.parametrize("lora", [True, False])
def test_equals_the_released_forward(tiny_base: Path, dialogues: list[Dialogue], lora: bool) -> None:
    model = build(tiny_base, lora=lora)
    for dialogue in dialogues:
        expected = model.llm(input_ids=torch.tensor([dialogue.input_ids]), labels=torch.tensor([dialogue.labels])).loss
        expected.backward()
        want = gradients(model)
        model.zero_grad()
        loss = loss_of(model, [dialogue])
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        got = gradients(model)
        model.zero_grad()
        assert want.keys() == got.keys()
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "flex"])
@pytest.mark.parametrize("pad_to", [None, 256])
def test_a_pack_is_the_mean_of_its_dialogues(
    tiny_base: Path, dialogues: list[Dialogue], attention: Any, pad_to: int | None
) -> None:
    model = build(tiny_base, attention=attention)
    tokens = sum(dialogue.supervised for dialogue in dialogues)
    expected = torch.zeros(())
    for dialogue in dialogues:
        expected = expected + loss_of(model, [dialogue]) * dialogue.supervised / tokens
    expected.backward()
    want = gradients(model)
    model.zero_grad()
    loss = loss_of(model, dialogues, pad_to=pad_to)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    got = gradients(model)
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-6)


def test_leaking_attention_would_be_noticed(tiny_base: Path, dialogues: list[Dialogue]) -> None:
    model = build(tiny_base)
    pack = collate_pack([dialogues])["data"]
    apart = model.compute_loss(dict(pack))["loss"]
    length = pack["input_ids"].shape[1]
    together = model.compute_loss({**pack, "starts": torch.tensor([0, length], dtype=torch.int32), "longest": length})
    assert abs(apart.item() - together["loss"].item()) > 1e-4


def test_checkpointing_changes_nothing(tiny_base: Path, dialogues: list[Dialogue]) -> None:
    plain, checkpointed = build(tiny_base), build(tiny_base, use_activation_checkpointing=True)
    losses = []
    for model in (plain, checkpointed):
        loss = loss_of(model, dialogues)
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1])
    want, got = gradients(plain), gradients(checkpointed)
    for name in want:
        torch.testing.assert_close(got[name], want[name])


def build_nf4(folder: Path) -> PackedFinetune:
    quantised = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return build(folder, llm={"quantization_config": quantised})


def test_validation_costs_nf4_no_gradient(tiny_base: Path, dialogues: list[Dialogue]) -> None:
    model = build_nf4(tiny_base)
    loss_of(model, dialogues).backward()
    want = gradients(model)
    model.zero_grad()
    model.eval()
    model.predict(collate_pack([dialogues])["data"])
    model.llm.generate(input_ids=torch.tensor([dialogues[0].input_ids]), max_new_tokens=2, do_sample=False)
    model.train()
    loss_of(model, dialogues).backward()
    got = gradients(model)
    for name in want:
        torch.testing.assert_close(got[name], want[name])


def test_nf4_trains_on_a_cpu(tiny_base: Path, dialogues: list[Dialogue]) -> None:
    model = build_nf4(tiny_base)
    assert type(model.causal_lm.model.layers[0].attention.wqkv.base_layer).__name__ == "Linear4bit"
    expected = model.llm(
        input_ids=torch.tensor([dialogues[0].input_ids]), labels=torch.tensor([dialogues[0].labels])
    ).loss
    loss = loss_of(model, dialogues[:1])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    optimiser = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=5e-3)
    for _ in range(5):
        loss = loss_of(model, dialogues)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss_of(model, dialogues) < expected


def test_adapter_dtype_is_the_recipes(tiny_base: Path) -> None:
    model = build(tiny_base, adapter_dtype=torch.bfloat16)
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.bfloat16}
    assert {each.dtype for each in model.parameters() if not each.requires_grad} == {torch.float32}


def test_predict_sums_what_the_loss_averages(tiny_base: Path, dialogues: list[Dialogue]) -> None:
    model = build(tiny_base).eval()
    pack = collate_pack([dialogues])["data"]
    (result,) = model.predict(pack)
    assert result["tokens"] == sum(dialogue.supervised for dialogue in dialogues)
    mean = result["negative_log_likelihood"] / result["tokens"]
    assert mean == pytest.approx(float(model.compute_loss(pack)["loss"]), rel=1e-5)


@pytest.mark.parametrize("nf4", [False, True])
def test_a_model_in_fp8_writes_sampled_replies(tiny_base: Path, tiny_tokenizer: Any, nf4: bool) -> None:
    """As the hook asks for them before the first step, through the released code's own ``generate``."""
    quantised = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")}
    model = build(tiny_base, llm=quantised if nf4 else None, fp8_base=True).eval()
    hook = SampleRepliesHook(tiny_tokenizer, "data/huanhuan/persona.toml", max_new_tokens=4)
    assert isinstance(hook.reply(model.llm, "你是谁？"), str)
