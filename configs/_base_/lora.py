"""A frozen InternLM2 with LoRA on every linear layer of a block: what QLoRA, LoRA and FP8 recipes share."""

from mmengine.config import read_base

with read_base():
    from .character import *

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from huanhuan.training.model import PackedFinetune

model = dict(
    type=PackedFinetune,
    attention="auto",  # no dialogue sees the one before it in the pack
    kernels="compile",  # each decoder layer through torch.compile, about a minute at the start
    use_activation_checkpointing=False,  # True: a third of the memory for two thirds of the speed
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=pretrained_model_name_or_path,
        trust_remote_code=True,
        torch_dtype=torch.bfloat16,
    ),
    lora=dict(
        type=LoraConfig,
        r=64,
        lora_alpha=128,
        lora_dropout=0.0,
        target_modules=["wqkv", "wo", "w1", "w2", "w3"],
        bias="none",
        task_type="CAUSAL_LM",
    ),
)
