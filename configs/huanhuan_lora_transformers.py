"""huanhuan_lora through Transformers' Trainer, for those who come from there: same data, packs, adapter, schedule.

    xtuner train configs/huanhuan_lora_transformers.py
    NPROC_PER_NODE=8 xtuner train configs/huanhuan_lora_transformers.py --deepspeed deepspeed_zero2
    python tools/merge_hf.py configs/huanhuan_lora_transformers.py --out models/huanhuan

Held-out loss, sampled replies and speed are logged as there. At the end the work dir holds the adapter with the
lowest held-out loss, which is what merge_hf.py takes; checkpoint-* are the best one and the last.
One GPU with 80 GB. Peak 53.9 GiB; 17,200 tokens/s on an H200, a million tokens in 58 s (measured, configs/README.md).
"""

from mmengine.config import read_base

with read_base():
    from .huanhuan_lora import *

from huanhuan.training.trainer import PackedTrainer, PackedTrainingArguments

framework = "huggingface"
trainer = PackedTrainer
train_dataset = train_dataloader.dataset

training_args = dict(
    type=PackedTrainingArguments,
    # Held-out replies: how often, and the best checkpoint by them
    held_out=val_dataloader.dataset.path,
    per_device_eval_batch_size=val_dataloader.batch_size,
    validations=train_cfg.validations,
    load_best_model_at_end=True,
    metric_for_best_model="loss",
    patience=default_hooks.early_stop.patience,
    persona=persona,
    # Length
    num_train_epochs=max_epochs,
    min_steps=train_cfg.min_steps,
    per_device_train_batch_size=train_dataloader.batch_size,  # packs per pass and GPU
    gradient_accumulation_steps=optim_wrapper.accumulative_counts,
    # Optimiser and schedule
    optim="adamw_torch_fused",
    learning_rate=optim_wrapper.optimizer.lr,
    adam_beta1=optim_wrapper.optimizer.betas[0],
    adam_beta2=optim_wrapper.optimizer.betas[1],
    weight_decay=optim_wrapper.optimizer.weight_decay,
    max_grad_norm=optim_wrapper.clip_grad.max_norm,
    lr_scheduler_type="cosine",
    warmup_ratio=param_scheduler.warmup,
    # Runtime
    logging_steps=default_hooks.logger.interval,
    save_steps=default_hooks.checkpoint.interval,
    save_total_limit=default_hooks.checkpoint.max_keep_ckpts,
    remove_unused_columns=False,
    report_to=["tensorboard"],
    seed=randomness.seed,
)
