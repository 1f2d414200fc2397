"""The embedded base (models/tiny-internlm2, made by `make base`), QLoRA. Two CPU cores, 2 GB of memory, three minutes.

    xtuner train configs/huanhuan_qlora_demo.py
    python tools/merge_hf.py configs/huanhuan_qlora_demo.py --out models/huanhuan-demo

Or both, with the base before them: `make character`.
"""

from mmengine.config import read_base

with read_base():
    from .huanhuan_qlora import *

import torch
from mmengine.optim import LinearLR

from huanhuan.training.mixed_contexts import MixedContexts

pretrained_model_name_or_path = "tiny-internlm2"

# bfloat16 is 12 to 25 times slower than float32 on most CPUs
model.llm.torch_dtype = torch.float32
model.llm.quantization_config.bnb_4bit_compute_dtype = torch.float32
# So small a base learns replies by heart only if its output head may change too
model.lora.target_modules = ["wqkv", "wo", "w1", "w2", "w3", "output"]
model.use_activation_checkpointing = False
model.kernels = "plain"

# So small a base knows a question only from the context it has learnt it in: the exchanges are dealt anew into
# dialogues of one to five, fifty times, or a starter asked second would have no answer. No 7B recipe does this.
train_dataloader.dataset = dict(
    type=MixedContexts,
    path="data/huanhuan/train.jsonl",
    tokenizer=tokenizer,
    max_length=1024,
    copies=50,
    longest=5,
)
# Seven dialogues a step; small packs need no padding on a CPU
train_dataloader.update(batch_size=7, collate_fn=dict(pad_to=None))

steps = 950
optim_wrapper.optimizer.lr = 3e-3
param_scheduler = [
    dict(type=LinearLR, start_factor=1e-2, by_epoch=False, begin=0, end=30),
    dict(type=LinearLR, start_factor=1.0, end_factor=0.0, by_epoch=False, begin=30, end=steps),
]
# Learnt by heart means that held-out lines become less likely: the perplexity at the end is that of a model which
# knows its training scenes and nothing else. A 7B recipe validates all along and keeps the best checkpoint instead
train_cfg.update(max_iters=steps, max_epochs=None, validations=1)
default_hooks.logger.interval = 25
