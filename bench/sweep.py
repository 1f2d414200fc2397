"""Schedule, learning rate, rank and length of training, one varied at a time, on a base that two CPU cores can train.

    make base
    python bench/sweep.py --base models/tiny-internlm2 --out WORK [NAME ...]

Every run is the demo recipe with overrides and whole scenes, four a step, through XTuner's own train script. Of each:
the held-out loss at its best and at the end, the training loss of the last 25 steps, and chrF of the greedy replies to
the persona's starters against her lines in the training scenes (100: word for word). Runs that are finished in WORK
are not run again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STEPS, RATE = 450, 2e-3


def cosine(warmup: float) -> list[dict[str, Any]]:
    """A share of the run rises in a line, the rest falls along half a cosine."""
    return [{"type": "huanhuan.training.schedule.WarmupCosineLR", "warmup": warmup}]


def rising() -> list[dict[str, Any]]:
    """30 steps rise in a line, then it stays."""
    return [{"type": "mmengine.optim.LinearLR", "start_factor": 1e-2, "by_epoch": False, "begin": 0, "end": 30}]


def linear(steps: int) -> list[dict[str, Any]]:
    """30 steps rise in a line, the rest falls in one."""
    falling = {"start_factor": 1.0, "end_factor": 0.0, "by_epoch": False, "begin": 30, "end": steps}
    return [*rising(), {"type": "mmengine.optim.LinearLR", **falling}]


def variant(
    steps: int = STEPS, rate: float = RATE, rank: int = 64, schedule: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Overrides of one run, by the keys of the recipe; the schedule is the 7B recipes' unless one is given."""
    return {
        "train_cfg.max_iters": steps,
        "optim_wrapper.optimizer.lr": rate,
        "model.lora.r": rank,
        # The update's size does not depend on the rank then.
        "model.lora.lora_alpha": 2 * rank,
        "param_scheduler": schedule or cosine(0.03),
    }


VARIANTS = {
    "default": variant(),
    "linear": variant(schedule=linear(STEPS)),
    "constant": variant(schedule=rising()),
    "cosine, warm-up 10 %": variant(schedule=cosine(0.1)),
    **{f"lr {rate:g}": variant(rate=rate) for rate in (5e-4, 1e-3, 3e-3, 6e-3)},
    **{f"rank {rank}": variant(rank=rank) for rank in (4, 16, 32, 128)},
    **{f"{steps} steps": variant(steps=steps) for steps in (150, 300, 600, 900)},
}
COMMON = {
    "train_cfg.max_epochs": None,
    "train_cfg.validations": 3,
    "custom_hooks.0.starters": 6,
    "custom_hooks.0.max_new_tokens": 48,
    "default_hooks.checkpoint.interval": 1_000_000,
    "default_hooks.checkpoint.save_last": False,
    "default_hooks.checkpoint.save_best": None,
}
CHILD = """from mmengine.config import read_base

with read_base():
    from .configs.huanhuan_qlora_demo import *

from huanhuan.training.data import DialogueDataset

train_dataloader.dataset = dict(
    type=DialogueDataset, path="data/huanhuan/train.jsonl", tokenizer=tokenizer, max_length=1024
)
train_dataloader.batch_size = 4
param_scheduler = {schedule!r}
"""
REPLY = re.compile(r"\[(\d+)\] (.+?) → (.*)")


def train(overrides: dict[str, Any], base: Path, work: Path) -> float:
    """Train in ``work``; seconds it took. Raises: ClickException with the log if it failed."""
    # A list of schedules does not go through --cfg-options, and a recipe imports its base from beside it.
    if not (work / "configs").exists():
        (work / "configs").symlink_to(ROOT / "configs", target_is_directory=True)
    schedule = overrides["param_scheduler"]
    (work / "recipe.py").write_text(CHILD.format(schedule=schedule), "utf-8")
    options = {**COMMON, **{key: value for key, value in overrides.items() if key != "param_scheduler"}}
    started = time.time()
    command = [sys.executable, "-m", "huanhuan.training.run_xtuner", str(work / "recipe.py"), "--work-dir", str(work)]
    command += ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
    with (work / "output.log").open("w") as output:
        environment = os.environ | {"HUANHUAN_BASE": str(base.resolve()), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        code = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise click.ClickException(f"{work / 'output.log'}: exit {code}: read its last lines")
    return time.time() - started


def outcome(work: Path) -> dict[str, float]:
    """What the log of a finished run says."""
    from huanhuan.evaluate.metrics import chrf

    rows = [json.loads(line) for line in max(work.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    held_out = [row["held_out/loss"] for row in rows if "held_out/loss" in row]
    losses = [row["loss"] for row in rows if "loss" in row]
    lines = (ROOT / "data/huanhuan/train.jsonl").read_text("utf-8").splitlines()
    hers = {each["input"]: each["output"] for line in lines for each in json.loads(line)["conversation"]}
    replies = REPLY.findall(max(work.glob("*/*.log")).read_text("utf-8"))
    last = max(int(step) for step, _, _ in replies)
    scores = [chrf(said.strip(), hers[asked]) for step, asked, said in replies if int(step) == last]
    return {
        "held_out_best": min(held_out),
        "held_out_last": held_out[-1],
        "train_last": losses[-1],
        "chrf_mean": sum(scores) / len(scores),
        "chrf_least": min(scores),
    }


@click.command()
@click.argument("names", nargs=-1)
@click.option("--base", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the runs and sweep.json.")
def main(names: tuple[str, ...], base: Path, out: Path) -> None:
    """Run the variants NAMES (default: all) and print a table."""
    chosen = names or tuple(VARIANTS)
    if unknown := [name for name in chosen if name not in VARIANTS]:
        raise click.BadParameter(f"{', '.join(unknown)}: one of {', '.join(VARIANTS)}")
    rows: dict[str, Any] = {}
    for number, name in enumerate(chosen, 1):
        work = (out / re.sub(r"\W+", "-", name)).resolve()
        result = work / "result.json"
        if not result.is_file():
            click.echo(f"{number}/{len(chosen)} {name} …", err=True)
            work.mkdir(parents=True, exist_ok=True)
            seconds = train(VARIANTS[name], base, work)
            result.write_text(json.dumps({**outcome(work), "seconds": round(seconds)}))
        rows[name] = json.loads(result.read_text())
    (out / "sweep.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    click.echo(
        "| run | held-out loss, best | at the end | training loss | chrF, mean | least | s |\n" + "|---" * 7 + "|"
    )
    for name, row in rows.items():
        click.echo(
            f"| {name} | {row['held_out_best']:.3f} | {row['held_out_last']:.3f} | {row['train_last']:.3f} | "
            f"{row['chrf_mean']:.0f} | {row['chrf_least']:.0f} | {row['seconds']} |"
        )


if __name__ == "__main__":
    main()
