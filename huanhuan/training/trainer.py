"""The same training through Transformers' Trainer: what recipes with ``framework = "huggingface"`` name."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import SCHEDULER_NAME

from huanhuan.errors import UserError
from huanhuan.training.data import DialogueDataset, collate_pack, count_supervised
from huanhuan.training.hooks import SampleRepliesHook
from huanhuan.training.metrics import Perplexity
from huanhuan.training.steps import trainer_passes
from huanhuan.training.validation import EvenBatches
from huanhuan.training.zero3 import join_lone_process

ADAPTER = "adapter_model.safetensors"


@dataclass
class PackedTrainingArguments(TrainingArguments):
    """``TrainingArguments``, and what the recipes of XTuner's own loop say elsewhere."""

    held_out: str | None = None
    """Training file whose replies are held out; their loss is computed ``validations`` times. None: never."""
    validations: int = 6
    """How many times, evenly spaced and the last step included; a checkpoint follows each."""
    min_steps: int = 0
    """Optimiser steps that a run given in epochs makes at least, by more epochs over a small data set."""
    log_lines: int = 25
    """How many training losses the log of a short run has at least, if it has as many steps."""
    patience: int | None = None
    """Validations in a row without a lower held-out loss before training ends; None: it never ends early."""
    persona: str | None = None
    """Card whose starters are answered in the log, before training and at each validation. None: nothing is."""

    def __post_init__(self) -> None:
        if self.validations < 1:
            raise UserError(
                f"[training_args.validations] {self.validations}: 至少 1 / must be at least 1: "
                "不要验证就用 held_out=None / for none set held_out=None"
            )
        if self.deepspeed:
            join_lone_process(uses_deepspeed=True)
            if torch.cuda.is_available() and not (self.bf16 or self.fp16):
                # As XTuner fills in DeepSpeed's settings for its own loop; in float32 the base would not fit.
                self.bf16 = torch.cuda.is_bf16_supported()
                self.fp16 = not self.bf16
        elif "LOCAL_RANK" in os.environ and not torch.accelerator.is_available():
            # Otherwise several processes on a CPU would not learn of each other.
            self.use_cpu = True
        if self.held_out is None and self.eval_strategy == "no":
            self.load_best_model_at_end = False
        elif self.eval_strategy == "no":
            # The steps themselves are found when the length of the run is known; Trainer wants the two to agree.
            self.eval_strategy, self.eval_steps = "steps", self.save_steps
        super().__post_init__()
        # XTuner builds the model next, and Trainer itself would seed after that.
        set_seed(self.seed)


