"""Hooks of the training run: sampled replies in the log, a stop at NaN, an exact resume."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from xtuner.registry import BUILDER

from huanhuan.errors import UserError
from huanhuan.paths import in_checkout
from huanhuan.persona import load_persona
from huanhuan.template import Message, encode, stop_ids


class SampleRepliesHook(Hook):
    """Writes greedy replies to the persona's starters into the log: before training, after each validation.

    The prompt is the page's own: the persona's system prompt and the one template.
    """

    priority = "LOW"

    def __init__(self, tokenizer: Any, persona: str, max_new_tokens: int = 96, starters: int = 3) -> None:
        self.tokenizer = BUILDER.build(tokenizer) if isinstance(tokenizer, dict) else tokenizer
        card = load_persona(in_checkout(persona))
        self.system, self.starters = card.system, card.starters[:starters]
        self.max_new_tokens = max_new_tokens

    def before_train(self, runner: Any) -> None:
        """Log what the base answers."""
        self._log_replies(runner)

    def after_val(self, runner: Any) -> None:
        """Log what the model answers now."""
        self._log_replies(runner)

    def _log_replies(self, runner: Any) -> None:
        if not (is_main_process() or self._needs_every_process(runner)):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        was_training = model.training
        model.eval()
        for starter in self.starters:
            runner.logger.info(f"[{runner.iter}] {starter} → {self.reply(model.llm, starter)}")
        model.train(was_training)

    @staticmethod
    def _needs_every_process(runner: Any) -> bool:
        """ZeRO-3 gathers the weights layer by layer: one process alone would wait for the others for ever.

        Replies are greedy, so that all processes make the same one in as many steps.
        """
        strategy = runner.cfg.get("strategy") or {}
        return (strategy.get("config") or {}).get("zero_optimization", {}).get("stage") == 3

    @torch.no_grad()
    def reply(self, llm: Any, text: str) -> str:
        """The model's greedy reply to ``text`` said by a visitor."""
        messages: list[Message] = [{"role": "system", "content": self.system}, {"role": "user", "content": text}]
        device = next(llm.parameters()).device
        prompt = torch.tensor([encode(self.tokenizer, messages)], device=device)
        output = llm.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=stop_ids(self.tokenizer),
            pad_token_id=self.tokenizer.eos_token_id,
        )
        return self.tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()


class StopAtNaNHook(Hook):
    """Ends training at the first loss that is not a number, naming the step and the records of its batch.

    The checkpoints written before stay as they are.
    """

    priority = "HIGHEST"

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Look at the loss of the step that just ran."""
        loss = (outputs or {}).get("loss")
        if loss is None or (runner.iter + 1) % self.every or bool(torch.isfinite(torch.as_tensor(loss)).all()):
            return
        records: Sequence[str] = (data_batch or {}).get("data_samples") or []
        raise UserError(
            f"step {runner.iter + 1}: loss 不是有限数 / is not finite (records {', '.join(records[:8])}): "
            "降低学习率或检查这些记录，再用 --resume 从上一个检查点继续 / lower lr or check them, then --resume the last checkpoint"
        )


class AverageLossHook(Hook):
    """Logs the loss of all processes' packs, not that of the main process's alone.

    Each process's loss is its share of the mean over the step's supervised tokens, times the processes, so
    that the average over them is that mean. Stands behind :class:`StopAtNaNHook` in a recipe, which wants to
    know whose records they were.
    """

    # Before mmengine's RuntimeInfoHook, which hands the loss to the log.
    priority = "HIGHEST"

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Replace the loss by its average over the processes."""
        if get_world_size() > 1 and outputs and "loss" in outputs:
            outputs["loss"] = outputs["loss"].detach().clone()
            all_reduce(outputs["loss"], "mean")


class ThroughputHook(Hook):
    """Logs ``tokens_per_second`` (padding not counted) and, on a GPU, the peak of its memory in GiB.

    The rate is that of this process over the steps since the last log line; validation is left out.
    """

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval
        self._tokens, self._since, self._stopped = 0, 0.0, True

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start the clock: what validation and sampled replies took is no training time."""
        if self._stopped:
            self._tokens, self._since, self._stopped = 0, time.perf_counter(), False

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Count the batch; hand the rate to the log every ``interval`` steps."""
        self._tokens += int(data_batch["data"]["tokens"])
        if not self.every_n_train_iters(runner, self.interval):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            runner.message_hub.update_scalar("train/peak_gib", torch.cuda.max_memory_allocated() / 2**30)
        now = time.perf_counter()
        runner.message_hub.update_scalar("train/tokens_per_second", self._tokens / (now - self._since))
        self._tokens, self._since = 0, now

    def before_val(self, runner: Any) -> None:
        """Stop the clock."""
        self._stopped = True


class RandomStateHook(Hook):
    """Keeps the random generators' states in the checkpoint, so that a resumed run draws the same dropout."""

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the states to what is saved; only types that ``torch.load(weights_only=True)`` accepts."""
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        version, internal, gauss = random.getstate()
        checkpoint["random_state"] = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [str(name), torch.from_numpy(numpy.asarray(keys, dtype=numpy.int64)), position, has_gauss, cached],
            "python": [version, list(internal), gauss],
        }

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Remember the states of the checkpoint; they are set when training begins."""
        self._state = checkpoint.get("random_state") if runner._resume else None

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Set the states right before the first resumed step: what came before has drawn numbers of its own."""
        state = getattr(self, "_state", None)
        if state is None:
            return
        self._state = None
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
        name, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), position, has_gauss, cached))
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
