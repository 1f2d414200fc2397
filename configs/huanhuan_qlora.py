"""InternLM2-7B, QLoRA: NF4 base, LoRA on every linear layer. One GPU with 16 GB or more.

xtuner train configs/huanhuan_qlora.py
python tools/merge_hf.py configs/huanhuan_qlora.py --out models/huanhuan
"""

from mmengine.config import read_base

with read_base():
    from ._base_.character import *

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from huanhuan.training.model import PackedFinetune

model = dict(
    type=PackedFinetune,
    use_activation_checkpointing=True,
    attention="auto",
    kernels="liger",
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=pretrained_model_name_or_path,
        trust_remote_code=True,
        torch_dtype=torch.bfloat16,
        quantization_config=dict(
            type=BitsAndBytesConfig,
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
        ),
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
