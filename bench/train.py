"""Training speed of the recipes on one GPU, each through XTuner's own train script, the original recipe included.

    python bench/random_base.py /somewhere/base
    python bench/random_base.py /somewhere/small --shape 1.8b      # for the variants that end in -1.8b
    python bench/train.py --base /somewhere/base [--small-base /somewhere/small] --out WORK [VARIANT ...]

Every variant trains on the same dialogues of 40 to 400 tokens; tokens per second count no padding and are the
median of the log lines after the first third. Share of peak: 4N FLOPs a token for LoRA and QLoRA, 6N for full
training, N the parameters in products, 790 TFLOP/s.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PEAK = 790e12
PARAMETERS, SMALL_PARAMETERS = 7.36e9, 1.70e9


@dataclass(frozen=True)
class Variant:
    """A recipe with overrides."""

    recipe: str
    options: tuple[str, ...] = ()
    flops: int = 4
    row_tokens: int = 0
    """Tokens of a step where the recipe does not log its own rate."""
    steps_factor: float = 1.0
    limit_gib: float | None = None
    """What the run may allocate on the card: more ends it."""
    small: bool = False
    """Whether it trains InternLM2-1.8B."""


def packed(tokens: int) -> tuple[str, ...]:
    """Overrides for packs of ``tokens``."""
    return (f"train_dataloader.dataset.pack_length={tokens}", f"train_dataloader.collate_fn.pad_to={tokens}")


# A 16 GiB card leaves about 15 to PyTorch's allocator.
LIMITED = """
import torch
torch.cuda.set_per_process_memory_fraction({limit} * 2**30 / torch.cuda.get_device_properties(0).total_memory)
from huanhuan.training.run_xtuner import main
main()
"""
VARIANTS = {
    "original": Variant("bench/original_qlora.py", row_tokens=512),
    "qlora-16gib": Variant("configs/huanhuan_qlora.py", limit_gib=15),
    "qlora-16gib-16k": Variant("configs/huanhuan_qlora.py", packed(16384), steps_factor=0.6, limit_gib=15),
    "qlora-16gib-compile": Variant(
        "configs/huanhuan_qlora.py",
        ("model.kernels=compile", "model.use_activation_checkpointing=False", "model.activation_budget=0.1"),
        limit_gib=15,
    ),
    "qlora-fast": Variant("configs/huanhuan_qlora_fast.py"),
    "qlora-liger": Variant("configs/huanhuan_qlora_fast.py", ("model.kernels=liger",)),
    "qlora-fast-16k": Variant("configs/huanhuan_qlora_fast.py", packed(16384), steps_factor=0.6),
    "qlora-fp8": Variant("configs/huanhuan_qlora_fp8.py"),
    "lora": Variant("configs/huanhuan_lora.py"),
    "lora-rank-8": Variant("configs/huanhuan_lora.py", ("model.lora.r=8",)),
    "lora-rank-256": Variant("configs/huanhuan_lora.py", ("model.lora.r=256",)),
    "lora-liger": Variant("configs/huanhuan_lora.py", ("model.kernels=liger",)),
    "lora-16k": Variant("configs/huanhuan_lora.py", packed(16384), steps_factor=0.6),
    "lora-fp8": Variant("configs/huanhuan_lora_fp8.py"),
    "lora-fp8-16k": Variant("configs/huanhuan_lora_fp8.py", packed(16384), steps_factor=0.6),
    "full": Variant("configs/huanhuan_full.py", flops=6),
    "full-2": Variant("configs/huanhuan_full.py", ("optim_wrapper.accumulative_counts=2",), flops=6),
    "lora-transformers": Variant("configs/huanhuan_lora_transformers.py"),
    "qlora-1.8b": Variant("configs/huanhuan_qlora_1_8b.py", small=True),
    "full-1.8b": Variant("configs/huanhuan_full_1_8b.py", flops=6, small=True),
    "full-16k": Variant("configs/huanhuan_full.py", packed(16384), flops=6, steps_factor=0.6),
}


def write_dialogues(path: Path, base: Path, count: int = 2400) -> float:
    """Synthetic dialogues of 40 to 400 tokens, over 30 % of them supervised; returns that share."""
    from transformers import AutoTokenizer

    from bench.random_base import CHARACTERS
    from huanhuan.training.data import encode_record

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=True)
    chance = random.Random(0)
    tokens = supervised = 0

    def text(length: int) -> str:
        return "".join(chance.choices(CHARACTERS, k=length))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            exchanges = []
            wanted = chance.randint(30, 360)
            while wanted > 0:
                asked, said = chance.randint(8, 30), chance.randint(12, 40)
                exchanges.append({"input": text(asked), "output": text(said)})
                wanted -= asked + said + 12
            record = {"conversation": exchanges}
            encoded = encode_record(json.loads(json.dumps(record)), tokenizer)
            tokens += len(encoded["input_ids"])
            supervised += sum(label >= 0 for label in encoded["labels"])
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return supervised / tokens


def options_of(name: str, folder: Path, steps: int) -> list[str]:
    """Overrides of every recipe: so many steps over the dialogues of ``folder``, nothing saved, nobody asked."""
    if name == "lora-transformers":
        return [
            f"train_dataset.path={folder / 'train.jsonl'}",
            f"training_args.max_steps={steps}",
            f"training_args.held_out={folder / 'val.jsonl'}",
            "training_args.validations=1",
            "training_args.logging_steps=4",
            "training_args.log_lines=1",
            "training_args.persona=None",
            "training_args.load_best_model_at_end=False",
            "training_args.save_strategy=no",
        ]
    options = [
        f"train_cfg.max_iters={steps}",
        "default_hooks.checkpoint.interval=1000000",
        "default_hooks.checkpoint.save_last=False",
        "default_hooks.checkpoint.save_best=None",
        "default_hooks.logger.interval=4",
    ]
    if name == "original":
        return [*options, f"train_dataloader.dataset.dataset.data_files.train={folder / 'train.jsonl'}"]
    return [
        *options,
        "train_cfg.max_epochs=None",
        "train_cfg.validations=1",
        "train_cfg.log_lines=1",  # as a long run logs: every look at the card costs time
        f"train_dataloader.dataset.path={folder / 'train.jsonl'}",
        f"val_dataloader.dataset.path={folder / 'val.jsonl'}",
        "custom_hooks.0.starters=0",
        "custom_hooks.2.interval=4",
    ]


def logged(work: Path) -> list[dict[str, Any]]:
    """What a run logged, of mmengine or of Transformers' Trainer."""
    scalars = sorted(work.glob("*/vis_data/scalars.json"))
    if scalars:
        return [json.loads(line) for line in scalars[-1].read_text().splitlines()]
    state = work / "trainer_state.json"
    return json.loads(state.read_text())["log_history"] if state.is_file() else []


