"""What ``tools/train.py`` does around ``xtuner train``: check first, run, and believe only a checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huanhuan.errors import UserError
from huanhuan.training.preflight import check
from huanhuan.training.recipe import find_recipe, load_recipe, newest_checkpoint, work_dir_of


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


def train(launch: Launch) -> Path | None:
    """Train; return the checkpoint that the run wrote, or None with ``check_only``.

    Raises: UserError for everything the check finds, for a run that ended in an error, and for one that ended
    well but wrote no checkpoint.
    """
    path = find_recipe(launch.recipe)
    recipe = load_recipe(path, launch.overrides)
    work_dir = work_dir_of(path, recipe, launch.work_dir)
    resume = _checkpoint_to_resume(launch.resume, work_dir)
    environment = dict(os.environ)
    if not launch.skip_check:
        environment |= check(path, recipe, work_dir, gpus=launch.nproc * _nodes(), deepspeed=launch.deepspeed)
    if launch.check_only:
        return None
    if resume is not None:
        # mmengine keeps its log in the checkpoint, functions included, which torch's restricted loading refuses.
        # It is the user's own file: _checkpoint_to_resume takes nothing from elsewhere without being told.
        environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    started = time.time()
    code = subprocess.run(_command(launch, path, resume), env=environment, check=False).returncode
    if code:
        raise UserError(
            f"{path.name}: 训练失败，退出码 {code} / training failed with exit code {code}: 原因见上 / the reason stands above"
        )
    written = newest_checkpoint(work_dir)
    if written is None or written.stat().st_mtime < started - 1:
        raise UserError(
            f"{work_dir}: 训练没有写出检查点 / the run wrote no checkpoint: 查看日志 / look at the log there"
        )
    return written


def _checkpoint_to_resume(resume: str | None, work_dir: Path) -> Path | None:
    if resume is None:
        return None
    if resume != "latest":
        if not Path(resume).exists():
            raise UserError(f"{resume}: 没有这个检查点 / no such checkpoint: check --resume")
        return Path(resume)
    newest = newest_checkpoint(work_dir)
    if newest is None:
        raise UserError(
            f"{work_dir}: 没有可继续的检查点 / no checkpoint to resume: 去掉 --resume / train without --resume"
        )
    return newest


def _command(launch: Launch, path: Path, resume: Path | None) -> list[str]:
    """The command line, with the interpreter that runs now and torchrun for several processes."""
    arguments: list[str] = [str(path)]
    for option, value in (
        ("--work-dir", launch.work_dir),
        ("--deepspeed", launch.deepspeed),
        ("--resume", resume),
        ("--seed", launch.seed),
    ):
        if value is not None:
            arguments += [option, str(value)]
    launcher = launch.launcher
    command = [sys.executable]
    nodes = _nodes()
    if launcher != "slurm" and (nodes > 1 or launch.nproc > 1):
        command += ["-m", "torch.distributed.run", *_torchrun_arguments(nodes, launch.nproc)]
        launcher = "pytorch"
    command += ["-m", "huanhuan.training.run_xtuner", *arguments, "--launcher", launcher]
    if launch.overrides:
        command += ["--cfg-options", *launch.overrides]
    return command


def _nodes() -> int:
    return int(os.environ.get("NNODES", "1"))


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
