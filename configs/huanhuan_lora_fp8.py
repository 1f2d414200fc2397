"""InternLM2-7B, LoRA over a frozen FP8 base. One Ada, Hopper or Blackwell GPU with 80 GB.

    xtuner train configs/huanhuan_lora_fp8.py
    python tools/merge_hf.py configs/huanhuan_lora_fp8.py --out models/huanhuan

Peak 54.0 GiB; 25,900 tokens/s on an H200, a million tokens in 39 s (measured, configs/README.md). The first layer
stays in bfloat16, and the adapter is merged into the bfloat16 weights. Loss curves: bench/README.md.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.lora import *

model.fp8_base = True
