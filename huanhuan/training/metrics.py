"""Held-out loss and perplexity during training, as an mmengine metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric


class Perplexity(BaseMetric):
    """Mean negative log-likelihood of the character's held-out replies, and its exponential.

    Logged as ``held_out/loss`` (nats per supervised token) and ``held_out/perplexity``.
    """

    default_prefix = "held_out"

    def __init__(self, **options: Any) -> None:
        # By default mmengine collects the results through files in the current folder, which two machines do not share.
        super().__init__(**{"collect_device": "gpu", **options})

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Remember what ``PackedFinetune.predict`` returned for a batch."""
        self.results.extend(data_samples)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Two packs of 10 and 30 tokens with summed losses 20 and 40 give loss 1.5 and perplexity e^1.5."""
        tokens = sum(result["tokens"] for result in results)
        loss = sum(result["negative_log_likelihood"] for result in results) / max(tokens, 1)
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
