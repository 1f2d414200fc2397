"""InternLM2-7B, LoRA over a bfloat16 base. One GPU with 80 GB.

    xtuner train configs/huanhuan_lora.py
    python tools/merge_hf.py configs/huanhuan_lora.py --out models/huanhuan

Peak 53.9 GiB; 18,000 tokens/s on an H200, a million tokens in 56 s (measured, configs/README.md).
"""

from mmengine.config import read_base

with read_base():
    from ._base_.lora import *
