"""The base of the demo: a tiny InternLM2 that has read the training scenes, made once and kept while nothing changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huanhuan.errors import UserError, os_error_line
from huanhuan.files import free_space, new_folder, write_text
from huanhuan.persona import load_persona
from huanhuan.training.pretrain import PretrainSettings
from huanhuan.training.pretrain_text import BaseTexts, read_base_texts

RECEIPT = "tiny_base.json"
# What a complete folder holds at least; the receipt is written last.
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer.model")
NEEDED_BYTES = 64 << 20


@dataclass(frozen=True)
class DemoBaseSettings:
    """Sizes of the demo's base, about 2.8 million weights, and how it is pretrained."""

    vocab_size: int = 3000
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 3
    # The released model's 0.02 is for a width of 4,096; at 192 it makes attention so flat that tuning needs
    # twice the steps before a reply depends on what was said.
    init_std: float = 0.08
    # Two on every machine, so that the same weights come out, and a machine whose container may use fewer
    # cores than it shows is not slowed down by idle threads.
    threads: int = 2
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)


@dataclass(frozen=True)
class DemoBase:
    """A finished base: its folder, its last mean loss in nats per token, and whether it was there already."""

    folder: Path
    loss: float
    kept: bool


def make_demo_base(
    script: Sequence[Path],
    persona_file: Path,
    data: Path,
    out: Path,
    settings: DemoBaseSettings,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> DemoBase:
    """Build and pretrain the demo's base in ``out``; one that is there and made from the same inputs is kept.

    Raises: UserError if an input is missing or wrong, ``out`` holds something that is no such base, or one made from
    other inputs and ``overwrite`` is False.
    """
    persona = load_persona(persona_file)
    texts = read_base_texts(script, data, persona, persona_file)
    made_from = fingerprint(texts, settings)
    receipt = _read_receipt(out)
    if receipt.get("fingerprint") == made_from and all((out / name).is_file() for name in FILES):
        # `make` compares times: after a script was only touched, or code changed that no weight depends on, it would
        # ask for this base at every run. Where the folder may only be read, it does.
        with suppress(OSError):
            os.utime(out / "config.json")
        return DemoBase(out, receipt["loss"], kept=True)
    if receipt and not overwrite:
        raise UserError(
            f"{out}: 是用别的剧本或设置做的 / made from another script or other settings: "
            "加 --overwrite 替换 / pass --overwrite to replace it"
        )
    with new_folder(out, overwrite=overwrite, markers=(RECEIPT,)) as folder:
        _check_space(out)
        try:
            loss = _build(folder, texts, settings, progress=progress)
        except OSError as error:
            advice = "清理磁盘后重试 / free some space and run again"
            raise UserError(os_error_line(out, error, advice)) from error
        content = {"fingerprint": made_from, "loss": round(loss, 4), "settings": asdict(settings)}
        write_text(folder / RECEIPT, json.dumps(content, indent=2) + "\n")
    return DemoBase(out, loss, kept=False)


def fingerprint(texts: BaseTexts, settings: DemoBaseSettings) -> str:
    """A hash of everything the weights depend on: the texts, the settings, the libraries that compute."""
    libraries = {name: version(name) for name in ("torch", "transformers", "sentencepiece")}
    inputs = [texts.scenes, texts.vocabulary, asdict(settings), libraries]
    return hashlib.sha256(json.dumps(inputs, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _read_receipt(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / RECEIPT).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "loss" in content else {}


def _check_space(out: Path) -> None:
    """Refuse before a minute of training what could not be saved after it."""
    free = free_space(out)
    if free < NEEDED_BYTES:
        raise UserError(
            f"{out}: 需要 {NEEDED_BYTES >> 20} MiB 磁盘，剩 {free >> 20} MiB / needs {NEEDED_BYTES >> 20} MiB of disk, "
            f"{free >> 20} MiB are free: 清理后重试 / free some space and run again"
        )


def _build(folder: Path, texts: BaseTexts, settings: DemoBaseSettings, *, progress: bool) -> float:
    """Write the base into ``folder``; return the mean loss of its last 20 steps."""
    import torch
    import transformers

    from huanhuan.training.pretrain import pretrain
    from huanhuan.training.tiny_base import level_chat_markers, random_model, save_base
    from huanhuan.training.tiny_tokenizer import build_tokenizer

    # It has advice for the authors of the modelling code.
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        tokenizer = build_tokenizer(texts.vocabulary, folder, settings.vocab_size)
        model = random_model(
            tokenizer,
            hidden=settings.hidden,
            layers=settings.layers,
            heads=settings.heads,
            kv_heads=settings.kv_heads,
            init_std=settings.init_std,
            seed=settings.pretrain.seed,
        )
        losses = pretrain(model, tokenizer, texts.scenes, settings.pretrain, progress=progress)
    finally:
        torch.set_num_threads(threads)
    level_chat_markers(model, tokenizer)
    save_base(model, folder)
    last = losses[-20:]
    return sum(last) / len(last)
