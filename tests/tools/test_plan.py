"""tools/plan.py as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from huanhuan.paths import ROOT

TOOL = ROOT / "tools" / "plan.py"


def run(*arguments: str, base: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {"HUANHUAN_BASE", "NPROC_PER_NODE", "NNODES"}
    environment = {name: value for name, value in os.environ.items() if name not in own} | variables
    if base is not None:
        environment["HUANHUAN_BASE"] = str(base)
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_recipe_that_fits() -> None:
    result = run("huanhuan_qlora", "--card", "RTX 4090")
    assert result.returncode == 0, result.stderr
    assert "it runs" in result.stdout
    for what in (
        "权重 / weights",
        "优化器 / optimiser",
        "激活 / activations",
        "KV",
        "峰值 / peak",
        "estimated",
        "tokens/s",
    ):
        assert what in result.stdout
    assert result.stderr == ""


def test_a_recipe_that_does_not_fit_names_one_that_does() -> None:
    result = run("huanhuan_lora", "--gpu-memory", "16")
    assert result.returncode == 1
    assert "16.0 GiB" in result.stdout
    assert "python tools/train.py huanhuan_qlora" in result.stdout


def test_settings_and_gpus_are_heard() -> None:
    short = run("huanhuan_full", "--gpu-memory", "40")
    assert short.returncode == 1
    spread = run(
        "huanhuan_full",
        "model.use_activation_checkpointing=True",
        *("--gpu-memory", "40", "--gpus", "8", "--deepspeed", "deepspeed_zero3"),
    )
    assert spread.returncode == 0, spread.stdout
    assert "ZeRO-3" in spread.stdout
    assert "8 GPUs" in spread.stdout


def test_the_gpus_are_those_that_training_would_take() -> None:
    arguments = ["huanhuan_full", "--gpu-memory", "40", "--deepspeed", "deepspeed_zero3"]
    told = run(*arguments, NPROC_PER_NODE="8").stdout
    assert "40 GiB GPU × 8" in told
    assert "python tools/train.py huanhuan_full --nproc 8 --deepspeed deepspeed_zero3 " in told
    assert "40 GiB GPU × 4" in run(*arguments, "--gpus", "4", NPROC_PER_NODE="8").stdout
    assert "40 GiB GPU × 16" in run(*arguments, NPROC_PER_NODE="8", NNODES="2").stdout


def test_an_old_card_is_told_in_one_line() -> None:
    result = run("huanhuan_qlora", "--card", "T4")
    assert result.returncode == 1
    assert sum("bfloat16" in line for line in result.stdout.splitlines()) == 1
    assert "tools/train.py" not in result.stdout


def test_the_demo_on_this_machine_counts_with_its_tokenizer(tiny_base: Path) -> None:
    result = run("huanhuan_qlora_demo", "train_cfg.max_iters=10", base=tiny_base)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "counted with the base's tokenizer" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["no_such_recipe"], 1, "huanhuan_qlora"),
        (["huanhuan_qlora", "--card", "Voodoo"], 1, "Voodoo"),
        (["huanhuan_qlora", "--gpu-memory", "16", "--deepspeed", "fast"], 1, "deepspeed_zero2"),
        (["huanhuan_qlora", "--gpu-memory", "16", "train_dataloader.dataset.path=gone.jsonl"], 1, "gone.jsonl"),
        (["huanhuan_qlora", "--gpu-memory", "0"], 2, "--gpu-memory"),
        (["huanhuan_qlora", "max_epochs"], 2, "KEY=VALUE"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], code: int, told: str) -> None:
    result = run(*arguments)
    assert result.returncode == code
    lines = [line for line in result.stderr.splitlines() if "rror" in line]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in result.stderr
