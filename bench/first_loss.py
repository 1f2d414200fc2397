"""The loss of the first step over FP8 against that over the base it was made from, at the size of the whole model.

    python bench/random_base.py /somewhere/base
    python bench/first_loss.py --base /somewhere/base

The same pack of dialogues, before anything is learned. Exit code 1 if FP8 is off by more than 0.1 %.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LIMIT = 1e-3


def build(base: Path, nf4: bool) -> Any:
    """A model as the recipes build it, over a bfloat16 or an NF4 base."""
    import torch
    from mmengine.config import ConfigDict
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from huanhuan.training.model import PackedFinetune

    llm: dict[str, Any] = dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=str(base),
        trust_remote_code=True,
        torch_dtype=torch.bfloat16,
    )
    if nf4:
        llm["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
        )
    lora = LoraConfig(r=64, lora_alpha=128, target_modules=["wqkv", "wo", "w1", "w2", "w3"], task_type="CAUSAL_LM")
    return PackedFinetune(ConfigDict(llm), lora=lora).cuda().eval()


def loss_of(model: Any, data: dict[str, Any]) -> float:
    """Nats per supervised token of one pack."""
    (result,) = model.predict(data)
    return result["negative_log_likelihood"] / result["tokens"]


@click.command()
@click.option("--base", type=click.Path(path_type=Path, exists=True), required=True)
def main(base: Path) -> None:
    """Compare the first loss over bfloat16 and NF4 with that over FP8."""
    import torch

    from bench.check_gpu import batch
    from huanhuan.training.fp8 import freeze_in_fp8

    data, wrong = batch(0), False
    for nf4 in (False, True):
        model = build(base, nf4)
        plain = loss_of(model, data)
        freeze_in_fp8(model.llm, torch.device("cuda"))
        fp8 = loss_of(model, data)
        difference = abs(fp8 / plain - 1)
        wrong = wrong or difference > LIMIT
        row = {"base": "nf4" if nf4 else "bf16", "loss": plain, "loss_fp8": fp8, "difference": f"{difference:.1e}"}
        print(json.dumps(row), flush=True)
        del model
        torch.cuda.empty_cache()
    sys.exit(wrong)


if __name__ == "__main__":
    main()
