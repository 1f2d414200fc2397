"""A frozen InternLM2 with LoRA on every linear layer of a block: what QLoRA, LoRA and FP8 recipes share."""

from mmengine.config import read_base

with read_base():
    from .character import *

from peft import LoraConfig

model.lora = dict(
    type=LoraConfig,
    r=64,
    lora_alpha=128,
    lora_dropout=0.0,
    target_modules=["wqkv", "wo", "w1", "w2", "w3"],
    bias="none",
    task_type="CAUSAL_LM",
)
