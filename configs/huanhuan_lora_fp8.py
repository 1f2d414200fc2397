"""InternLM2-7B, LoRA over a frozen FP8 base. One Ada, Hopper or Blackwell GPU with 80 GB.

    xtuner train configs/huanhuan_lora_fp8.py
    python tools/merge_hf.py configs/huanhuan_lora_fp8.py --out models/huanhuan

Peak 54.0 GiB; 25,600 tokens/s on an H200, a million tokens in 39 s (measured, configs/README.md). The adapter is
merged into the bfloat16 weights. It learns a little more slowly at first and ends where bfloat16 does.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.lora import *

model.fp8_base = True
