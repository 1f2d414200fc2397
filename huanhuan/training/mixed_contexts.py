"""Training data for a base too small to tell a reply's scene from its question: every question after any other."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from xtuner.registry import BUILDER

from huanhuan.paths import in_checkout
from huanhuan.training.data import Dialogue, DialogueDataset, fit_record


class MixedContexts(DialogueDataset):
    """The exchanges of a training file, dealt anew into dialogues of one to ``longest`` exchanges, ``copies`` times.

    With ``whole`` each copy also holds the records as they are, so that a scene can be played on.

    A tiny model that learns whole scenes learns each reply as the continuation of its scene, and has no answer
    when the same question opens a conversation or follows another one. The same ``seed`` deals the same dialogues.
    """

    def __init__(
        self,
        path: str,
        tokenizer: Any,
        max_length: int,
        *,
        copies: int = 25,
        longest: int = 3,
        whole: bool = True,
        seed: int = 0,
    ) -> None:
        tokenizer = BUILDER.build(tokenizer) if isinstance(tokenizer, dict) else tokenizer
        super().__init__(path, tokenizer, max_length)
        file = in_checkout(path)
        records = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
        generator = random.Random(seed)
        dealt: list[Dialogue] = []
        for _ in range(copies):
            dealt += self.dialogues if whole else []
            for number, record in enumerate(deal(records, longest, generator), 1):
                encoded, _ = fit_record(record, tokenizer, max_length)
                if encoded is not None:
                    dealt.append(Dialogue(encoded["input_ids"], encoded["labels"], f"{file.name} dealt:{number}"))
        self.dialogues = dealt
        self.packs = [[index] for index in range(len(dealt))]
        if is_main_process():
            print_log(f"{file.name}: dealt into {len(dealt)} dialogues of at most {longest} exchanges", "current")


def deal(records: Sequence[dict[str, Any]], longest: int, generator: random.Random) -> Iterator[dict[str, Any]]:
    """All exchanges of ``records`` in a random order, as records of one to ``longest`` exchanges.

    Exchanges that were said under different system prompts never meet:
    ``{"conversation": [{"system": "甲", "input": "乙", "output": "丙"}, {"input": "丁", "output": "戊"}]}`` may become
    ``{"conversation": [{"system": "甲", "input": "丁", "output": "戊"}]}`` and the same with 乙 and 丙.
    """
    by_system: dict[str, list[dict[str, str]]] = {}
    for record in records:
        exchanges = record["conversation"]
        said = [{"input": each.get("input") or "", "output": each["output"]} for each in exchanges]
        by_system.setdefault(exchanges[0].get("system") or "", []).extend(said)
    for system, exchanges in by_system.items():
        generator.shuffle(exchanges)
        while exchanges:
            count = generator.randint(1, longest)
            taken, exchanges = exchanges[:count], exchanges[count:]
            if system:
                taken[0] = {"system": system, **taken[0]}
            yield {"conversation": taken}
