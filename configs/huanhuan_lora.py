"""InternLM2-7B, LoRA over a bfloat16 base. One GPU with 80 GB.

xtuner train configs/huanhuan_lora.py
python tools/merge_hf.py configs/huanhuan_lora.py --out models/huanhuan
"""

from mmengine.config import read_base

with read_base():
    from ._base_.lora import *
