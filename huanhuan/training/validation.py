"""The validation loop for one process or several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.runner import ValLoop

from huanhuan.training.loss import IGNORE


class EvenBatches:
    """A dataloader that yields equally many batches on every process.

    The held-out records seldom divide by the processes, and repeating some would count them twice; but under
    ZeRO-3 every process takes part in every forward pass. What is missing is filled with batches of which no
    token is supervised.
    """

    def __init__(self, dataloader: Any) -> None:
        self.dataloader, self.dataset = dataloader, dataloader.dataset
        most = torch.tensor(len(dataloader))
        all_reduce(most, "max")
        self._length = int(most)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.dataloader
        for _ in range(self._length - len(self.dataloader)):
            batch = self.dataloader.collate_fn([self.dataset[0]])
            batch["data"]["labels"] = torch.full_like(batch["data"]["labels"], IGNORE)
            yield batch


class EvenValLoop(ValLoop):
    """mmengine's validation loop over :class:`EvenBatches`."""

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, fp16: bool = False) -> None:
        super().__init__(runner, dataloader, evaluator, fp16)
        self.dataloader: Any = EvenBatches(self.dataloader)
