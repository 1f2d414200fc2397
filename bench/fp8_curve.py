"""Does LoRA over a frozen FP8 base learn as LoRA over a bfloat16 one does? Loss curves on a base that can learn.

    make base
    python bench/fp8_curve.py --base models/tiny-internlm2 [--steps 200] [--out bench/results]

For each seed (the adapter's first weights and the order of the dialogues) one run over bfloat16 and one over FP8,
both computed as the recipes do. Curves are means of 20 steps. The FP8 curve of each seed must leave the band of
the bfloat16 seeds, at any point, by no more than the band's own mean width. Exit code 1 if it does not.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WINDOW = 20


def curve(base: Path, data: Path, steps: int, seed: int, fp8: bool) -> list[float]:
    """Loss of each step in nats a supervised token."""
    import torch
    from mmengine.config import ConfigDict
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from huanhuan.training.data import DialogueDataset, collate_pack
    from huanhuan.training.model import PackedFinetune

    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=True)
    llm = ConfigDict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=str(base),
        trust_remote_code=True,
        torch_dtype=torch.bfloat16,
    )
    # So small a base learns replies by heart only with an adapter on its head too; that stays in bfloat16.
    targets = ["wqkv", "wo", "w1", "w2", "w3", "output"]
    lora = LoraConfig(r=64, lora_alpha=128, target_modules=targets, task_type="CAUSAL_LM")
    model: Any = PackedFinetune(llm, lora=lora, fp8_base=fp8).to(device)
    model.train()
    dialogues = DialogueDataset(str(data.resolve()), tokenizer, max_length=512).dialogues
    weights = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0)
    chance = random.Random(seed)
    order: list[Any] = []
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 30) * (1 - step / steps)
        while len(order) < 8:
            order += chance.sample(dialogues, len(dialogues))
        pack = collate_pack([order[:8]])["data"]
        del order[:8]
        loss = model.compute_loss(
            {key: value.to(device) if hasattr(value, "to") else value for key, value in pack.items()}
        )
        loss["loss"].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss["loss"].detach()))
    return losses


def smooth(losses: list[float]) -> list[float]:
    """Means of windows of 20 steps, one after another."""
    return [sum(losses[at : at + WINDOW]) / WINDOW for at in range(0, len(losses) - WINDOW + 1, WINDOW)]


@click.command()
@click.option("--base", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), default=ROOT / "data/huanhuan/train.jsonl")
@click.option("--steps", type=int, default=200, show_default=True)
@click.option("--seeds", type=int, default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for fp8_curve.json.")
def main(base: Path, data: Path, steps: int, seeds: int, out: Path) -> None:
    """Train twice with each seed and compare."""
    out.mkdir(parents=True, exist_ok=True)
    curves: dict[str, list[list[float]]] = {"bf16": [], "fp8": []}
    for seed in range(seeds):
        for kind, runs in curves.items():
            runs.append(curve(base, data, steps, seed, kind == "fp8"))
            print(f"{kind} seed {seed}: " + " ".join(f"{each:.3f}" for each in smooth(runs[-1])), flush=True)
    (out / "fp8_curve.json").write_text(json.dumps(curves))
    band = list(zip(*map(smooth, curves["bf16"]), strict=True))
    width = sum(max(point) - min(point) for point in band) / len(band)
    outside = [
        max(min(point) - value, value - max(point), 0.0)
        for run in curves["fp8"]
        for value, point in zip(smooth(run), band, strict=True)
    ]
    pairs = [
        abs(a - b)
        for fp8, bf16 in zip(curves["fp8"], curves["bf16"], strict=True)
        for a, b in zip(smooth(fp8), smooth(bf16), strict=True)
    ]
    first = [abs(a[0] / b[0] - 1) for a, b in zip(curves["fp8"], curves["bf16"], strict=True)]
    result = {
        "band_mean_width": round(width, 4),
        "points_inside": f"{sum(each == 0 for each in outside)}/{len(outside)}",
        "largest_outside": round(max(outside), 4),
        "same_seed_mean_difference": round(sum(pairs) / len(pairs), 4),
        "first_step_difference": f"{max(first):.2e}",
        "ok": max(outside) <= width,
    }
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
