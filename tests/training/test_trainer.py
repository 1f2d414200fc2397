"""The same training through Transformers' Trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainingArguments
from xtuner.model.utils import LoadWoInit

from huanhuan.paths import ROOT
from huanhuan.training.data import DialogueDataset, collate_pack
from huanhuan.training.model import PackedFinetune
from huanhuan.training.trainer import PackedTrainer

RECORDS = [
    {"conversation": [{"input": "你是谁？", "output": "我是种花的人。"}]},
    {"conversation": [{"input": "早些起来", "output": "好。"}, {"input": "下雨了", "output": "那就等天晴了再说吧。"}]},
    {"conversation": [{"input": "月光", "output": "碎了"}]},
    {"conversation": [{"input": "姐姐从哪里来？", "output": "从水边来，走得很慢。"}]},
]


def build(folder: Path) -> PackedFinetune:
    llm = ConfigDict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=str(folder),
        trust_remote_code=True,
        torch_dtype=torch.float32,
    )
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["wqkv", "wo", "w1", "w2", "w3"], task_type="CAUSAL_LM")
    return PackedFinetune(llm, lora=lora, device_map={"": 0})


@pytest.fixture
def dataset(tmp_path: Path, tiny_tokenizer: Any) -> DialogueDataset:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in RECORDS), "utf-8")
    return DialogueDataset(str(path), tiny_tokenizer, max_length=128)


def trainer_of(model: PackedFinetune, dataset: DialogueDataset, folder: Path, **options: Any) -> PackedTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        remove_unused_columns=False,
        report_to=[],
        max_grad_norm=0.0,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=1,
        **options,
    )
    return PackedTrainer(model=model, args=arguments, train_dataset=dataset, data_collator=None)


def test_a_step_over_accumulated_packs_is_a_step_over_their_tokens(
    tiny_base: Path, dataset: DialogueDataset, tmp_path: Path
) -> None:
    model = build(tiny_base)
    before = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}
    expected = model.compute_loss(collate_pack([dataset[index] for index in range(4)])["data"])["loss"]
    expected.backward()
    # Plain gradient descent at a rate of 1: the step is the gradient.
    want = {name: -each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    trainer = trainer_of(model, dataset, tmp_path / "run", max_steps=1, gradient_accumulation_steps=4)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-4)
    for name, parameter in model.named_parameters():
        if name in want:
            torch.testing.assert_close(parameter.detach() - before[name], want[name], rtol=1e-3, atol=1e-6)


def test_adapters_are_initialised_where_xtuner_turns_that_off(tiny_base: Path) -> None:
    with LoadWoInit():
        model = build(tiny_base)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            bound = parameter.shape[1] ** -0.5
            assert 0.5 * bound < float(parameter.detach().abs().max()) <= bound
        elif "lora_B" in name:
            assert not parameter.any()


def test_the_recipe_trains_saves_and_resumes(tiny_base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "huanhuan.training.run_xtuner"]
    command += [str(ROOT / "configs" / "huanhuan_lora_transformers.py"), "--work-dir", str(run)]
    options = ["--cfg-options", "model.llm.torch_dtype=float32", "train_dataset.max_length=512"]
    options += ["train_dataset.pack_length=512", "training_args.logging_steps=1", "training_args.save_steps=2"]
    options += ["training_args.report_to=none", "training_args.max_steps=3", "training_args.learning_rate=1e-2"]
    environment = os.environ | {"HUANHUAN_BASE": str(tiny_base), "OMP_NUM_THREADS": "1"}
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

    def losses(*extra: str) -> dict[int, float]:
        result = subprocess.run(
            [*command, *extra, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        state = json.loads((run / "trainer_state.json").read_text("utf-8"))
        return {each["step"]: each["loss"] for each in state["log_history"] if "loss" in each}

    whole = losses()
    assert list(whole) == [1, 2, 3]
    assert whole[3] < whole[1]
    assert (run / "adapter_model.safetensors").is_file()
    assert (run / "checkpoint-2" / "adapter_model.safetensors").is_file()
    assert losses("--resume", str(run / "checkpoint-2")) == pytest.approx(whole, rel=1e-4)
