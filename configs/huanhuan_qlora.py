"""InternLM2-7B, QLoRA: an NF4 base and LoRA on every linear layer. One GPU with 16 GB.

    xtuner train configs/huanhuan_qlora.py
    python tools/merge_hf.py configs/huanhuan_qlora.py --out models/huanhuan

Peak 10.1 GiB; 12,400 tokens/s on an H200, a million tokens in 81 s (measured, configs/README.md). On a card with
48 GB train 1.4 times as fast with configs/huanhuan_qlora_fast.py.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.lora import *

import torch
from transformers import BitsAndBytesConfig

model.llm.quantization_config = dict(
    type=BitsAndBytesConfig,
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_use_double_quant=True,
    bnb_4bit_quant_type="nf4",
)
# Within 16 GB: activations are computed again in the backward pass. Compiling does not get along with that
# over a 4-bit base, so Liger's kernels take its place.
model.use_activation_checkpointing = True
model.kernels = "liger"
