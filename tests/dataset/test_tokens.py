"""Lengths and budgets in tokens, with a tokenizer made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from huanhuan.dataset.command import run
from huanhuan.dataset.report import Report


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tokenizer gives each character two tokens."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    plain.normalizer = normalizers.Replace(Regex("(.)"), "xx")  # pyright: ignore[reportAttributeAccessIssue]
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    folder = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(str(folder))
    return folder


def test_lengths_and_budget_in_tokens(tokenizer: Path, tmp_path: Path) -> None:
    lines = "".join(f"皇帝：问{n}。\n甄嬛：答{n}。\n" for n in "一二三四五六")
    (tmp_path / "a.txt").write_text(lines, "utf-8")
    # An exchange is six characters, twelve tokens, and twelve more of the template: two of them fit.
    run([tmp_path / "a.txt"], tmp_path / "out", character="甄嬛", tokenizer=tokenizer, budget_tokens=50, val_share=0.0)
    records = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text("utf-8").splitlines()]
    assert [len(record["conversation"]) for record in records] == [2, 2, 2]
    report = Report.from_json((tmp_path / "out/report.json").read_text("utf-8"))
    tokens = report.lengths["reply_tokens"]
    assert (tokens.unit, tokens.shortest, tokens.longest, tokens.total) == ("tokens", 6, 6, 6)
    assert report.lengths["record_tokens"].median == 24
    assert report.lengths["record"].median == 12
