"""Next-token pretraining of the tiny base on plain text, in plain PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huanhuan.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PretrainSettings:
    """How long and how fast to pretrain; the defaults take about a minute on two CPU cores."""

    steps: int = 160
    batch: int = 8
    length: int = 128  # tokens of one window
    lr: float = 2e-3
    warmup: int = 20  # steps
    weight_decay: float = 0.01
    seed: int = 0


def token_stream(tokenizer: Any, documents: Sequence[str]) -> list[int]:
    """The documents one after another, each between the tokenizer's begin and end tokens."""
    stream: list[int] = []
    for document in documents:
        ids = tokenizer.encode(document, add_special_tokens=False)
        stream += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return stream


def lr_factor(step: int, settings: PretrainSettings) -> float:
    """Share of the full learning rate at 0-based ``step``: a linear warm-up, then a linear way down to a tenth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 1 - 0.9 * done


def pretrain(
    model: PreTrainedModel,
    tokenizer: Any,
    documents: Sequence[str],
    settings: PretrainSettings,
    *,
    progress: bool = False,
) -> list[float]:
    """Train every weight of ``model`` in place on random windows of ``documents``; return the loss of each step.

    A loss is in nats per token. With the same seed and the same number of threads the result is the same.

    Raises: UserError if ``documents`` hold no text.
    """
    import torch
    from tqdm import tqdm

    if not any(document.strip() for document in documents):
        raise UserError("没有可供预训练的文字 / no text to pretrain on: check the script")
    stream = torch.tensor(token_stream(tokenizer, documents))
    length = min(settings.length, len(stream) - 1)
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = _optimiser(model, settings)
    losses: list[float] = []
    model.train()
    # A log file gets a line every few seconds, a terminal a bar that moves.
    every = 0.1 if sys.stderr.isatty() else 5.0
    bar = tqdm(range(settings.steps), desc="预训练 / pretraining", unit="step", mininterval=every, disable=not progress)
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * lr_factor(step, settings)
        starts = torch.randint(len(stream) - length, (settings.batch,), generator=generator)
        windows = torch.stack([stream[start : start + length + 1] for start in starts.tolist()])
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    return losses


def _optimiser(model: PreTrainedModel, settings: PretrainSettings) -> torch.optim.Optimizer:
    """AdamW; norms and the embedding are not decayed: rows of tokens that do not occur would shrink to nothing."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and "tok_embeddings" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "tok_embeddings" in name]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95))
