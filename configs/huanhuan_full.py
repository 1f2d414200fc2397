"""InternLM2-7B, every weight trained. One GPU with 96 GB, or several with DeepSpeed ZeRO.

    xtuner train configs/huanhuan_full.py
    NPROC_PER_NODE=8 xtuner train configs/huanhuan_full.py --deepspeed deepspeed_zero3
    python tools/merge_hf.py configs/huanhuan_full.py --out models/huanhuan

Peak 81.5 GiB; 11,600 tokens/s on an H200, a million tokens in 86 s (measured, configs/README.md). On 80 GB add
`--cfg-options model.use_activation_checkpointing=True model.kernels=liger`.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.character import *

from huanhuan.training.optimizer import CompensatedAdamW8bit

# 8-bit states, and the part of each update that a bfloat16 weight cannot hold is kept beside it
optim_wrapper.optimizer = dict(type=CompensatedAdamW8bit, lr=2e-5, betas=(0.9, 0.999), weight_decay=0)
