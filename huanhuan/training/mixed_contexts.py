"""Training data for a base too small to tell a question from its scene: every question after any other."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import print_log

from huanhuan.paths import in_checkout
from huanhuan.training.data import Dialogue, DialogueDataset, fit_record


class MixedContexts(DialogueDataset):
    """The exchanges of a training file, dealt anew into dialogues of one to ``longest`` exchanges, ``copies`` times.

    A tiny model that learns whole scenes learns each reply as the continuation of its scene, and has no answer when
    the same question opens a conversation or follows another one. Who asked what, and what was answered, stays
    together; only what was said before changes. The same ``seed`` deals the same dialogues.
    """

    def __init__(self, path: str, tokenizer: Any, max_length: int, *, copies: int, longest: int, seed: int = 0) -> None:
        super().__init__(path, tokenizer, max_length)
        file = in_checkout(path)
        lines = enumerate(file.read_text("utf-8").splitlines(), 1)
        records = {number: json.loads(line) for number, line in lines if line.strip()}
        generator = random.Random(seed)
        self.dialogues = []
        for _ in range(copies):
            for record, numbers in deal(records, longest, generator):
                encoded, _ = fit_record(record, self.tokenizer, max_length)
                if encoded is not None:
                    source = f"{file.name}:{','.join(map(str, numbers))}"
                    self.dialogues.append(Dialogue(encoded["input_ids"], encoded["labels"], source))
        self.packs = [[index] for index in range(len(self.dialogues))]
        if is_main_process():
            print_log(
                f"{file.name}: dealt into {len(self.dialogues)} dialogues of at most {longest} exchanges", "current"
            )


def deal(
    records: Mapping[int, dict[str, Any]], longest: int, generator: random.Random
) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """All exchanges of numbered ``records`` in a random order, as records of one to ``longest`` exchanges.

    Each comes with the number of the record that each of its exchanges is from. Exchanges that were said under
    different system prompts never meet:
    ``{7: {"conversation": [{"system": "甲", "input": "乙", "output": "丙"}, {"input": "丁", "output": "戊"}]}}`` may
    become ``{"conversation": [{"system": "甲", "input": "丁", "output": "戊"}]}, [7]`` and the same with 乙 and 丙.
    """
    by_system: dict[str, list[tuple[dict[str, str], int]]] = {}
    for number, record in records.items():
        exchanges = record["conversation"]
        said = [({"input": each.get("input") or "", "output": each["output"]}, number) for each in exchanges]
        by_system.setdefault(exchanges[0].get("system") or "", []).extend(said)
    for system, said in by_system.items():
        generator.shuffle(said)
        while said:
            count = generator.randint(1, longest)
            taken, said = said[:count], said[count:]
            conversation = [exchange for exchange, _ in taken]
            if system:
                conversation[0] = {"system": system, **conversation[0]}
            yield {"conversation": conversation}, [number for _, number in taken]
