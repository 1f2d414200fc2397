"""Training data as packs: whole dialogues, encoded by XTuner, one after another in a row of tokens."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import Dataset
from xtuner.dataset.map_fns import template_map_fn
from xtuner.dataset.utils import encode_fn
from xtuner.registry import BUILDER

from huanhuan.dataset.validate import validate_file
from huanhuan.errors import UserError
from huanhuan.paths import in_checkout
from huanhuan.template import XTUNER_TEMPLATE, clean_record
from huanhuan.training.loss import IGNORE
from huanhuan.training.packing import pack_best_fit


@dataclass(frozen=True)
class Dialogue:
    """One encoded record: token ids, labels (-100 where nothing is learned), and where it came from."""

    input_ids: list[int]
    labels: list[int]
    source: str

    @property
    def supervised(self) -> int:
        """Number of tokens that are learned."""
        return sum(label != IGNORE for label in self.labels)


def encode_record(record: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """Ids and labels of a record, by XTuner's own encoder and the one template.

    ``{"conversation": [{"input": "乙", "output": "丙"}]}`` becomes
    ``<s><|im_start|>user\\n乙<|im_end|>\\n<|im_start|>assistant\\n丙<|im_end|>\\n`` with ``丙<|im_end|>`` supervised.
    """
    templated = template_map_fn(clean_record(record), XTUNER_TEMPLATE)
    return encode_fn(templated, tokenizer, max_length=2**31)


def fit_record(record: dict[str, Any], tokenizer: Any, max_length: int) -> tuple[dict[str, list[int]] | None, int]:
    """Encode a record in at most ``max_length`` tokens, dropping exchanges at its end; also how many were dropped.

    Cutting the tokens instead would teach half a reply. None if not even the first exchange fits.
    """
    exchanges = record["conversation"]
    for kept in range(len(exchanges), 0, -1):
        encoded = encode_record({"conversation": exchanges[:kept]}, tokenizer)
        if len(encoded["input_ids"]) <= max_length:
            return encoded, len(exchanges) - kept
    return None, len(exchanges)


class DialogueDataset(Dataset[list[Dialogue]]):
    """A training file as packs of dialogues.

    ``path``: JSON lines, relative paths below the checkout; ``tokenizer``: a built tokenizer or its config;
    ``max_length``: tokens a dialogue may have; ``pack_length``: tokens a pack may have, or None for one
    dialogue per item, which a batch size then joins.

    Raises: UserError if the file breaks the contract or holds no dialogue that fits.
    """

    def __init__(self, path: str, tokenizer: Any, max_length: int, pack_length: int | None = None) -> None:
        file = in_checkout(path)
        if pack_length is not None and pack_length < max_length:
            raise UserError(f"pack_length {pack_length} < max_length {max_length}: 调大前者 / raise the former")
        validate_file(file).raise_if_errors()
        self.tokenizer: Any = BUILDER.build(tokenizer) if isinstance(tokenizer, dict) else tokenizer
        self.max_length, self.pack_length = max_length, pack_length
        self.dialogues = _encode_file(file, self.tokenizer, max_length)
        lengths = [len(each.input_ids) for each in self.dialogues]
        self.packs = (
            [[index] for index in range(len(lengths))] if pack_length is None else pack_best_fit(lengths, pack_length)
        )
        if is_main_process():
            capacity = len(self.packs) * pack_length if pack_length else sum(lengths)
            supervised = sum(each.supervised for each in self.dialogues)
            print_log(
                f"{file.name}: {len(lengths)} dialogues, {sum(lengths)} tokens, "
                f"{supervised / sum(lengths):.1%} supervised, {len(self.packs)} packs, "
                f"{1 - sum(lengths) / capacity:.1%} padding",
                "current",
            )

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> list[Dialogue]:
        return [self.dialogues[each] for each in self.packs[index]]


def _encode_file(file: Path, tokenizer: Any, max_length: int) -> list[Dialogue]:
    dialogues: list[Dialogue] = []
    dropped = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            encoded, lost = fit_record(json.loads(line), tokenizer, max_length)
            dropped += lost
            if encoded is not None and any(label != IGNORE for label in encoded["labels"]):
                dialogues.append(Dialogue(encoded["input_ids"], encoded["labels"], f"{file.name}:{number}"))
    if not dialogues:
        raise UserError(f"{file}: 没有一条对话短于 {max_length} 个 token / no dialogue fits: raise max_length")
    if dropped:
        print_log(
            f"{file.name}: {dropped} exchanges do not fit into max_length={max_length} and are left out", "current"
        )
    return dialogues


def collate_pack(items: Sequence[list[Dialogue]], pad_to: int | None = None) -> dict[str, Any]:
    """Join dialogues into one row: what :class:`huanhuan.training.model.PackedFinetune` takes.

    ``input_ids``, ``labels``, ``position_ids``: int64 ``(1, length)``, positions restarting with each dialogue;
    ``starts``: int32 ``(documents + 1,)``; ``longest``: tokens of the longest dialogue; ``tokens``: without padding.
    ``data_samples`` names where each dialogue came from.
    With ``pad_to`` the row is filled to that many tokens, as compiled layers want it, by dialogues of which
    nothing is learned, none longer than the longest that is.
    """
    dialogues = [dialogue for item in items for dialogue in item]
    ids = [token for dialogue in dialogues for token in dialogue.input_ids]
    labels = [label for dialogue in dialogues for label in dialogue.labels]
    lengths = [len(dialogue.input_ids) for dialogue in dialogues]
    tokens = len(ids)
    longest = max(lengths)
    while pad_to is not None and len(ids) < pad_to:
        lengths.append(min(pad_to - len(ids), longest))
        labels += [IGNORE] * lengths[-1]
        ids += [0] * lengths[-1]
    starts = [0, *itertools.accumulate(lengths)]
    positions = torch.cat([torch.arange(length) for length in lengths])
    data: dict[str, Tensor | int | list[str]] = {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": positions.unsqueeze(0),
        "starts": torch.tensor(starts, dtype=torch.int32),
        "longest": longest,
        "tokens": tokens,
    }
    return {"data": data, "data_samples": [dialogue.source for dialogue in dialogues]}


def count_supervised(batch: dict[str, Any]) -> int:
    """Supervised tokens of a collated pack."""
    return int((batch["data"]["labels"] != IGNORE).sum())
