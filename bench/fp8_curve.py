"""Does LoRA over a frozen FP8 base learn as LoRA over a bfloat16 one does? Loss curves on a base that can learn.

    make base
    python bench/fp8_curve.py --base models/tiny-internlm2 [--steps 200] [--out bench/results]

A seed decides the adapter's first weights and the order of the dialogues. Three seeds run over bfloat16 and over FP8,
whose layers are those of the recipes (no compiling, attention through varlen; the rate and the adapter on the head are
the demo's). Curves are means of 20 steps. The band is what the three bfloat16 seeds span at each point. The mean FP8 curve must lie in
it everywhere, within TOLERANCE of its edge. Of single runs about half of the points lie outside of what three others
span, whatever they are: three more bfloat16 seeds say how many. Exit code 1 if the mean does not lie in the band.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WINDOW, SEEDS = 20, 3
# Of the loss: late in the run the three seeds differ by less than one of them does from step to step.
TOLERANCE = 0.03


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


def outside(run: list[float], band: list[tuple[float, ...]]) -> list[float]:
    """How far each point of a curve lies outside of the band, in shares of the loss there."""
    return [max(min(point) - value, value - max(point), 0.0) / value for value, point in zip(run, band, strict=True)]


@click.command()
@click.option("--base", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), default=ROOT / "data/huanhuan/train.jsonl")
@click.option("--steps", type=int, default=200, show_default=True)
@click.option("--jobs", type=int, default=3, show_default=True, help="Runs at a time.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for fp8_curve.json.")
def main(base: Path, data: Path, steps: int, jobs: int, out: Path) -> None:
    """Train with every seed and compare."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = [("bf16", seed) for seed in range(2 * SEEDS)] + [("fp8", seed) for seed in range(SEEDS)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {(kind, seed): pool.submit(curve, base, data, steps, seed, kind == "fp8") for kind, seed in wanted}
        curves = {key: future.result() for key, future in running.items()}
    (out / "fp8_curve.json").write_text(json.dumps({f"{kind} {seed}": each for (kind, seed), each in curves.items()}))
    smoothed = {key: smooth(each) for key, each in curves.items()}
    for (kind, seed), each in smoothed.items():
        print(f"{kind} seed {seed}: " + " ".join(f"{value:.3f}" for value in each), flush=True)
    band = list(zip(*(smoothed["bf16", seed] for seed in range(SEEDS)), strict=True))
    mean = [sum(point) / SEEDS for point in zip(*(smoothed["fp8", seed] for seed in range(SEEDS)), strict=True)]
    print("fp8 mean:    " + " ".join(f"{value:.3f}" for value in mean))

    def inside(kind: str, seeds: range) -> str:
        points = [each for seed in seeds for each in outside(smoothed[kind, seed], band)]
        return f"{sum(each == 0 for each in points)}/{len(points)}"

    first = [abs(curves["fp8", seed][0] / curves["bf16", seed][0] - 1) for seed in range(SEEDS)]
    farthest = max(outside(mean, band))
    result = {
        "mean_farthest_outside": f"{farthest:.1%}",
        "single_fp8_runs_inside": inside("fp8", range(SEEDS)),
        "other_bf16_runs_inside": inside("bf16", range(SEEDS, 2 * SEEDS)),
        "first_step_difference": f"{max(first):.1e}",
        "ok": farthest <= TOLERANCE,
    }
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
