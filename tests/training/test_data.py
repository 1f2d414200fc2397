"""Records to packs: what is learned, what is left out, and where a dialogue begins."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huanhuan.errors import UserError
from huanhuan.training.data import (
    Dialogue,
    DialogueDataset,
    collate_pack,
    count_supervised,
    encode_record,
    fit_record,
)
from huanhuan.training.packing import pack_best_fit

RECORD = {
    "conversation": [
        {"system": "你是园丁", "input": "你是谁？", "output": "我是种花的人。"},
        {"input": "下雨了", "output": "那就等天晴了再说吧。"},
    ]
}


def test_only_the_characters_replies_and_their_end_are_learned(tiny_tokenizer: Any) -> None:
    encoded = encode_record(json.loads(json.dumps(RECORD)), tiny_tokenizer)
    text = tiny_tokenizer.decode(encoded["input_ids"])
    assert text.endswith("那就等天晴了再说吧。<|im_end|>\n")
    learned = [token for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True) if label != -100]
    assert learned == [label for label in encoded["labels"] if label != -100]
    assert tiny_tokenizer.decode(learned) == "我是种花的人。<|im_end|>那就等天晴了再说吧。<|im_end|>"


def test_a_long_record_loses_whole_exchanges_from_its_end(tiny_tokenizer: Any) -> None:
    whole, dropped = fit_record(json.loads(json.dumps(RECORD)), tiny_tokenizer, 1000)
    assert whole is not None and dropped == 0
    shorter, dropped = fit_record(json.loads(json.dumps(RECORD)), tiny_tokenizer, len(whole["input_ids"]) - 1)
    assert shorter is not None and dropped == 1
    assert shorter["input_ids"] == whole["input_ids"][: len(shorter["input_ids"])]
    assert tiny_tokenizer.decode(shorter["input_ids"]).endswith("我是种花的人。<|im_end|>\n")
    assert fit_record(json.loads(json.dumps(RECORD)), tiny_tokenizer, 3) == (None, 2)


@given(st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_loses_nothing_and_leaves_no_two_packs_that_fit_into_one(lengths: list[int]) -> None:
    bins = pack_best_fit(lengths, 50)
    assert sorted(index for each in bins for index in each) == list(range(len(lengths)))
    levels = [sum(lengths[index] for index in each) for each in bins]
    assert all(level <= 50 for level in levels)
    smallest = sorted(levels)[:2]
    assert len(smallest) < 2 or sum(smallest) > 50


dialogue = st.integers(1, 30).flatmap(
    lambda length: st.lists(st.booleans(), min_size=length, max_size=length).map(
        lambda learned: Dialogue(
            list(range(10, 10 + length)),
            [10 + at if each else -100 for at, each in enumerate(learned)],
            f"r:{length}",
        )
    )
)


@given(st.lists(st.lists(dialogue, min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 40))
def test_a_row_is_its_dialogues_one_after_another(items: list[list[Dialogue]], padding: int) -> None:
    dialogues = [each for item in items for each in item]
    tokens = sum(len(each.input_ids) for each in dialogues)
    pack = collate_pack(items, pad_to=tokens + padding)
    data = pack["data"]
    assert pack["data_samples"] == [each.source for each in dialogues]
    assert data["tokens"] == tokens
    assert data["input_ids"].shape == data["labels"].shape == data["position_ids"].shape == (1, tokens + padding)
    starts = data["starts"].tolist()
    spans = list(itertools.pairwise(starts))
    assert (starts[0], starts[-1]) == (0, tokens + padding)
    assert all(0 < end - start <= data["longest"] for start, end in spans)
    for (start, end), each in zip(spans, dialogues, strict=False):
        assert data["input_ids"][0, start:end].tolist() == each.input_ids
        assert data["labels"][0, start:end].tolist() == each.labels
    for start, end in spans:
        assert data["position_ids"][0, start:end].tolist() == list(range(end - start))
    assert count_supervised(pack) == sum(each.supervised for each in dialogues)


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), "utf-8")
    return str(path)


def test_a_file_becomes_packs(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write(tmp_path / "train.jsonl", [RECORD] * 5)
    length = len(encode_record(json.loads(json.dumps(RECORD)), tiny_tokenizer)["input_ids"])
    dataset = DialogueDataset(path, tiny_tokenizer, max_length=length, pack_length=2 * length + 1)
    assert [len(dataset[index]) for index in range(len(dataset))] == [2, 2, 1]
    assert {each.source for index in range(len(dataset)) for each in dataset[index]} == {
        f"train.jsonl:{number}" for number in range(1, 6)
    }
    assert len(DialogueDataset(path, tiny_tokenizer, max_length=length)) == 5


def test_what_cannot_be_packed_is_told(tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = write(tmp_path / "train.jsonl", [RECORD])
    with pytest.raises(UserError, match="pack_length 10 < max_length 20"):
        DialogueDataset(path, tiny_tokenizer, max_length=20, pack_length=10)
    with pytest.raises(UserError, match="raise max_length"):
        DialogueDataset(path, tiny_tokenizer, max_length=3)
