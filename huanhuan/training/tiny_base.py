"""A small InternLM2 of the real architecture, built from nothing: the base of the demo and of the tests.

Its modelling code is XTuner's copy of InternLM2's, saved into the model's folder as the released weights have
it, so whatever loads the released model loads this one, and nothing is downloaded.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huanhuan.template import END, START, stop_ids
from huanhuan.training.tiny_tokenizer import build_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EMBEDDING_AND_HEAD = ("model.tok_embeddings.weight", "output.weight")


def random_model(
    tokenizer: Any,
    *,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int | None = None,
    max_position: int = 2048,
    init_std: float = 0.02,
    rope_theta: int = 1_000_000,
    seed: int = 0,
) -> PreTrainedModel:
    """An InternLM2 in fp32 with random weights for ``tokenizer``; the same ``seed`` gives the same weights.

    ``intermediate`` is the width of the feed-forward layer, by default about 8/3 of ``hidden``.
    """
    import torch
    from transformers import GenerationConfig
    from xtuner._lite.modelings.internlm2 import InternLM2Config, InternLM2ForCausalLM

    if hidden % heads or heads % kv_heads:
        raise ValueError(f"hidden {hidden}, heads {heads}, kv_heads {kv_heads}: each must divide the one before it")
    InternLM2Config.register_for_auto_class()
    InternLM2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    # What the released config says, but for the sizes.
    config = InternLM2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate or -(-hidden * 8 // 3 // 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_position,
        rms_norm_eps=1e-5,
        rope_theta=rope_theta,
        initializer_range=init_std,
        rope_scaling={"type": "dynamic", "factor": 2.0},
        bias=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        attn_implementation="eager",
        torch_dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternLM2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stop_ids(tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    return model.eval()


def level_unseen_rows(weight: torch.Tensor, unseen: Sequence[int]) -> None:
    """Give the rows ``unseen`` of an embedding or output head the median norm of the others, in place.

    Pretraining never shows the markers of the chat format, and weight decay and the softmax push their rows
    away from all others; tuning then needs hundreds of steps to bring them back.
    ``weight`` has shape (tokens, hidden).
    """
    import torch

    with torch.no_grad():
        seen = torch.ones(len(weight), dtype=torch.bool)
        seen[list(unseen)] = False
        norm = weight[seen].norm(dim=1).median()
        rows = weight[list(unseen)]
        weight[list(unseen)] = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) * norm


def level_chat_markers(model: PreTrainedModel, tokenizer: Any) -> None:
    """:func:`level_unseen_rows` for ``<|im_start|>`` and ``<|im_end|>``, in the embedding and in the head."""
    markers = tokenizer.convert_tokens_to_ids([START, END])
    for name, weight in model.named_parameters():
        if name in EMBEDDING_AND_HEAD:
            level_unseen_rows(weight, markers)


def save_base(model: PreTrainedModel, folder: Path) -> None:
    """Save ``model`` as safetensors with its modelling code, readable by whoever may read a new file.

    Raises: OSError if the folder cannot be written, also where safetensors raises an error of its own.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder, safe_serialization=True)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"{error}", str(folder)) from error
    umask = os.umask(0)
    os.umask(umask)
    # safetensors writes 0600.
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)


def build_random_base(
    folder: Path,
    texts: Iterable[str],
    *,
    vocab_size: int = 400,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
) -> Path:
    """Save a tokenizer learnt from ``texts`` and an InternLM2 with random weights in ``folder``; return it.

    The folder holds what a released checkpoint holds: safetensors, the modelling code named in ``auto_map``,
    tokenizer and generation config. The sizes are as in :func:`random_model`.

    Raises: UserError as ``tiny_tokenizer.train_sentencepiece``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(texts, folder, vocab_size)
    model = random_model(tokenizer, hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, seed=seed)
    level_chat_markers(model, tokenizer)
    save_base(model, folder)
    return folder
