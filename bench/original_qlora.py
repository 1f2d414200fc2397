"""The QLoRA recipe that users come from, for the comparison in bench/train.py: fp16, eager attention, 512 tokens
packed without a document mask, batch 1, rank 64, dropout 0.1, checkpointing. Not a recipe to train with."""

from mmengine.config import read_base

with read_base():
    from ..configs._base_.character import *

import torch
from datasets import load_dataset
from mmengine.optim import AmpOptimWrapper
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from xtuner.dataset import process_hf_dataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.engine.runner import TrainLoop
from xtuner.model import SupervisedFinetune

from huanhuan.template import XTUNER_TEMPLATE

data_path = "train.jsonl"

model = dict(
    type=SupervisedFinetune,
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=pretrained_model_name_or_path,
        trust_remote_code=True,
        torch_dtype=torch.float16,
        attn_implementation="eager",
        quantization_config=dict(
            type=BitsAndBytesConfig,
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
        ),
    ),
    lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM"),
)
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(
        type=process_hf_dataset,
        dataset=dict(type=load_dataset, path="json", data_files=dict(train=data_path)),
        tokenizer=tokenizer,
        max_length=512,
        template_map_fn=dict(type=template_map_fn_factory, template=XTUNER_TEMPLATE),
        remove_unused_columns=True,
        shuffle_before_pack=True,
        pack_to_max_length=True,
        map_num_proc=4,
    ),
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=default_collate_fn),
)
optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-4, betas=(0.9, 0.999), weight_decay=0),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False),
    accumulative_counts=16,
    loss_scale="dynamic",
    dtype="float16",
)
train_cfg = dict(type=TrainLoop, max_iters=40)
val_dataloader = None
val_cfg = None
val_evaluator = None
custom_hooks = []