class Stopwatch:
    """Tokens that were trained on, and the time between the start of a step and the next pause."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0
        self._since: float | None = None

    def step(self, tokens: int) -> None:
        """A step over so many tokens begins."""
        if self._since is None:
            self._since = time.perf_counter()
        self._tokens += tokens

    def pause(self) -> None:
        """What comes now is not training."""
        if self._since is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds += time.perf_counter() - self._since
        self._since = None

    def rate(self) -> float:
        """Tokens per second since this was last asked."""
        running = self._since is not None
        self.pause()
        rate = self._tokens / self._seconds if self._seconds else 0.0
        self._tokens, self._seconds = 0, 0.0
        self._since = time.perf_counter() if running else None
        return rate


class Pace(TrainerCallback):
    """Spreads validations and log lines over the run as :class:`huanhuan.training.loop.PackedTrainLoop` does."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The length of the run is known."""
        assert isinstance(args, PackedTrainingArguments)
        state.eval_steps = max(1, math.ceil(state.max_steps / args.validations))
        state.logging_steps = max(1, min(int(state.logging_steps), state.max_steps // args.log_lines))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Trainer's own flow has said what is due; validate at the end too, and keep what was validated."""
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy == "steps"
        if control.should_evaluate and args.save_strategy == "steps":
            control.should_save = True


class SampleReplies(TrainerCallback):
    """:class:`SampleRepliesHook` for Trainer."""

    def __init__(self, sampler: SampleRepliesHook) -> None:
        self.sampler = sampler

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log what the base answers."""
        self._log(state, kwargs["model"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log what the model answers now."""
        self._log(state, kwargs["model"])

    def _log(self, state: TrainerState, model: Any) -> None:
        # Divided weights are gathered layer by layer: one process alone would wait for the others for ever.
        if not (state.is_world_process_zero or model.partitioned):
            return
        was_training = model.training
        model.eval()
        for starter in self.sampler.starters:
            reply = self.sampler.reply(model.llm, starter)
            if state.is_world_process_zero:
                print_log(f"[{state.global_step}] {starter} → {reply}", "current")
        model.train(was_training)


class PackedTrainer(Trainer):
    """Trains a :class:`huanhuan.training.model.PackedFinetune` on a :class:`DialogueDataset`.

    As in XTuner's loop every supervised token of an optimiser step weighs the same, over accumulated packs and over
    processes. What is saved is an adapter (or a model, if every weight trains) in Hugging Face's layout. The log
    has ``tokens_per_second`` (of a process, padding not counted) and, on a GPU, ``peak_gib``.

    With :class:`PackedTrainingArguments` the log also has the held-out loss and sampled replies, and the
    checkpoint with the lowest loss is kept.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: DialogueDataset,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        for module in model.modules():
            # XTuner has replaced the norms' forward by a Triton kernel of its own, which recipes do not ask for.
            if type(module).__name__.endswith("RMSNorm"):
                module.__dict__.pop("forward", None)
        _use_one_gpu(args)
        # Every loss is looked at here, and one that is not finite ends the run.
        args.logging_nan_inf_filter = False
        if isinstance(args, PackedTrainingArguments):
            _lengthen(args, len(train_dataset))
            if args.held_out is not None:
                kwargs["eval_dataset"] = DialogueDataset(
                    args.held_out, train_dataset.tokenizer, train_dataset.max_length
                )
            kwargs["callbacks"] = [*kwargs.get("callbacks", ()), *_callbacks(args, train_dataset.tokenizer)]
        # XTuner's collator, which it hands over, is for rows that it has packed itself.
        collate = functools.partial(collate_pack, pad_to=train_dataset.pack_length)
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=collate, **kwargs)  # pyright: ignore[reportArgumentType]
        # Otherwise the loss would be divided by the accumulated packs once more.
        self.model_accepts_loss_kwargs = True
        self._stopwatch = Stopwatch()
        if self.accelerator.num_processes != get_world_size():
            raise UserError(
                "--deepspeed: Trainer 在 CPU 上只能单进程 / on CPUs Trainer has one process only: "
                "use huanhuan_lora / 用 huanhuan_lora"
            )
        if self.is_deepspeed_enabled:
            model.register_load_state_dict_post_hook(_do_not_miss_the_base)

    @property
    def _finetune(self) -> Any:
        """The PackedFinetune, whatever is wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int) -> tuple[list[Any], int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The packs of one optimiser step, and their supervised tokens on every process."""
        packs, _ = super().get_batch_samples(epoch_iterator, num_batches)
        tokens = torch.tensor(sum(map(count_supervised, packs)))
        all_reduce(tokens)
        return packs, int(tokens)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward pass of one pack.

        Raises: UserError if its loss is not finite, naming the step and the pack's records.
        """
        self._stopwatch.step(int(inputs["data"]["tokens"]))
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise UserError(
                f"step {self.state.global_step + 1}: loss 不是有限数 / loss is not finite (records "
                f"{', '.join(inputs.get('data_samples') or [])}): 降低学习率或检查这些记录，再用 --resume 从上一个检查点继续 / "
                "lower lr or check them, then --resume the last checkpoint"
            )
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This pack's share of the mean over the step's supervised tokens."""
        tokens = num_items_in_batch or count_supervised(inputs)
        scale = self.accelerator.num_processes / max(tokens, 1)
        outputs: dict[str, Tensor] = model(data={**inputs["data"], "loss_scale": scale})
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """``eval_loss`` and ``eval_perplexity`` of the held-out replies, as :class:`Perplexity` defines them."""
        self._stopwatch.pause()
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = DataLoader(
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            sampler=DefaultSampler(dataset, shuffle=False, round_up=False),
            collate_fn=collate_pack,
        )
        model = self._finetune
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in EvenBatches(batches):
            for result in model.predict(**self._prepare_inputs(batch)):
                sums += torch.tensor([result["negative_log_likelihood"], result["tokens"]], dtype=torch.float64)
        model.train(was_training)
        all_reduce(sums)
        whole = {"negative_log_likelihood": float(sums[0]), "tokens": int(sums[1])}
        metrics = {
            f"{metric_key_prefix}_{name}": value for name, value in Perplexity().compute_metrics([whole]).items()
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add speed and memory to what is logged of training."""
        if "loss" in logs:
            logs["tokens_per_second"] = self._stopwatch.rate()
            if torch.cuda.is_available():
                logs["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what was trained; under ZeRO-3 every process takes part."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)
            return
        # Trainer would copy the whole base to every process's memory, to save an adapter.
        engine: Any = self.model_wrapped
        state = None
        if self._finetune.partitioned:
            state = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
        if self.args.should_save:
            self._save(output_dir, state)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        if state_dict is not None:
            state_dict = {name.removeprefix("llm."): tensor for name, tensor in state_dict.items()}
        self._finetune.llm.save_pretrained(folder, state_dict=state_dict, safe_serialization=True)
        torch.save(self.args, folder / "training_args.bin")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._stopwatch.pause()
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Trainer leaves the frozen base out only where it sees that the model is PEFT's.
        engine: Any = self.model_wrapped
        engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            schedule: Any = self.lr_scheduler
            torch.save(schedule.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        llm: Any = self.accelerator.unwrap_model(model or self.model).llm
        folder = Path(resume_from_checkpoint)
        if (folder / ADAPTER).is_file():
            set_peft_model_state_dict(llm, load_file(folder / ADAPTER))
            return
        missing = set(llm.state_dict())
        for file in sorted(folder.glob("model*.safetensors")):
            weights = load_file(file)
            llm.load_state_dict(weights, strict=False)
            missing -= weights.keys()
        if missing:
            raise ValueError(f"{folder}: weights are missing: {', '.join(sorted(missing)[:3])} …")


def _use_one_gpu(args: TrainingArguments) -> None:
    """Without a launcher a process trains on one GPU, as in XTuner's own loop.

    Trainer would divide every batch among all that it sees, and with it the table of where dialogues start.
    """
    count = args.n_gpu
    if count > 1:
        args._n_gpu = 1
        print_log(
            f"看到 {count} 张显卡，只用一张 / {count} GPUs are visible, one is used; for all of them: "
            f"NPROC_PER_NODE={count} xtuner train …, or tools/train.py … --nproc {count}",
            "current",
        )


def _lengthen(args: PackedTrainingArguments, packs: int) -> None:
    """Let a run given in epochs make ``min_steps`` steps at least."""
    batches = math.ceil(packs / (args.per_device_train_batch_size * args.world_size))
    settings = {"num_train_epochs": args.num_train_epochs}
    steps, _ = trainer_passes(batches, args.gradient_accumulation_steps, settings)
    if args.max_steps <= 0 and steps < args.min_steps:
        print_log(
            f"数据少 / little data: {args.num_train_epochs} epochs would be {steps} steps; {args.min_steps} are made",
            "current",
        )
        args.max_steps = args.min_steps


def _callbacks(args: PackedTrainingArguments, tokenizer: Any) -> Iterator[TrainerCallback]:
    yield Pace()
    if args.persona is not None:
        yield SampleReplies(SampleRepliesHook(tokenizer, args.persona))
    if args.patience is not None and args.held_out is not None:
        yield EarlyStoppingCallback(args.patience)


def _do_not_miss_the_base(model: nn.Module, incompatible: Any) -> None:
    """Let DeepSpeed resume from a checkpoint of the adapter alone, which is all that XTuner gives it to save."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in trained]
