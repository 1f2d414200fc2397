"""Hooks of the training run: sampled replies in the log, a stop at NaN, an exact resume."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from torch import Tensor
from xtuner.registry import BUILDER

from huanhuan.errors import UserError
from huanhuan.paths import in_checkout
from huanhuan.persona import load_persona
from huanhuan.template import Message, encode, stop_ids


class SampleRepliesHook(Hook):
    """Writes greedy replies to the persona's starters into the log: before training, after each validation.

    The prompt is the page's own: the persona's system prompt and the one template. Without ``persona`` the card is the
    recipe's ``persona``, so that a recipe for another character says in one place who that is.
    """

    priority = "LOW"

    def __init__(self, tokenizer: Any, persona: str | None = None, max_new_tokens: int = 96, starters: int = 3) -> None:
        self.tokenizer = BUILDER.build(tokenizer) if isinstance(tokenizer, dict) else tokenizer
        self.max_new_tokens, self.count = max_new_tokens, starters
        self.system = ""
        self.starters: tuple[str, ...] = ()
        if persona is not None:
            self.read(persona)

    def read(self, persona: str) -> None:
        """Take prompt and starters from a card; a relative path lies below the checkout."""
        card = load_persona(in_checkout(persona))
        self.system, self.starters = card.system, card.starters[: self.count]

    def before_run(self, runner: Any) -> None:
        """Read the recipe's card, unless this hook was given one."""
        if not self.system:
            self.read(runner.cfg.persona)

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


def state_is_kept(runner: Any) -> bool:
    """Whether a checkpoint or a validation, which may keep one, follows the iteration that just ran.

    All processes answer alike, so that they can talk to each other about it.
    """
    done = runner.iter + 1
    if done >= runner.max_iters or done % getattr(runner.train_loop, "val_interval", runner.max_iters) == 0:
        return True
    saving = (each for each in runner.hooks if isinstance(each, CheckpointHook) and not each.by_epoch)
    return any(each.interval > 0 and done % each.interval == 0 for each in saving)


class StopAtNaNHook(Hook):
    """Ends training at the first loss or gradient that is not finite, naming its step and the records of that step.

    Whether a number is finite is asked of the card at every iteration and read every ``every`` iterations, for
    reading waits for the card; and before anything is kept, so that no checkpoint holds what came after.
    """

    # Before the hooks that hand the loss on or save anything.
    priority = "HIGHEST"

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._seen: list[tuple[int, Tensor, list[str]]] = []
        self._records: list[str] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Note whether the iteration that just ran is well; raise if this or an earlier one was not.

        Raises: UserError.
        """
        loss = (outputs or {}).get("loss")
        if loss is None:
            return
        step, accumulation = runner.iter + 1, getattr(runner.train_loop, "accumulation", 1)
        self._records += (data_batch or {}).get("data_samples") or []
        well = torch.isfinite(torch.as_tensor(loss).detach()).all()
        if not _gradient_is_finite(runner):
            well = torch.zeros_like(well)
        self._seen.append((step, well, self._records))
        if step % accumulation == 0:
            self._records = []
        if step % self.every == 0 or state_is_kept(runner):
            self._look(accumulation)

    def _look(self, accumulation: int) -> None:
        seen, self._seen = self._seen, []
        ill = torch.stack([~well for _, well, _ in seen]).float()
        # Another process may have had the bad packs; all stop, and those that had them say which.
        anywhere = ill.clone()
        all_reduce(anywhere, "max")
        if not bool(anywhere.any()):
            return
        first = int(anywhere.argmax())
        iteration, _, records = seen[first]
        mine = f"records {', '.join(records)}" if bool(ill[first]) else "its records are those of another process"
        raise UserError(
            f"step {-(-iteration // accumulation)}: loss 或梯度不是有限数 / loss or gradient is not finite ({mine}): "
            "降低学习率或检查这些记录，再用 --resume 从上一个检查点继续 / lower lr or check them, then --resume the last checkpoint"
        )


def _gradient_is_finite(runner: Any) -> bool:
    """What mmengine's wrapper last said of the gradient's norm, unless a loss scale is being searched for."""
    if hasattr(runner.optim_wrapper, "loss_scaler") or "train/grad_norm" not in runner.message_hub.log_scalars:
        return True
    return math.isfinite(runner.message_hub.get_scalar("train/grad_norm").current())


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
    """Keeps the random generators' states in the checkpoint, so that a resumed run draws the same dropout.

    Those of every process: each draws its own. Run by another number of processes, the checkpoint is resumed
    without them.
    """

    # Before mmengine's CheckpointHook, which saves on the main process only: the states are gathered before.
    priority = "NORMAL"

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []
        self._restore: list[dict[str, Any]] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Gather the states where a checkpoint may follow, and go on from them.

        A validation would draw numbers of its own, which a run resumed from the checkpoint before it does not draw.
        """
        if state_is_kept(runner):
            self._states = self._restore = all_gather_object(random_state())

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add the states to what is saved."""
        checkpoint["random_states"] = self._states

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Remember the states of the checkpoint; they are set when training begins."""
        states = checkpoint.get("random_states") if runner._resume else None
        self._restore = states if states and len(states) == get_world_size() else []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Set the states right before the first resumed step: what came before has drawn numbers of its own."""
        if self._restore:
            set_random_state(self._restore[get_rank()])
            self._restore = []


def random_state() -> dict[str, Any]:
    """The states of this process's generators; only types that ``torch.load(weights_only=True)`` accepts."""
    name, keys, position, has_gauss, cached = numpy.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [str(name), torch.from_numpy(numpy.asarray(keys, dtype=numpy.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set this process's generators to what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    name, keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
