"""Two processes over gloo train as one does: the real XTuner and DeepSpeed, a tiny base, the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from huanhuan.paths import ROOT

STEPS = 4
# The full recipe, for it starts from the same weights whatever the launcher draws; AdamW runs without a GPU. Its
# large epsilon keeps rounding of gradients near zero from deciding the direction of a step.
FULL = (
    "huanhuan_full",
    "model.llm.torch_dtype=float32",
    "optim_wrapper.optimizer.type=AdamW",
    "optim_wrapper.optimizer.lr=1e-2",
    "optim_wrapper.optimizer.eps=1e-3",
    "train_dataloader.dataset.max_length=512",
    "train_dataloader.dataset.pack_length=512",
    "train_dataloader.collate_fn.pad_to=None",
)
COMMON = (
    "train_cfg.max_epochs=None",
    f"train_cfg.max_iters={STEPS}",
    "train_cfg.validations=1",
    # Seven held-out records: one process has four batches, the other three.
    "val_dataloader.batch_size=1",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.checkpoint.save_best=None",
    "default_hooks.logger.interval=1",
    "log_processor.window_size=1",
    "custom_hooks.0.starters=1",
    "custom_hooks.0.max_new_tokens=3",
)


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    work_dir: Path
    options: tuple[str, ...]

    def scalars(self, name: str) -> dict[int, float]:
        """Values of ``name`` by step, of the newest run in the work dir."""
        log = sorted(self.work_dir.glob("*/vis_data/scalars.json"))[-1]
        rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        return {row["step"]: row[name] for row in rows if name in row}


@pytest.fixture(scope="module")
def train(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Run tools/train.py; every argument set once only."""
    folder = tmp_path_factory.mktemp("distributed")
    held_out = (ROOT / "data" / "huanhuan" / "val.jsonl").read_text("utf-8").splitlines()[:7]
    (folder / "val.jsonl").write_text("\n".join(held_out), "utf-8")
    done: dict[tuple[str, ...], Trained] = {}

    def run(name: str, *options: str) -> Trained:
        key = (name, *options)
        if key not in done:
            work_dir = folder / name
            command = [sys.executable, str(ROOT / "tools" / "train.py"), *options, *COMMON, "--skip-check"]
            command += [f"val_dataloader.dataset.path={folder / 'val.jsonl'}", "--work-dir", str(work_dir)]
            environment = os.environ | {"HUANHUAN_BASE": str(tiny_base), "OMP_NUM_THREADS": "1"}
            result = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
            )
            assert result.returncode == 0, result.stderr[-4000:]
            done[key] = Trained(work_dir, options)
        return done[key]

    return run


@pytest.fixture(scope="module")
def alone(train: Callable[..., Trained]) -> Trained:
    """One process that takes in one step what two take together."""
    return train("alone", *FULL, "train_dataloader.batch_size=2")


def two(train: Callable[..., Trained], name: str, *options: str) -> Trained:
    return train(name, *FULL, *options, "--nproc", "2")


def merged(run: Trained, base: Path, out: Path) -> dict[str, torch.Tensor]:
    """The tensors that tools/merge_hf.py makes of a run's newest checkpoint."""
    from safetensors.torch import load_file

    recipe = str(ROOT / "configs" / f"{run.options[0]}.py")
    command = [sys.executable, str(ROOT / "tools" / "merge_hf.py"), recipe, "--work-dir", str(run.work_dir)]
    command += ["--base", str(base), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    tensors: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def assert_same_curve(run: Trained, alone: Trained) -> None:
    """The same mean loss over each step's tokens, and the same held-out loss, so that no data was seen twice."""
    assert run.scalars("loss") == pytest.approx(alone.scalars("loss"), rel=2e-5)
    assert run.scalars("held_out/loss") == pytest.approx(alone.scalars("held_out/loss"), rel=2e-5)
    losses = alone.scalars("loss")
    assert losses[STEPS] < losses[1] - 0.05, "so little is learned that any run would look the same"


def test_two_processes_train_as_one(train: Callable[..., Trained], alone: Trained) -> None:
    assert_same_curve(two(train, "ddp"), alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddp", ()),
        ("zero2", ("--deepspeed", "deepspeed_zero2")),
        ("zero3", ("--deepspeed", "deepspeed_zero3")),
        ("zero3-checkpointing", ("--deepspeed", "deepspeed_zero3", "model.use_activation_checkpointing=True")),
    ],
)
def test_sharded_training_resume_and_merge(
    train: Callable[..., Trained], alone: Trained, tiny_base: Path, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    run = two(train, name, *options)
    assert_same_curve(run, alone)
    whole, expected = merged(run, tiny_base, tmp_path / name), merged(alone, tiny_base, tmp_path / "alone")
    assert whole.keys() == expected.keys()
    for tensor in expected:
        torch.testing.assert_close(whole[tensor], expected[tensor], rtol=1e-3, atol=1e-5)
    resumed = two(train, f"{name}-resumed", *options, "--resume", str(run.work_dir / "iter_2.pth"))
    uninterrupted = run.scalars("loss")
    assert resumed.scalars("loss") == pytest.approx({step: uninterrupted[step] for step in (3, 4)}, rel=1e-6)


@pytest.mark.slow
def test_lora_under_zero3(train: Callable[..., Trained], tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    lora = ("huanhuan_lora", *FULL[1:])
    # DeepSpeed's runner here too: it draws the adapters' first weights from the same numbers.
    alone = train("lora-alone", *lora, "--deepspeed", "deepspeed_zero2", "train_dataloader.batch_size=2")
    before = load_file(tiny_base / "model.safetensors")
    expected = merged(alone, tiny_base, tmp_path / "alone")
    changed = {name for name in before if not torch.equal(before[name], expected[name])}
    assert changed
    assert all(".layers." in name and "norm" not in name for name in changed)
    run = train("lora-zero3", *lora, "--deepspeed", "deepspeed_zero3", "--nproc", "2")
    assert_same_curve(run, alone)
    whole = merged(run, tiny_base, tmp_path / "zero3")
    for tensor in expected:
        torch.testing.assert_close(whole[tensor], expected[tensor], rtol=1e-3, atol=1e-5)
