"""What ``tools/train.py`` does around ``xtuner train``: check first, run, and believe only a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from huanhuan.errors import UserError
from huanhuan.paths import ROOT
from huanhuan.training.checkpoints import checkpoints, damage, written_at
from huanhuan.training.preflight import check
from huanhuan.training.recipe import find_recipe, load_recipe, options_without_effect, work_dir_of
from huanhuan.training.run_torchrun import ending
from huanhuan.training.run_xtuner import DEBUG, TOLD

# Number of processes, own number among them, and machines or processes on this one: what each launcher sets.
VARIABLES = {
    "slurm": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_NNODES"),
    "mpi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "pytorch": ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"),
}
# Seconds for a run to end in after it was asked to.
GRACE = 40
STARTERS = {"slurm": "srun", "mpi": "mpirun"}


@dataclass(frozen=True)
class Launch:
    """What to train and how; the fields are the options of ``tools/train.py``."""

    recipe: str
    overrides: tuple[str, ...] = ()
    work_dir: str | None = None
    deepspeed: str | None = None
    resume: str | None = None
    seed: int | None = None
    launcher: str = "none"
    nproc: int = 1
    check_only: bool = False
    skip_check: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from the one that runs this."""

    total: int
    nodes: int
    torchrun: bool
    """Whether they are still to be started, through torchrun; else this is one of them, or the only one."""
    first: bool
    """Whether the one that writes the checkpoints is among those of this command."""


def train(launch: Launch) -> Path | None:
    """Train; return the checkpoint that the run wrote, or None with ``check_only``.

    None also where another node writes the checkpoints, as mmengine does without DeepSpeed.

    Raises: UserError for everything the check finds, for a run that ended in an error, and for one that ended
    well but wrote no checkpoint; SystemExit for one that has said itself what is wrong.
    """
    processes = processes_of(launch)
    path = find_recipe(launch.recipe)
    recipe = load_recipe(path, launch.overrides)
    if launch.overrides:
        for note in options_without_effect(load_recipe(path).to_dict(), launch.overrides):
            click.echo(f"提示 / note: {note}", err=True)
    work_dir = work_dir_of(path, recipe, launch.work_dir)
    resume = checkpoint_to_resume(launch.resume, work_dir)
    if processes.nodes > 1:
        # From this variable, XTuner's own, the check learns how many machines there are.
        os.environ.setdefault("NNODES", str(processes.nodes))
    environment = dict(os.environ) | ({DEBUG: "1"} if launch.debug else {})
    # The code of this checkout trains, also where another one is installed.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if not launch.skip_check:
        environment |= check(path, recipe, work_dir, gpus=processes.total, deepspeed=launch.deepspeed)
    if launch.check_only:
        return None
    started = time.time()
    code = run(command(launch, path, work_dir, resume, processes), environment)
    if code == TOLD:
        raise SystemExit(1)
    if code:
        raise UserError(f"{path.name}: 训练失败 / training failed: {ending(code)}: 原因见上 / the reason stands above")
    if not (processes.first or uses_deepspeed(launch, recipe)):
        click.echo("训练结束，检查点由主节点写出 / trained; the main node writes the checkpoints")
        return None
    return _result(work_dir, started, resume)


