"""What the model sees, against XTuner's encoder, the chat page's encoder and the training code."""

from pathlib import Path
from typing import Any

import pytest

from huanhuan.dataset.check import Checked, check_files
from huanhuan.dataset.formats import write_records
from huanhuan.dataset.inspect_tokens import (
    MARK,
    describe,
    encode_record,
    exchanges_that_fit,
    find_tokenizer,
    load_tokenizer,
    page_difference,
    show_records,
)
from huanhuan.dataset.records import Conversation, Exchange
from huanhuan.errors import UserError

RECORD = Conversation(
    (Exchange("你是谁？", "我是园子里种花的人。"), Exchange("  从哪里来？\n", "\n天晴了<|im_end|>再说吧。")),
    system="你是丙。",
)


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    path = tmp_path / "train.jsonl"
    path.write_text(write_records([RECORD]), "utf-8")
    return check_files([path])[0]


def test_tokens_and_supervision_of_a_conversation(tiny_tokenizer: Any):
    encoded = encode_record(RECORD.to_json(), tiny_tokenizer)
    assert tiny_tokenizer.decode(encoded.ids, spaces_between_special_tokens=False) == (
        "<s><|im_start|>system\n你是丙。<|im_end|>\n"
        "<|im_start|>user\n你是谁？<|im_end|>\n<|im_start|>assistant\n我是园子里种花的人。<|im_end|>\n"
        "<|im_start|>user\n从哪里来？<|im_end|>\n<|im_start|>assistant\n天晴了 再说吧。<|im_end|>\n"
    )
    learned = [token for token, taught in zip(encoded.ids, encoded.supervised, strict=True) if taught]
    assert (
        tiny_tokenizer.decode(learned, spaces_between_special_tokens=False)
        == "我是园子里种花的人。<|im_end|>天晴了 再说吧。<|im_end|>"
    )
    assert encoded.labels == [
        token if taught else -100 for token, taught in zip(encoded.ids, encoded.supervised, strict=True)
    ]
    assert encoded.pieces[:4] == ["<s>", "<|im_start|>", "system", "\\n"]


def test_it_is_what_training_feeds_and_the_page_too(tiny_tokenizer: Any):
    from huanhuan.training import data

    record = RECORD.to_json()
    encoded = encode_record(record, tiny_tokenizer)
    assert data.encode_record(record, tiny_tokenizer) == {"input_ids": encoded.ids, "labels": encoded.labels}
    assert page_difference(record, encoded, tiny_tokenizer) is None


def test_what_fits_is_what_training_keeps(tiny_tokenizer: Any):
    from huanhuan.training.data import fit_record

    record = RECORD.to_json()
    total = len(encode_record(record, tiny_tokenizer).ids)
    kept = []
    for limit in (1, 20, total - 1, total, total + 1):
        kept.append(exchanges_that_fit(record, tiny_tokenizer, limit))
        assert kept[-1] == 2 - fit_record(record, tiny_tokenizer, limit)[1]
    assert kept[0] == 0
    assert kept[2:] == [1, 2, 2]


def test_every_token_has_a_line_and_supervised_ones_a_mark(tiny_tokenizer: Any):
    encoded = encode_record(RECORD.to_json(), tiny_tokenizer)
    head, *lines = describe(encoded)
    assert f"{len(encoded.ids)} tokens, {sum(encoded.supervised)} supervised" in head
    assert len(lines) == len(encoded.ids)
    for place, line in enumerate(lines):
        assert (MARK in line) == encoded.supervised[place]
        assert ("\x1b[" in line) == encoded.supervised[place]
        plain = line.replace("\x1b[32m\x1b[1m", "").replace("\x1b[0m", "").replace(MARK, " ").split(maxsplit=2)
        assert plain == [str(place), str(encoded.ids[place]), encoded.pieces[place]]


def test_show_says_how_much_fits(checked, tiny_base):
    lines = list(show_records(checked, [1], tiny_base, max_length=10))
    assert "record 1" in lines[0]
    assert lines[-1].startswith("10 个 token 放得下 2 个来回中的 0 个")


def test_a_tokenizer_that_the_page_would_use_differently_is_an_error(checked, tiny_base, monkeypatch):
    monkeypatch.setattr("huanhuan.dataset.inspect_tokens.encode", lambda *_, **__: [1, 2])
    with pytest.raises(UserError, match="从 token 1 起与网页的编码不同"):
        list(show_records(checked, [1], tiny_base))


def test_a_missing_record_is_told_before_a_tokenizer_is_loaded(checked, tmp_path):
    with pytest.raises(UserError, match="没有第 2 条"):
        list(show_records(checked, [1, 2], tmp_path / "none"))


def test_finding_a_tokenizer(tmp_path, monkeypatch):
    monkeypatch.delenv("HUANHUAN_BASE", raising=False)
    with pytest.raises(UserError, match="--tokenizer"):
        find_tokenizer(tmp_path)
    for name in ("another", "empty", "tiny-internlm2"):
        (tmp_path / name).mkdir()
    (tmp_path / "another/tokenizer.model").touch()
    assert find_tokenizer(tmp_path) == tmp_path / "another"
    (tmp_path / "tiny-internlm2/tokenizer_config.json").touch()
    assert find_tokenizer(tmp_path) == tmp_path / "tiny-internlm2"
    monkeypatch.setenv("HUANHUAN_BASE", str(tmp_path / "base"))
    assert find_tokenizer(tmp_path) == tmp_path / "base"


def test_a_folder_without_a_working_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UserError, match="没有分词器文件"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="加载失败") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in caught.value.problems[0]