def run(
    name: str, variant: Variant, base: Path, folder: Path, steps: int, log: Path, limit: int = 400
) -> dict[str, object]:
    """Train ``variant`` for a few steps; returns what its log says."""
    import os

    steps = max(20, int(steps * variant.steps_factor))
    options = [*options_of(name, folder, steps), *variant.options]
    work = folder / name
    command = [sys.executable, "-m", "huanhuan.training.run_xtuner"]
    if variant.limit_gib:
        command = [sys.executable, "-c", LIMITED.format(limit=variant.limit_gib)]
    command += [str(ROOT / variant.recipe), "--work-dir", str(work), "--cfg-options", *options]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"HUANHUAN_BASE": str(base), "PYTHONPATH": path}
    started = time.time()
    with log.open("w") as output:
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    row: dict[str, object] = {"variant": name, "exit": code, "wall_s": round(time.time() - started)}
    lines = [line for line in logged(work) if "loss" in line]
    timed = lines[len(lines) // 3 :]
    if not timed:
        return row
    rates = [line.get("tokens_per_second") or variant.row_tokens / line["time"] for line in timed]
    rate = statistics.median(rates)
    row |= {
        "tok_s": round(rate),
        "of_peak": f"{variant.flops * (SMALL_PARAMETERS if variant.small else PARAMETERS) * rate / PEAK:.0%}",
        "peak_gib": round(max(line.get("peak_gib", line.get("memory", 0) / 1024) for line in lines), 1),
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
    }
    return row


@click.command()
@click.argument("names", nargs=-1)
@click.option("--base", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--small-base", type=click.Path(path_type=Path, exists=True), help="Of the shape of InternLM2-1.8B.")
@click.option("--steps", type=int, default=40, show_default=True)
@click.option("--limit", type=int, default=400, show_default=True, help="Seconds a variant may take.")
@click.option("--option", "extra", multiple=True, help="KEY=VALUE for every recipe but the original.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the logs and train.json.")
def main(
    names: tuple[str, ...],
    base: Path,
    small_base: Path | None,
    steps: int,
    limit: int,
    extra: tuple[str, ...],
    out: Path,
) -> None:
    """Measure the VARIANTs (default: all whose base is given) and print a table. Exit code 1 if one failed."""
    import tempfile

    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-train-"))
    share = write_dialogues(folder / "train.jsonl", base)
    write_dialogues(folder / "val.jsonl", base, 40)
    print(f"supervised share of the tokens: {share:.1%}", flush=True)
    rows = []
    for name in names or (each for each, variant in VARIANTS.items() if small_base or not variant.small):
        variant = VARIANTS[name]
        weights = small_base if variant.small else base
        if weights is None:
            raise click.UsageError(f"{name}: --small-base is needed")
        if name != "original":
            variant = dataclasses.replace(variant, options=(*variant.options, *extra))
        rows.append(run(name, variant, weights.resolve(), folder, steps, out / f"{name}.log", limit))
        print(json.dumps(rows[-1]), flush=True)
        (out / "train.json").write_text(json.dumps(rows, indent=1))
    sys.exit(any("tok_s" not in row for row in rows))


if __name__ == "__main__":
    main()
