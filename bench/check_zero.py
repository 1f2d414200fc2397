"""DeepSpeed ZeRO-2, ZeRO-3 and their offloading on one GPU, or a CPU, against training without it: the same losses.

    python bench/random_base.py /somewhere/base4 --layers 4
    python bench/check_zero.py --base /somewhere/base4 --out bench/results

Full and LoRA, as `xtuner train … --deepspeed …` runs them, in packs of 2,048. DeepSpeed keeps a float32 copy of
the weights it trains and the plain run of the full recipe a compensated bfloat16 one, so the losses agree within
bfloat16's rounding; the first of each is the same computation. Exit code 1 if one is further off.

Without a GPU all of them train in float32, in which DeepSpeed keeps a partitioned model there whatever its dtype.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STEPS = 8
STAGES = (None, "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero2_offload", "deepspeed_zero3_offload")
# Of the first step's loss, and of the last one's.
FIRST, LAST = 2e-3, 2e-2
OPTIONS = (
    "train_cfg.max_epochs=None",
    f"train_cfg.max_iters={STEPS}",
    "train_cfg.validations=1",
    "train_dataloader.dataset.pack_length=2048",
    "train_dataloader.collate_fn.pad_to=2048",
    "default_hooks.logger.interval=1",
    "log_processor.window_size=1",
    "default_hooks.checkpoint.interval=1000000",
    "default_hooks.checkpoint.save_last=False",
    "default_hooks.checkpoint.save_best=None",
    "custom_hooks.0.starters=1",
    "custom_hooks.0.max_new_tokens=8",
    "custom_hooks.2.interval=1",
)


def run(recipe: str, stage: str | None, base: Path, folder: Path, log: Path) -> dict[str, object]:
    """Train a few steps; what the log says of them."""
    work = folder / f"{recipe}-{stage}"
    command = [sys.executable, "-m", "huanhuan.training.run_xtuner", str(ROOT / "configs" / f"{recipe}.py")]
    command += ["--work-dir", str(work), *(["--deepspeed", stage] if stage else []), "--cfg-options", *OPTIONS]
    if not torch.cuda.is_available():
        command.append("model.llm.torch_dtype=float32")
    for loader, name in (("train", "train"), ("val", "val")):
        command.append(f"{loader}_dataloader.dataset.path={folder / name}.jsonl")
    environment = os.environ | {"HUANHUAN_BASE": str(base), "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    started = time.time()
    with log.open("w") as output:
        code = subprocess.run(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        ).returncode
    row: dict[str, object] = {
        "recipe": recipe,
        "deepspeed": stage,
        "exit": code,
        "wall_s": round(time.time() - started),
    }
    logs = sorted(work.glob("*/vis_data/scalars.json"))
    rows = [json.loads(line) for line in logs[-1].read_text().splitlines()] if logs else []
    losses = {each["step"]: each["loss"] for each in rows if "loss" in each}
    held_out = [each["held_out/loss"] for each in rows if "held_out/loss" in each]
    peaks = [each["peak_gib"] for each in rows if "peak_gib" in each]
    if len(losses) == STEPS and held_out:
        row |= {"first": losses[1], "last": losses[STEPS], "held_out": held_out[-1]}
    if peaks:
        row |= {"peak_gib": round(max(peaks), 2), "planned_gib": round(planned(recipe, stage, base), 2)}
    return row


def planned(recipe: str, stage: str | None, base: Path) -> float:
    """The peak that tools/plan.py expects, in GiB."""
    from huanhuan.training.memory import GIB, memory_of
    from huanhuan.training.plan import shape_in
    from huanhuan.training.plan_recipe import Recipe, run_of
    from huanhuan.training.recipe import find_recipe

    overrides = [each for each in OPTIONS if each.startswith("train_dataloader")]
    run = run_of(Recipe.read(find_recipe(recipe), overrides), shape_in(base), deepspeed=stage)
    return memory_of(run).peak / GIB


def agrees(row: dict[str, object], plain: dict[str, object]) -> bool:
    """Whether the losses of two runs are those of one computation, within rounding."""
    if "first" not in row or "first" not in plain:
        return False
    limits = {"first": FIRST, "last": LAST, "held_out": LAST}
    return all(abs(float(str(row[name])) / float(str(plain[name])) - 1) < limit for name, limit in limits.items())


@click.command()
@click.option("--base", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the logs and zero.json.")
@click.option("--recipe", "recipes", multiple=True, default=("huanhuan_full", "huanhuan_lora"), show_default=True)
@click.option("--stage", "stages", multiple=True, default=STAGES[1:], show_default=True)
def main(base: Path, out: Path, recipes: tuple[str, ...], stages: tuple[str, ...]) -> None:
    """Run every stage of both recipes and compare."""
    from bench.train import write_dialogues

    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="check-zero-"))
    write_dialogues(folder / "train.jsonl", base, 200)
    write_dialogues(folder / "val.jsonl", base, 12)
    rows, wrong = [], 0
    for recipe in recipes:
        plain: dict[str, object] = {}
        for stage in (None, *stages):
            row = run(recipe, stage, base.resolve(), folder, out / f"zero-{recipe}-{stage}.log")
            plain = plain or row
            row["agrees"] = agrees(row, plain)
            wrong += not row["agrees"]
            rows.append(row)
            print(json.dumps(row), flush=True)
            (out / "zero.json").write_text(json.dumps(rows, indent=1))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
