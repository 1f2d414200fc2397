"""InternLM2-1.8B, QLoRA: huanhuan_qlora over the smaller base. One GPU with 6 GB.

    xtuner train configs/huanhuan_qlora_1_8b.py
    python tools/merge_hf.py configs/huanhuan_qlora_1_8b.py --out models/huanhuan

Peak 4.0 GiB, 5.1 with the runtime: by formula, not measured. `python tools/plan.py huanhuan_qlora_1_8b` says what to
expect on your card.
"""

from mmengine.config import read_base

with read_base():
    from .huanhuan_qlora import *

pretrained_model_name_or_path = "internlm/internlm2-chat-1_8b"
