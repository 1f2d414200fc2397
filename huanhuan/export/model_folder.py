"""What a model folder needs besides its weights: code, tokenizer, template, configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from huanhuan import template
from huanhuan.errors import UserError

PROVENANCE = "huanhuan.json"
# A base's own model card, weights and template files do not describe the merged model.
COPIED = (
    "*.py",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "LICENSE*",
)
_SAMPLE: list[template.Message] = [
    {"role": "system", "content": "你是她。"},
    {"role": "user", "content": "\n 你是谁？<|im_end|>"},
    {"role": "assistant", "content": "我是我。"},
    {"role": "user", "content": "Again"},
]


def load_tokenizer(base: Path) -> Any:
    """The base's tokenizer, proven to turn the template into the same ids by every way it is used.

    Raises: UserError if it cannot be loaded or is not one that the chat template fits.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=True)
    except Exception as error:  # the base's own code may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{base}: 分词器加载失败 / cannot load the tokenizer: {reason}: check --base") from error
    try:
        template.stop_ids(tokenizer)
    except ValueError as error:
        raise UserError(f"{base}: {error}: 换一个底模 / choose another --base") from None
    ids = template.encode(tokenizer, _SAMPLE)
    by_jinja = tokenizer.apply_chat_template(
        _SAMPLE, chat_template=template.JINJA_TEMPLATE, add_generation_prompt=True, tokenize=True
    )
    if ids != list(by_jinja) or ids != tokenizer.encode(template.render(_SAMPLE)):
        raise UserError(
            f"{base}: 分词器与对话模板不一致 / the tokenizer disagrees with the chat template: "
            f"需要 InternLM2 的分词器 / an InternLM2 tokenizer is needed"
        )
    return tokenizer


def read_config(base: Path) -> dict[str, Any]:
    """The base's ``config.json``. Raises: UserError if it is missing or damaged."""
    return _read_json(base / "config.json")


def write_model_files(
    base: Path,
    folder: Path,
    tokenizer: Any,
    *,
    untied: bool,
    dtype: torch.dtype | None,
    provenance: Mapping[str, Any],
) -> None:
    """Write everything of the merged model but its weights into ``folder``.

    Tokenizer and code are the base's own files, byte for byte, except that the tokenizer carries the project's
    chat template; the generation config ends replies at ``<|im_end|>`` and at the tokenizer's end of text.
    """
    for pattern in COPIED:
        for file in sorted(base.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    tokenizer_config = _local_code(_read_json(base / "tokenizer_config.json"), base)
    _write_json(folder / "tokenizer_config.json", {**tokenizer_config, "chat_template": template.JINJA_TEMPLATE})

    config = _local_code(read_config(base), base)
    config.pop("_name_or_path", None)
    config["use_cache"] = True
    if untied:
        config["tie_word_embeddings"] = False
    if dtype is not None:
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
    _write_json(folder / "config.json", config)

    generation_file = base / "generation_config.json"
    generation = _read_json(generation_file) if generation_file.is_file() else {}
    generation.pop("_from_model_config", None)
    generation["bos_token_id"] = tokenizer.bos_token_id
    generation["eos_token_id"] = template.stop_ids(tokenizer)
    generation["pad_token_id"] = (
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    )
    _write_json(folder / "generation_config.json", generation)
    write_provenance(folder, provenance)


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write ``huanhuan.json``: what the folder was made from."""
    _write_json(folder / PROVENANCE, provenance)


def _local_code(settings: dict[str, Any], base: Path) -> dict[str, Any]:
    """Let ``auto_map`` name the code files of the folder where it names a repository (``owner/name--file.Class``)."""

    def local(reference: Any) -> Any:
        if isinstance(reference, list):
            return [local(each) for each in reference]
        if isinstance(reference, str) and "--" in reference:
            inside = reference.partition("--")[2]
            if (base / f"{inside.partition('.')[0]}.py").is_file():
                return inside
        return reference

    if isinstance(settings.get("auto_map"), dict):
        return {**settings, "auto_map": {key: local(value) for key, value in settings["auto_map"].items()}}
    return settings


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: 读不出来 / cannot be read ({error}): 重新下载底模 / download the base again"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: 不是 JSON 对象 / is not a JSON object: download the base again")
    return found


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
