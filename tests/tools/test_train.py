"""tools/train.py as a user runs it: the real XTuner, on a tiny base, on the CPU."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from huanhuan.paths import CONFIGS, ROOT

TOOL = ROOT / "tools" / "train.py"
DEMO = "huanhuan_qlora_demo"
# The held-out loss falls for three steps of two packs, and then the learning rate is far too high.
RISING = """
from mmengine.config import read_base

with read_base():
    from .huanhuan_qlora_demo import *

from mmengine.optim import MultiStepLR

param_scheduler = [dict(type=MultiStepLR, milestones=[6], gamma=50, by_epoch=False)]
"""
# A checkpoint and a validation after each step.
OPTIONS = [
    "train_cfg.max_iters=16",
    "train_cfg.validations=8",
    "optim_wrapper.accumulative_counts=2",
    "optim_wrapper.optimizer.lr=1e-3",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.logger.interval=1",
    "log_processor.window_size=1",
    "model.lora.lora_dropout=0.1",
    "model.lora.r=4",
    "custom_hooks.0.starters=1",
    "custom_hooks.0.max_new_tokens=4",
    "custom_hooks.2.interval=2",
]

# What a CPU needs: its own arithmetic and no GPU kernels; everything else is the recipe's.
FLOAT32 = [
    "model.llm.torch_dtype=torch.float32",
    "model.llm.quantization_config.bnb_4bit_compute_dtype=torch.float32",
    "model.kernels=plain",
    "train_dataloader.dataset.max_length=256",
    "train_dataloader.dataset.pack_length=512",
    "train_dataloader.collate_fn.pad_to=None",
]
PROBE = """
import json
from bitsandbytes.nn import Linear4bit
from mmengine.hooks import Hook

class Probe(Hook):
    def after_train(self, runner):
        linears = [each for each in runner.model.modules() if isinstance(each, Linear4bit)]
        states = [each.weight.quant_state for each in linears]
        told = {
            "Linear4bit": len(linears),
            "nf4": sum(each.quant_type == "nf4" for each in states),
            "nested": sum(each.nested for each in states),
            "float32": sum(str(each.compute_dtype) == "torch.float32" for each in linears),
            "lora": sum(name.endswith("lora_B.default.weight") and bool(value.any())
                        for name, value in runner.model.named_parameters()),
        }
        with open("probe.json", "w") as file:
            json.dump(told, file)
"""


def environment_with(base: Path | str) -> dict[str, str]:
    # `xtuner` starts the `python` that PATH has.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"HUANHUAN_BASE": str(base), "PATH": path}


def run(arguments: Sequence[str], folder: Path, base: Path | str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *arguments]
    environment = environment_with(base) | more
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def scalars(work_dir: Path, name: str = "loss") -> dict[int, float]:
    """Values by step of the newest run in a work dir."""
    log = sorted(work_dir.glob("*/vis_data/scalars.json"))[-1]
    # The run may be writing the line after the last.
    lines = log.read_text("utf-8").rpartition("\n")[0].splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row[name] for row in rows if name in row}


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("错误")]


@pytest.fixture(scope="module")
def rising(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe RISING, beside copies of those it inherits from."""
    folder = tmp_path_factory.mktemp("recipes") / "configs"
    shutil.copytree(CONFIGS, folder)
    (folder / "rising.py").write_text(RISING, "utf-8")
    return str(folder / "rising.py")


