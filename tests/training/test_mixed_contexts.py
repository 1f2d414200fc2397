"""Exchanges dealt anew: none lost, none doubled, no system prompt on the wrong one."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from huanhuan.training.data import DialogueDataset, encode_record
from huanhuan.training.mixed_contexts import MixedContexts, deal


def record(system: str, *pairs: tuple[str, str]) -> dict[str, Any]:
    rows: list[dict[str, str]] = [{"input": asked, "output": said} for asked, said in pairs]
    rows[0] = {"system": system, **rows[0]}
    return {"conversation": rows}


RECORDS = st.lists(
    st.builds(
        lambda system, numbers: record(system, *((f"问{number}", f"答{number}") for number in numbers)),
        st.sampled_from(["", "甲", "乙"]),
        st.lists(st.integers(0, 99), min_size=1, max_size=6),
    ),
    max_size=6,
)


def said_under(records: list[dict[str, Any]]) -> Counter[tuple[str, str, str]]:
    """Every exchange with the system prompt of its record."""
    return Counter(
        (each["conversation"][0].get("system", ""), row["input"], row["output"])
        for each in records
        for row in each["conversation"]
    )


@given(RECORDS, st.integers(1, 4), st.integers())
def test_every_exchange_is_dealt_once_under_its_own_system_prompt(
    records: list[dict[str, Any]], longest: int, seed: int
) -> None:
    pairs = list(deal(dict(enumerate(records)), longest, random.Random(seed)))
    dealt = [each for each, _ in pairs]
    assert said_under(dealt) == said_under(records)
    for each, numbers in pairs:
        rows = [(row["input"], row["output"]) for row in each["conversation"]]
        assert all(
            row in [(one["input"], one["output"]) for one in records[number]["conversation"]]
            for row, number in zip(rows, numbers, strict=True)
        )
    assert all(1 <= len(each["conversation"]) <= longest for each in dealt)
    assert not any("system" in row for each in dealt for row in each["conversation"][1:])


def test_dialogues_are_those_dealt_and_the_same_again(tmp_path: Path, tiny_tokenizer: Any) -> None:
    records = [record("甲", *((f"问{n}", f"答{n}") for n in range(k, k + 4))) for k in (0, 4, 8)]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), "utf-8")
    one, again = (MixedContexts(str(file), tiny_tokenizer, 512, copies=2, longest=3) for _ in range(2))
    generator = random.Random(0)
    dealt = [each for _ in range(2) for each in deal(dict(enumerate(records, 1)), 3, generator)]
    expected = [encode_record(each, tiny_tokenizer)["input_ids"] for each, _ in dealt]
    assert [one[index][0].input_ids for index in range(len(one))] == expected
    assert [each.input_ids for each in again.dialogues] == expected
    assert one.dialogues[0].source == f"train.jsonl:{','.join(map(str, dealt[0][1]))}"
    # The replies are supervised as often as in two plain epochs.
    plain = DialogueDataset(str(file), tiny_tokenizer, 512)
    assert sum(each.supervised for each in one.dialogues) == 2 * sum(each.supervised for each in plain.dialogues)
