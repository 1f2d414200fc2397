"""tools/train.py as a user runs it: the real XTuner, on a tiny base, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from huanhuan.paths import ROOT

TOOL = ROOT / "tools" / "train.py"
STEPS = [
    "train_cfg.max_iters=6",
    "train_cfg.validations=1",
    "default_hooks.checkpoint.interval=3",
    "default_hooks.logger.interval=1",
    "model.lora.lora_dropout=0.1",
    "model.lora.r=4",
    "custom_hooks.0.starters=1",
    "custom_hooks.0.max_new_tokens=4",
    "custom_hooks.2.interval=2",
]


def run(arguments: Sequence[str], folder: Path, base: Path | str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HUANHUAN_BASE": str(base)}
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def losses(work_dir: Path) -> dict[int, float]:
    """Training loss by step of the newest run in a work dir."""
    scalars = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1]
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    return {row["iter"]: row["loss"] for row in rows if "loss" in row}


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("错误")]


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, not the checkout, with work_dirs/huanhuan_qlora_demo of six steps."""
    folder = tmp_path_factory.mktemp("elsewhere")
    result = run(["huanhuan_qlora_demo", *STEPS], folder, tiny_base)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "iter_6.pth" in result.stdout
    return folder


def test_trains_and_logs_what_it_promises(trained: Path) -> None:
    work = trained / "work_dirs" / "huanhuan_qlora_demo"
    assert sorted(losses(work)) == [1, 2, 3, 4, 5, 6]
    assert any(work.glob("best_held_out_loss_iter_6.pth"))
    (log,) = work.glob("*/*.log")
    text = log.read_text("utf-8")
    assert "held_out/perplexity" in text
    assert "tokens_per_second" in text
    assert "% supervised" in text
    assert any(work.glob("*/vis_data/events.out.tfevents.*"))


def test_a_resumed_run_repeats_the_uninterrupted_one(trained: Path, tiny_base: Path) -> None:
    work = trained / "work_dirs" / "huanhuan_qlora_demo"
    whole = losses(work)
    checkpoint = work / "iter_3.pth"
    arguments = ["huanhuan_qlora_demo", "--resume", str(checkpoint), "--work-dir", str(trained / "resumed"), *STEPS]
    result = run(arguments, trained, tiny_base)
    assert result.returncode == 0, result.stderr[-3000:]
    assert losses(trained / "resumed") == {step: whole[step] for step in (4, 5, 6)}


def test_a_loss_that_is_not_a_number_ends_the_run(trained: Path, tiny_base: Path) -> None:
    options = [*STEPS, "optim_wrapper.optimizer.lr=1e30", "optim_wrapper.clip_grad=None", "custom_hooks.1.every=1"]
    result = run(["huanhuan_qlora_demo", "--work-dir", str(trained / "nan"), *options], trained, tiny_base)
    assert result.returncode != 0
    assert "step " in result.stderr
    assert "train.jsonl:" in errors(result)[0]
    assert "Traceback" not in result.stderr


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"conversation": []}\nno json\n', "utf-8")
    arguments = [
        "huanhuan_qlora_demo",
        f"train_dataloader.dataset.path={tmp_path / 'bad.jsonl'}",
        f"val_dataloader.dataset.path={tmp_path / 'gone.jsonl'}",
        f"persona={tmp_path / 'gone.toml'}",
    ]
    result = run(arguments, tmp_path, tmp_path / "no-base")
    assert result.returncode == 1
    told = "\n".join(errors(result))
    for what in ("bad.jsonl:1", "bad.jsonl:2", "gone.jsonl", "gone.toml", "no-base"):
        assert what in told
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "work_dirs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no_such_recipe"], "huanhuan_qlora"),
        (["huanhuan_qlora_demo", "--resume"], "--resume"),
        (["huanhuan_qlora_demo", "--resume", "gone.pth"], "gone.pth"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, tiny_base: Path, arguments: list[str], expected: str) -> None:
    result = run(arguments, tmp_path, tiny_base)
    assert result.returncode == 1
    (line,) = errors(result)
    assert expected in line


def test_an_override_without_a_value_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    result = run(["huanhuan_qlora_demo", "max_epochs"], tmp_path, tiny_base)
    assert result.returncode == 2
    assert "KEY=VALUE" in result.stderr


def test_a_broken_recipe_is_one_line(tmp_path: Path, tiny_base: Path) -> None:
    (tmp_path / "broken.py").write_text("model = dict(\n", "utf-8")
    result = run([str(tmp_path / "broken.py")], tmp_path, tiny_base)
    assert result.returncode == 1
    assert "broken.py" in errors(result)[0]
