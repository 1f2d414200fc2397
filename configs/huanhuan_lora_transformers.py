"""huanhuan_lora through Transformers' Trainer, for those who come from there: same data, packs, adapter, schedule.

    xtuner train configs/huanhuan_lora_transformers.py
    python tools/merge_hf.py configs/huanhuan_lora_transformers.py --out models/huanhuan

What XTuner's own loop adds is missing here: held-out loss, the best checkpoint kept by it, sampled replies.
Hardware, memory and time should be huanhuan_lora's; not measured.
"""

from mmengine.config import read_base

with read_base():
    from .huanhuan_lora import *

from transformers import TrainingArguments

from huanhuan.training.trainer import PackedTrainer

framework = "huggingface"
trainer = PackedTrainer
train_dataset = train_dataloader.dataset

training_args = dict(
    type=TrainingArguments,
    per_device_train_batch_size=train_dataloader.batch_size,  # packs per step and GPU
    gradient_accumulation_steps=1,
    num_train_epochs=max_epochs,
    learning_rate=2e-4,
    weight_decay=0.0,
    max_grad_norm=1.0,
    lr_scheduler_type="cosine",
    warmup_ratio=0.03,
    optim="adamw_torch_fused",
    logging_steps=10,
    save_steps=200,
    save_total_limit=2,
    remove_unused_columns=False,
    report_to=["tensorboard"],
    seed=42,
)
