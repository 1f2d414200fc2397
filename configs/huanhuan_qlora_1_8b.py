"""InternLM2-1.8B, QLoRA: huanhuan_qlora over the smaller base. One GPU with 6 GB.

    xtuner train configs/huanhuan_qlora_1_8b.py
    python tools/merge_hf.py configs/huanhuan_qlora_1_8b.py --out models/huanhuan

Peak 3.9 GiB; 24,600 tokens/s on an H200, a million tokens in 41 s (measured, configs/README.md).
"""

from mmengine.config import read_base

with read_base():
    from .huanhuan_qlora import *

pretrained_model_name_or_path = "internlm/internlm2-chat-1_8b"