def run(arguments: Sequence[str], environment: dict[str, str]) -> int:
    """The exit code of a command, which ends together with this process."""
    with subprocess.Popen(arguments, env=environment) as process:
        try:
            return process.wait()
        except BaseException:
            # torchrun takes its processes with it where it is asked to end, not where it is killed.
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def processes_of(launch: Launch) -> Processes:
    """How many processes train, by the options and by what the launcher has put into the environment.

    Raises: UserError if slurm or MPI is named but has not started this.
    """
    names = VARIABLES.get(launch.launcher, ())
    missing = next((name for name in names if name not in os.environ), None)
    if names and missing is None:
        total, rank, third = (int(os.environ[name]) for name in names)
        nodes = third if launch.launcher == "slurm" else -(-total // third)
        return Processes(total, nodes, torchrun=False, first=rank == 0)
    if launch.launcher in STARTERS:
        raise UserError(
            f"--launcher {launch.launcher}: 没有 {missing} / {missing} is not set: "
            f"用 {STARTERS[launch.launcher]} 启动，或用 --nproc / start with {STARTERS[launch.launcher]}, or use --nproc"
        )
    nodes = int(os.environ.get("NNODES", "1"))
    torchrun = launch.launcher == "pytorch" or nodes > 1 or launch.nproc > 1
    first = nodes == 1 or os.environ.get("NODE_RANK", "0") == "0"
    return Processes(launch.nproc * nodes, nodes, torchrun, first)


def uses_deepspeed(launch: Launch, recipe: Any) -> bool:
    """Whether every process writes its part of a checkpoint: DeepSpeed's, by the option or by the recipe."""
    arguments = recipe.get("training_args") or {}
    return bool(launch.deepspeed or recipe.get("strategy") or arguments.get("deepspeed"))


def checkpoint_to_resume(resume: str | None, work_dir: Path) -> Path | None:
    """The checkpoint that ``--resume`` names, or the newest whole one for ``latest``.

    Raises: UserError if it is not there or damaged.
    """
    if resume is None:
        return None
    if resume != "latest":
        path = Path(resume)
        if not path.exists():
            raise UserError(f"{resume}: 没有这个检查点 / no such checkpoint: check --resume")
        wrong = damage(path, checksums=True)
        if wrong is not None:
            raise UserError(
                f"{resume}: 检查点损坏 / damaged checkpoint ({wrong}): 只写 --resume 取最近的完好检查点 / "
                "--resume alone takes the newest whole one"
            )
        return path
    damaged: list[str] = []
    # What Transformers' Trainer leaves in the folder itself has no optimiser state.
    for path in (each for each in checkpoints(work_dir) if each != work_dir):
        wrong = damage(path, checksums=True)
        if wrong is None:
            for line in damaged:
                click.echo(f"提示 / note: {line}: 改从 {path.name} 继续 / resuming {path.name}", err=True)
            return path
        damaged.append(f"{path}: 检查点损坏 / damaged checkpoint ({wrong})")
    if damaged:
        raise UserError(
            [f"{line}: 没有完好的可继续 / no whole one to resume: train without --resume" for line in damaged]
        )
    raise UserError(f"{work_dir}: 没有可继续的检查点 / no checkpoint to resume: 去掉 --resume / train without --resume")


def _result(work_dir: Path, started: float, resume: Path | None) -> Path:
    """The checkpoint of a run that ended without an error.

    Raises: UserError if it wrote none, or a damaged one.
    """
    # Some file systems keep whole seconds only.
    written = next((each for each in checkpoints(work_dir) if written_at(each) >= started - 1), None)
    if written is None and resume is not None:
        click.echo(
            f"提示 / note: {resume.name}: 之前已训练到头 / trained to its end before, nothing was left", err=True
        )
        return resume
    if written is None:
        raise UserError(
            f"{work_dir}: 训练没有写出检查点 / the run wrote no checkpoint: 查看日志 / look at the log there"
        )
    wrong = damage(written)
    if wrong is not None:
        raise UserError(
            f"{written}: 写出的检查点损坏 / the checkpoint written is damaged ({wrong}): 检查磁盘 / check the disk"
        )
    return written


def command(launch: Launch, path: Path, work_dir: Path, resume: Path | None, processes: Processes) -> list[str]:
    """The command line, with the interpreter that runs now and torchrun for several processes."""
    arguments: list[str] = [str(path)]
    for option, value in (
        ("--work-dir", work_dir),
        ("--deepspeed", launch.deepspeed),
        ("--resume", resume),
        ("--seed", launch.seed),
    ):
        if value is not None:
            arguments += [option, str(value)]
    start = ["-m", "huanhuan.training.run_xtuner"]
    launcher = launch.launcher
    if processes.torchrun:
        torchrun = _torchrun_arguments(processes.nodes, launch.nproc)
        start = ["-m", "huanhuan.training.run_torchrun", *torchrun, *start]
        launcher = "pytorch"
    overrides = ["--cfg-options", *launch.overrides] if launch.overrides else []
    return [sys.executable, *start, *arguments, "--launcher", launcher, *overrides]


def _torchrun_arguments(nodes: int, processes: int) -> Sequence[str]:
    """The variables are those that XTuner reads: NNODES, NODE_RANK, ADDR, PORT."""
    if nodes == 1 and "PORT" not in os.environ:
        return [f"--nproc_per_node={processes}", "--standalone"]
    return [
        f"--nnodes={nodes}",
        f"--node_rank={os.environ.get('NODE_RANK', '0')}",
        f"--nproc_per_node={processes}",
        f"--master_addr={os.environ.get('ADDR', '127.0.0.1')}",
        f"--master_port={os.environ.get('PORT', '29500')}",
    ]
