"""What is started, which processes are counted, and which checkpoint a run goes on from or must have written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from huanhuan.errors import UserError
from huanhuan.paths import ROOT
from huanhuan.training import launch
from huanhuan.training.launch import Launch, Processes, checkpoint_to_resume, command, processes_of, train
from huanhuan.training.run_xtuner import TOLD


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables, whatever machine the tests run on."""
    names = [name for each in launch.VARIABLES.values() for name in each]
    for name in (*names, "NODE_RANK", "ADDR", "PORT"):
        monkeypatch.delenv(name, raising=False)
    # Set first, so that what a launch sets itself is undone too.
    monkeypatch.setenv("NNODES", "1")
    monkeypatch.delenv("NNODES")


def save(path: Path, when: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"weight": torch.ones(300)}}, path)
    if when:
        os.utime(path, (when, when))
    return path


def cut(path: Path) -> Path:
    times = path.stat()
    path.write_bytes(path.read_bytes()[:900])
    os.utime(path, (times.st_atime, times.st_mtime))
    return path


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        ({}, {}, Processes(1, 1, torchrun=False, first=True)),
        ({"launcher": "pytorch"}, {}, Processes(1, 1, torchrun=True, first=True)),
        ({"nproc": 4}, {}, Processes(4, 1, torchrun=True, first=True)),
        ({"nproc": 8}, {"NNODES": "2"}, Processes(16, 2, torchrun=True, first=True)),
        ({"nproc": 8}, {"NNODES": "2", "NODE_RANK": "1"}, Processes(16, 2, torchrun=True, first=False)),
        (
            {"launcher": "slurm"},
            {"SLURM_NTASKS": "16", "SLURM_PROCID": "3", "SLURM_NNODES": "2"},
            Processes(16, 2, torchrun=False, first=False),
        ),
        (
            {"launcher": "mpi"},
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            Processes(4, 2, torchrun=False, first=True),
        ),
        # Already one of the processes that somebody's torchrun has started.
        (
            {"launcher": "pytorch"},
            {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            Processes(2, 1, torchrun=False, first=False),
        ),
    ],
)
def test_processes_are_counted_by_their_launcher(
    options: dict[str, Any], variables: dict[str, str], expected: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes_of(Launch("recipe", **options)) == expected


@pytest.mark.parametrize(("launcher", "variable"), [("slurm", "SLURM_NTASKS"), ("mpi", "OMPI_COMM_WORLD_SIZE")])
def test_a_launcher_that_has_not_started_this_is_one_line(launcher: str, variable: str) -> None:
    with pytest.raises(UserError) as caught:
        processes_of(Launch("recipe", launcher=launcher))
    (line,) = caught.value.problems
    assert variable in line


def test_torchrun_starts_one_process_too(tmp_path: Path) -> None:
    chosen = Launch("recipe", launcher="pytorch", overrides=("a=1",))
    started = command(chosen, Path("recipe.py"), tmp_path, None, processes_of(chosen))
    assert "huanhuan.training.run_torchrun" in started
    assert "--nproc_per_node=1" in started
    assert started[-4:] == ["--launcher", "pytorch", "--cfg-options", "a=1"]
    plain = command(Launch("recipe"), Path("recipe.py"), tmp_path, None, processes_of(Launch("recipe")))
    assert "huanhuan.training.run_torchrun" not in plain
    assert plain[-2:] == ["--launcher", "none"]


def test_the_newest_whole_checkpoint_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, newest = save(tmp_path / "iter_2.pth", 100), save(tmp_path / "iter_4.pth", 200)
    (tmp_path / "last_checkpoint").write_text(str(newest), "utf-8")
    assert checkpoint_to_resume("latest", tmp_path) == newest
    assert not capsys.readouterr().err
    cut(newest)
    assert checkpoint_to_resume("latest", tmp_path) == old
    (note,) = capsys.readouterr().err.splitlines()
    assert "iter_4.pth" in note and "damaged" in note and "iter_2.pth" in note


@pytest.mark.parametrize(("resume", "expected"), [("latest", "iter_4.pth"), ("iter_4.pth", "damaged")])
def test_a_damaged_checkpoint_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    cut(save(tmp_path / "iter_4.pth"))
    with pytest.raises(UserError) as caught:
        checkpoint_to_resume(resume, tmp_path)
    (line,) = caught.value.problems
    assert expected in line and "--resume" in line


def test_the_result_of_transformers_is_not_resumed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, str(tmp_path / "adapter_model.safetensors"))
    with pytest.raises(UserError, match="no checkpoint to resume"):
        checkpoint_to_resume("latest", tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    save_file({"weight": torch.ones(2)}, str(tmp_path / "checkpoint-3" / "adapter_model.safetensors"))
    assert checkpoint_to_resume("latest", tmp_path) == tmp_path / "checkpoint-3"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "little.py"
    path.write_text("pretrained_model_name_or_path = 'tiny-internlm2'\nmodel = dict()\n", "utf-8")
    return str(path)


class Run:
    """Stands for the training process: notes the command and writes checkpoints."""

    def __init__(self, code: int = 0, writes: Path | None = None) -> None:
        self.code, self.writes = code, writes
        self.command: list[str] = []
        self.environment: dict[str, str] = {}

    def __call__(self, arguments: list[str], environment: dict[str, str]) -> int:
        self.command, self.environment = arguments, environment
        if self.writes is not None:
            save(self.writes)
        return self.code


def start(monkeypatch: pytest.MonkeyPatch, run: Run, recipe: str, work_dir: Path, **options: Any) -> Path | None:
    monkeypatch.setattr(launch, "run", run)
    return train(Launch(recipe, work_dir=str(work_dir), skip_check=True, **options))


def test_only_a_checkpoint_of_this_run_counts(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    save(work / "iter_2.pth", 100)
    with pytest.raises(UserError, match="wrote no checkpoint"):
        start(monkeypatch, Run(), recipe, work)
    written = work / "iter_4.pth"
    assert start(monkeypatch, Run(writes=written), recipe, work) == written
    # Nothing is left to train where a finished run is resumed.
    os.utime(written, (200, 200))
    assert start(monkeypatch, Run(), recipe, work, resume="latest") == written


@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_the_code_of_this_checkout_trains(
    before: str | None, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if before:
        monkeypatch.setenv("PYTHONPATH", before)
    run = Run(writes=tmp_path / "work" / "iter_1.pth")
    start(monkeypatch, run, recipe, tmp_path / "work")
    assert run.environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), *([before] if before else [])]


def test_options_without_effect_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("max_epochs=5", "train_cfg.validation=2", "optim_wrapper.optimizer.lr=1e-4", "persona=a.toml")
    run = Run(writes=tmp_path / "iter_1.pth")
    start(monkeypatch, run, "huanhuan_qlora", tmp_path, overrides=options)
    first, second = capsys.readouterr().err.splitlines()
    assert "max_epochs: " in first and "no effect" in first and "did you mean train_cfg.max_epochs?" in first
    assert "not in the recipe" in second and "did you mean train_cfg.validations?" in second
    assert all(option in run.command for option in options)


def test_a_node_that_writes_no_checkpoints_needs_none(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("NODE_RANK", "1")
    run = Run()
    assert start(monkeypatch, run, recipe, tmp_path / "work") is None
    assert "--node_rank=1" in run.command
    with pytest.raises(UserError, match="wrote no checkpoint"):
        start(monkeypatch, Run(), recipe, tmp_path / "work", deepspeed="deepspeed_zero2")
    part = tmp_path / "work" / "iter_2.pth" / "zero_pp_rank_8_mp_rank_00_optim_states.pt"
    written = start(monkeypatch, Run(writes=part), recipe, tmp_path / "work", deepspeed="deepspeed_zero2")
    assert written == part.parent
    monkeypatch.setenv("NODE_RANK", "0")
    with pytest.raises(UserError, match="wrote no checkpoint"):
        start(monkeypatch, Run(), recipe, tmp_path / "elsewhere")


def test_what_has_been_said_is_not_said_again(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as told:
        start(monkeypatch, Run(TOLD), recipe, tmp_path)
    assert told.value.code == 1
    with pytest.raises(UserError, match="SIGKILL"):
        start(monkeypatch, Run(-signal.SIGKILL), recipe, tmp_path)


def test_the_check_counts_tasks_and_machines(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(name, value)
    seen: list[tuple[int, str]] = []

    def check(*_: Any, gpus: int, **__: Any) -> dict[str, str]:
        seen.append((gpus, os.environ["NNODES"]))
        return {}

    monkeypatch.setattr(launch, "check", check)
    assert train(Launch(recipe, work_dir=str(tmp_path), launcher="slurm", check_only=True)) is None
    assert seen == [(16, "2")]


def test_a_recipe_of_transformers_says_where_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huanhuan.export.recipe import load_recipe

    path = tmp_path / "little.py"
    text = "pretrained_model_name_or_path = 'tiny-internlm2'\nframework = 'huggingface'\nmodel = dict()\n"
    path.write_text(f"{text}training_args = dict(output_dir={str(tmp_path / 'out')!r})\n", "utf-8")
    run = Run(writes=tmp_path / "out" / "iter_1.pth")
    monkeypatch.setattr(launch, "run", run)
    assert train(Launch(str(path), skip_check=True)) == tmp_path / "out" / "iter_1.pth"
    assert run.command[run.command.index("--work-dir") + 1] == str(tmp_path / "out")
    assert load_recipe(path).work_dirs == (tmp_path / "out",)


CHILD = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1], "ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(60)
"""
PARENT = """
import os, sys
from huanhuan.cli import tool
from huanhuan.training.launch import run
tool()(lambda: run([sys.executable, "-c", os.environ["CHILD"], os.environ["FOLDER"]], dict(os.environ)))(args=[])
"""


def test_training_ends_when_its_starter_is_ended(tmp_path: Path) -> None:
    environment = os.environ | {"CHILD": CHILD, "FOLDER": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", PARENT], env=environment) as parent:
        for _ in range(600):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.1)
        parent.terminate()
        assert parent.wait(30) != 0
    assert (tmp_path / "ended").exists()
