"""What the model sees of a training record, token by token.

The ids come from XTuner's own encoder with the project's template, which is what training runs. XTuner imports
torch, so it is imported only when a record is encoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from huanhuan.dataset.check import Checked
from huanhuan.dataset.jsonlines import printable
from huanhuan.errors import UserError
from huanhuan.paths import MODELS
from huanhuan.template import XTUNER_TEMPLATE, clean_record, encode, record_messages

# Tried first, in this order; then any other folder of models/ that holds a tokenizer.
USUAL = ("huanhuan", "internlm2-chat-7b", "internlm2-chat-1_8b", "huanhuan-demo", "tiny-internlm2")
# What marks a supervised token where there is no colour.
MARK = "●"
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Encoded:
    """A record as XTuner feeds it: ``ids`` and ``labels`` are of one length, -100 where nothing is learned."""

    ids: list[int]
    labels: list[int]
    pieces: list[str]
    """The token of each id as the vocabulary spells it, made printable."""

    @property
    def supervised(self) -> list[bool]:
        """Whether the model learns to predict each token."""
        return [label != IGNORED_LABEL for label in self.labels]


def show_records(
    checked: Checked, numbers: Iterable[int], folder: Path | None = None, max_length: int | None = None
) -> Iterator[str]:
    """Lines for a terminal that show records of a sound file token by token.

    ``numbers``: 1-based; ``folder``: of the tokenizer, as :func:`load_tokenizer`; ``max_length``: the tokens that
    the recipe allows a dialogue, to say how much of it training keeps.

    Raises: UserError if a record or the tokenizer is not there, or if the chat page would feed other tokens.
    """
    records = [(number, checked.record(number)) for number in numbers]
    tokenizer = load_tokenizer(folder)
    for number, record in records:
        encoded = encode_record(record, tokenizer)
        yield click.style(f"第 {number} 条 / record {number}", bold=True)
        yield from describe(encoded)
        if max_length:
            kept, total = exchanges_that_fit(record, tokenizer, max_length), len(record["conversation"])
            yield (
                f"{max_length} 个 token 放得下 {total} 个来回中的 {kept} 个 / {kept} of {total} exchanges fit into "
                f"{max_length} tokens"
            )
        place = page_difference(record, encoded, tokenizer)
        if place is not None:
            raise UserError(
                f"{checked.validation.path}: 第 {number} 条从 token {place} 起与网页的编码不同 / record {number}: the chat "
                f"page feeds other tokens from position {place} on: 换用 InternLM2 的分词器 / use an InternLM2 tokenizer"
            )


def load_tokenizer(folder: Path | None = None) -> Any:
    """The tokenizer in ``folder``; by default that of HUANHUAN_BASE or of a model in ``models/``.

    Raises: UserError if there is none or it does not load.
    """
    from transformers import AutoTokenizer

    folder = find_tokenizer() if folder is None else folder
    if not _holds_tokenizer(folder):
        raise UserError(
            f"{folder}: 没有分词器文件 / holds no tokenizer: 指向模型目录 / name a model folder with --tokenizer"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    except Exception as error:  # a broken tokenizer file raises whatever its parser raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: 分词器加载失败 / the tokenizer does not load: {type(error).__name__}: {reason}: "
            "重新下载或换一个 --tokenizer / download it again or give another --tokenizer"
        ) from error


def find_tokenizer(models: Path = MODELS) -> Path:
    """The folder of a tokenizer on this machine.

    Raises: UserError if there is none.
    """
    named = os.environ.get("HUANHUAN_BASE")
    if named:
        return Path(named).expanduser()
    others = sorted(folder for folder in models.glob("*") if folder.is_dir())
    for folder in (*(models / name for name in USUAL), *others):
        if _holds_tokenizer(folder):
            return folder
    raise UserError(
        "models/: 没有带分词器的模型 / no model with a tokenizer: 加 --tokenizer 目录，或先运行 make base / "
        "pass --tokenizer FOLDER, or run make base first"
    )


def encode_record(record: Mapping[str, Any], tokenizer: Any) -> Encoded:
    """Encode a record exactly as training does.

    ``{"conversation": [{"input": "乙", "output": "丙"}]}`` becomes
    ``<s><|im_start|>user\\n乙<|im_end|>\\n<|im_start|>assistant\\n丙<|im_end|>\\n`` with ``丙<|im_end|>`` supervised.

    Raises: UserError if XTuner is not installed.
    """
    try:
        from xtuner.dataset.map_fns import template_map_fn
        from xtuner.dataset.utils import encode_fn
    except ImportError as error:
        raise UserError(
            f"没有安装 XTuner（{error.name}）/ XTuner is not installed ({error.name}): 运行 make setup / run make setup"
        ) from error
    templated = template_map_fn(clean_record(record), XTUNER_TEMPLATE)
    encoded = encode_fn(templated, tokenizer, max_length=2**31)
    pieces = [_piece(tokenizer, token) for token in encoded["input_ids"]]
    return Encoded(encoded["input_ids"], encoded["labels"], pieces)


def page_difference(record: Mapping[str, Any], encoded: Encoded, tokenizer: Any) -> int | None:
    """The first position at which the chat page would feed another token for the same conversation; None if none."""
    page = encode(tokenizer, record_messages(clean_record(record)), add_generation_prompt=False)
    if page == encoded.ids:
        return None
    pairs = zip(page, encoded.ids, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(page), len(encoded.ids)))


def exchanges_that_fit(record: Mapping[str, Any], tokenizer: Any, max_length: int) -> int:
    """How many exchanges of a record training keeps when a dialogue may have ``max_length`` tokens."""
    exchanges = record["conversation"]
    fitting = 0
    while fitting < len(exchanges):
        encoded = encode_record({"conversation": exchanges[: fitting + 1]}, tokenizer)
        if len(encoded.ids) > max_length:
            break
        fitting += 1
    return fitting


def describe(encoded: Encoded) -> Iterator[str]:
    """Lines for a terminal: one a token with its position, id and text, supervised ones marked and coloured.

    Where colours are stripped (a file, a pipe) the mark remains.
    """
    total, learned = len(encoded.ids), sum(encoded.supervised)
    yield (
        f"{total} 个 token，其中 {learned} 个计入损失（{MARK}）/ {total} tokens, {learned} supervised ({MARK}), "
        f"{learned / max(1, total):.1%}"
    )
    wide = len(str(max(encoded.ids, default=0)))
    for place, (token, piece, taught) in enumerate(zip(encoded.ids, encoded.pieces, encoded.supervised, strict=True)):
        line = f"{place:>6}  {token:>{wide}}  {MARK if taught else ' '}  {piece}"
        yield click.style(line, fg="green", bold=True) if taught else line


def _piece(tokenizer: Any, token: int) -> str:
    piece = str(tokenizer.convert_ids_to_tokens(token))
    return printable(piece.replace("\n", "\\n"))


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.model", "tokenizer.json"))
