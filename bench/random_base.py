"""A base of InternLM2's real shape with random weights, for measuring where no weights can be had.

python bench/random_base.py OUT [--layers 32] [--hidden 4096] [--shape 7b|1.8b]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from huanhuan.training.tiny_tokenizer import build_tokenizer

SHAPES = {
    "7b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=14336),
    "1.8b": dict(hidden_size=2048, num_hidden_layers=24, num_attention_heads=16, intermediate_size=8192),
}
CHARACTERS = "".join(chr(code) for code in range(0x4E00, 0x4E00 + 1200))


def is_text(tokenizer: Any, number: int) -> bool:
    """Whether the token ``number`` alone decodes to characters."""
    said = tokenizer.decode([number])
    return (
        number not in tokenizer.all_special_ids
        and said.isprintable()
        and bool(said.strip("\ufffd "))
        and "<" not in said
    )


def build(out: Path, shape: str = "7b", layers: int | None = None) -> None:
    """Save an InternLM2ForCausalLM of ``shape`` in bf16, its code and a small tokenizer in ``out``."""
    import torch
    from transformers import GenerationConfig
    from xtuner._lite.modelings.internlm2 import InternLM2Config, InternLM2ForCausalLM

    out.mkdir(parents=True)
    lines = [CHARACTERS[start : start + 40] for start in range(0, len(CHARACTERS), 40)]
    tokenizer = build_tokenizer(lines * 3, out, 1800)
    InternLM2Config.register_for_auto_class()
    InternLM2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    settings: dict[str, Any] = SHAPES[shape] | ({"num_hidden_layers": layers} if layers else {})
    ids: dict[str, Any] = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = InternLM2Config(
        vocab_size=92544,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        rope_theta=1_000_000,
        rope_scaling={"type": "dynamic", "factor": 2.0},
        bias=False,
        rms_norm_eps=1e-5,
        **ids,
        tie_word_embeddings=False,
        attn_implementation="eager",
        torch_dtype="bfloat16",
        **settings,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = InternLM2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        # A reply is then made of whole characters: bytes, control tokens and ids without a text are never the likeliest.
        head = model.get_output_embeddings().weight
        text = torch.tensor([is_text(tokenizer, number) for number in range(len(tokenizer))])
        head[len(text) :] = 0
        head[: len(text)][~text.to(head.device)] = 0
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(out, safe_serialization=True, max_shard_size="2GB")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--shape", type=click.Choice(sorted(SHAPES)), default="7b")
@click.option("--layers", type=int)
def main(out: Path, shape: str, layers: int | None) -> None:
    """Build the base in OUT."""
    build(out, shape, layers)


if __name__ == "__main__":
    main()