@pytest.fixture(scope="module")
def trained(rising: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of a whole run, in a folder that is not the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    result = run([rising, *OPTIONS], folder, tiny_base)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "iter_16.pth" in result.stdout
    return folder / "work_dirs" / "rising"


def test_trains_and_logs_what_it_promises(trained: Path) -> None:
    assert sorted(scalars(trained)) == list(range(1, 17))
    (log,) = trained.glob("*/*.log")
    text = log.read_text("utf-8")
    assert "held_out/perplexity" in text
    assert "tokens_per_second" in text
    assert "% supervised" in text
    assert any(trained.glob("*/vis_data/events.out.tfevents.*"))


def test_the_best_checkpoint_is_that_of_the_lowest_held_out_loss(trained: Path) -> None:
    held_out = scalars(trained, "held_out/loss")
    assert sorted(held_out) == list(range(2, 17, 2))
    assert min(held_out, key=lambda step: held_out[step]) == 6, held_out
    assert [file.name for file in trained.glob("best_*")] == ["best_held_out_loss_iter_6.pth"]


@pytest.mark.slow
def test_a_run_killed_anywhere_goes_on_as_if_it_had_not_been(
    trained: Path, rising: str, tiny_base: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    arguments = [rising, "--work-dir", str(work), *OPTIONS]
    # A session of its own: its process group is what is killed.
    running = subprocess.Popen(
        [sys.executable, str(TOOL), *arguments],
        cwd=tmp_path,
        env=environment_with(tiny_base),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (kept := kept_step(work)) or max(scalars(work)) <= kept:
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    kept = kept_step(work)
    assert 4 <= kept < 16
    result = run([*arguments, "--resume"], tmp_path, tiny_base)
    assert result.returncode == 0, result.stderr[-3000:]
    whole = scalars(trained)
    assert scalars(work) == {step: whole[step] for step in range(kept + 1, 17)}


def kept_step(work_dir: Path) -> int:
    """The step of the checkpoint that a run has kept last, 0 before that of step 4."""
    pointer = work_dir / "last_checkpoint"
    named = re.search(r"iter_(\d+)\.pth$", pointer.read_text("utf-8")) if pointer.is_file() else None
    step = int(named[1]) if named else 0
    return step if step >= 4 else 0


@pytest.mark.slow
def test_xtuner_itself_resumes(trained: Path, rising: str, tiny_base: Path, tmp_path: Path) -> None:
    checkpoint = trained / "iter_14.pth"
    command = [str(Path(sys.executable).parent / "xtuner"), "train", rising]
    command += ["--work-dir", str(tmp_path / "work"), "--resume", str(checkpoint), "--cfg-options", *OPTIONS]
    environment = environment_with(tiny_base)
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert "Traceback" not in result.stderr, result.stderr[-3000:]
    whole = scalars(trained)
    assert scalars(tmp_path / "work") == {step: whole[step] for step in (15, 16)}


def test_a_loss_that_is_not_a_number_ends_the_run(tiny_base: Path, tmp_path: Path) -> None:
    # The recipe looks every ten steps; the checkpoint after the fourth would hold what came of the second.
    options = [*OPTIONS, "train_cfg.max_iters=12", "train_cfg.validations=1", "default_hooks.checkpoint.interval=4"]
    options += [
        "optim_wrapper.accumulative_counts=1",
        "optim_wrapper.optimizer.lr=1e30",
        "optim_wrapper.clip_grad=None",
    ]
    work = tmp_path / "work"
    result = run([DEMO, "--work-dir", str(work), *options], tmp_path, tiny_base)
    assert result.returncode == 1
    (line,) = errors(result)
    assert "step 2:" in line
    assert len(re.findall(r"train\.jsonl:\d+", line)) >= 4
    assert "Traceback" not in result.stderr
    logged = scalars(work)
    assert logged[1] == pytest.approx(6.0, abs=0.5) and math.isnan(logged[2])
    assert max(logged) == 3, "the run went on after the fourth step"
    assert not list(work.glob("*.pth"))


def test_an_error_under_torchrun_is_one_line(tiny_base: Path, tmp_path: Path) -> None:
    arguments = [DEMO, "--skip-check", "--launcher", "pytorch", *OPTIONS, "train_cfg.validations=0"]
    result = run(arguments, tmp_path, tiny_base)
    assert result.returncode == 1
    (line,) = errors(result)
    assert "train_cfg.validations" in line
    assert result.stderr.rstrip().endswith(line)
    assert "Traceback" not in result.stderr and "ChildFailedError" not in result.stderr


@pytest.mark.slow
def test_an_error_of_two_processes_is_one_line(tiny_base: Path, tmp_path: Path) -> None:
    arguments = [DEMO, "--skip-check", "--nproc", "2", *OPTIONS, "train_cfg.nonsense=1"]
    result = run(arguments, tmp_path, tiny_base)
    assert result.returncode == 1
    (line,) = errors(result)
    assert "TypeError" in line and "nonsense" in line
    log = Path(line.rpartition("traceback in ")[2].rstrip(")"))
    assert "Traceback" in log.read_text("utf-8")
    assert "Traceback" not in result.stderr and "ChildFailedError" not in result.stderr


@pytest.mark.slow
def test_a_node_without_checkpoints_of_its_own_succeeds(tiny_base: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [*OPTIONS, "train_cfg.max_iters=4", "train_cfg.validations=1"]
    variables = environment_with(tiny_base) | {"NNODES": "2", "PORT": str(port), "OMP_NUM_THREADS": "1"}
    nodes = []
    for rank in ("0", "1"):
        folder = tmp_path / rank
        folder.mkdir()
        command = [sys.executable, str(TOOL), DEMO, "--skip-check", *options]
        environment = variables | {"NODE_RANK": rank}
        nodes.append(
            subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    told = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told[1][-3000:]
    assert (tmp_path / "0" / "work_dirs" / DEMO / "iter_4.pth").is_file()
    assert not list(tmp_path.glob("1/work_dirs/*/*.pth"))


def test_the_recipe_for_7b_itself_trains_over_nf4_with_double_quantisation(tiny_base: Path, tmp_path: Path) -> None:
    replaced = ("train_cfg.", "default_hooks.", "custom_hooks.2")
    options = [*(each for each in OPTIONS if not each.startswith(replaced)), *FLOAT32]
    options += ["train_cfg.max_epochs=None", "train_cfg.max_iters=4", "train_cfg.min_steps=0"]
    options += ["train_cfg.validations=1", "custom_hooks.2.type=probe.Probe"]
    (tmp_path / "probe.py").write_text(PROBE, "utf-8")
    result = run(["huanhuan_qlora", *options], tmp_path, tiny_base, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    told = json.loads((tmp_path / "probe.json").read_text("utf-8"))
    # Five linear layers in each of two blocks; the head stays as it is.
    assert told == {"Linear4bit": 10, "nf4": 10, "nested": 10, "float32": 10, "lora": 10}
    assert (tmp_path / "work_dirs/huanhuan_qlora/iter_4.pth").is_file()


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
        (["huanhuan_qlora_demo", "--resume", "train_cfg.max_iters=6"], "no checkpoint to resume"),
        (["huanhuan_qlora_demo", "--resume", "gone.pth"], "gone.pth"),
        (["huanhuan_qlora_demo", "--resume", "cut.pth"], "damaged"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, tiny_base: Path, arguments: list[str], expected: str) -> None:
    (tmp_path / "cut.pth").write_bytes(b"PK")
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
