"""What no recipe varies: the base, how dialogues become packs, what is measured on the way, and what is kept.

As it stands every weight trains; a recipe inherits this and edits the dicts below where it differs.
"""

from mmengine.dataset import DefaultSampler
from mmengine.hooks import DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import OptimWrapper
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer
import torch
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer

from huanhuan.training.base import find_base
from huanhuan.training.data import DialogueDataset, collate_pack
from huanhuan.training.hooks import (
    AverageLossHook,
    RandomStateHook,
    SampleRepliesHook,
    StopAtNaNHook,
    ThroughputHook,
)
from huanhuan.training.loop import PackedTrainLoop
from huanhuan.training.metrics import Perplexity
from huanhuan.training.model import PackedFinetune
from huanhuan.training.stopping import EarlyStopHook
from huanhuan.training.validation import EvenValLoop
from huanhuan.training.saving import WholeCheckpointHook
from huanhuan.training.schedule import WarmupCosineLR

# Model: found by huanhuan.training.base (HUANHUAN_BASE, models/, ModelScope, Hugging Face)
pretrained_model_name_or_path = "internlm/internlm2-chat-7b"
model_resource = dict(fn=find_base, args=dict())

tokenizer = dict(
    type=AutoTokenizer.from_pretrained,
    pretrained_model_name_or_path=pretrained_model_name_or_path,
    trust_remote_code=True,
    padding_side="right",
)
model = dict(
    type=PackedFinetune,
    attention="auto",  # no dialogue sees the one before it in the pack
    kernels="compile",  # each decoder layer through torch.compile, about a minute at the start
    use_activation_checkpointing=False,  # True: a quarter to a half of the memory for two thirds of the speed
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=pretrained_model_name_or_path,
        trust_remote_code=True,
        torch_dtype=torch.bfloat16,
    ),
)

# Data: relative paths lie below the checkout. A recipe for another character sets these three
persona = "data/huanhuan/persona.toml"

train_dataloader = dict(
    batch_size=1,  # packs per step and GPU
    num_workers=0,  # packs are in memory
    dataset=dict(
        type=DialogueDataset,
        path="data/huanhuan/train.jsonl",
        tokenizer=tokenizer,
        max_length=2048,  # tokens of one dialogue; exchanges beyond are left out
        pack_length=8192,  # tokens of one pack
    ),
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=collate_pack, pad_to=8192),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type=DialogueDataset, path="data/huanhuan/val.jsonl", tokenizer=tokenizer, max_length=2048),
    sampler=dict(type=DefaultSampler, shuffle=False, round_up=False),
    collate_fn=dict(type=collate_pack),
)

# Optimiser: 3 % of the steps warm up, then a cosine to zero
max_epochs = 3
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-4, betas=(0.9, 0.999), weight_decay=0, fused=True),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False),
    accumulative_counts=1,  # packs per optimiser step
)
param_scheduler = dict(type=WarmupCosineLR, warmup=0.03)

# Loops: training, and the held-out replies of val.jsonl
train_cfg = dict(
    type=PackedTrainLoop,
    max_epochs=max_epochs,
    min_steps=30,  # a small script is gone through more often
    validations=6,
)
val_cfg = dict(type=EvenValLoop)
val_evaluator = dict(type=Perplexity)

# Runtime
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(
        type=WholeCheckpointHook,
        by_epoch=False,
        interval=200,
        max_keep_ckpts=2,
        save_last=True,
        save_best="held_out/loss",
        rule="less",
    ),
    sampler_seed=dict(type=DistSamplerSeedHook),
    # Validations in a row without a lower held-out loss before training ends; None: it never ends early
    early_stop=dict(type=EarlyStopHook, patience=None),
)
custom_hooks = [
    dict(type=SampleRepliesHook, tokenizer=tokenizer),
    dict(type=StopAtNaNHook, every=10),  # steps between two looks; each waits for the card
    dict(type=ThroughputHook),
    dict(type=RandomStateHook),
    dict(type=AverageLossHook),
]
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
# The running mean is for training losses; a held-out loss is one number.
log_processor = dict(by_epoch=False, window_size=10, mean_pattern=r"^(?!.*held_out).*(loss|time|grad_norm|eta)")
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=42, deterministic=False)
