"""Lengths in the tokens of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huanhuan.errors import UserError


def token_counter(folder: Path) -> Callable[[str], int]:
    """A function that counts the tokens of a text with the tokenizer of a model ``folder``, control tokens excluded.

    Raises: UserError if the folder holds no tokenizer that Transformers can load.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: 找不到模型文件夹 / no such folder: give --tokenizer the folder of a model")
    try:
        # Loaded only here: the import takes seconds.
        from transformers import AutoTokenizer

        # InternLM2's tokenizer is code that comes with the model; the folder is the user's own.
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: 读不了分词器 / cannot load its tokenizer: {reason}: give --tokenizer the folder of a model"
        ) from error

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    return count
