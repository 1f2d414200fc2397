"""Several processes that fail say so once each, and torchrun's own report does not bury it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from huanhuan.training.run_torchrun import failure_lines
from huanhuan.training.run_xtuner import DEBUG, TOLD, TRACEBACK

WORKER = """
import os, pathlib, signal, sys, time
from huanhuan.errors import UserError
from huanhuan.training import run_xtuner

def train():
    rank, case = os.environ["RANK"], os.environ["CASE"]
    pathlib.Path(f"worker-{rank}").write_text(str(os.getpid()))
    if case == "same":
        raise UserError("what both found")
    if case == "odd":
        # Together, or the first to fail would have the other one stopped.
        while len(list(pathlib.Path().glob("worker-*"))) < 2:
            time.sleep(0.001)
        raise ValueError("what nobody foresaw")
    if case == "killed" and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

run_xtuner._train = train
run_xtuner.main()
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "worker.py").write_text(WORKER, "utf-8")
    start = ["-m", "huanhuan.training.run_torchrun", "--standalone", "--nproc_per_node=2"]
    return [sys.executable, *start, str(tmp_path / "worker.py"), "--work-dir", str(tmp_path)]


def environment(case: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in (DEBUG, "TORCHELASTIC_ERROR_FILE")}
    return kept | {"CASE": case, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("same", ["错误 / error: what both found"]),
        ("odd", ["ValueError: what nobody foresaw"]),
        ("killed", ["process 1: 被信号 SIGKILL"]),
    ],
)
def test_errors_are_lines(command: list[str], tmp_path: Path, case: str, expected: list[str]) -> None:
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(case), capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == TOLD
    lines = result.stderr.splitlines()
    assert len(lines) == len(expected), result.stderr
    assert all(text in line and line.startswith("错误 / error: ") for text, line in zip(expected, lines, strict=True))
    assert bool(list(tmp_path.glob("error-*.log"))) == (case == "odd")


def test_the_processes_end_with_it(command: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(command, cwd=tmp_path, env=environment("wait"), stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("worker-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.2)
        running.terminate()
        _, told = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in told
    for file in tmp_path.glob("worker-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


def failure(folder: Path, rank: int, code: int, message: str = "") -> SimpleNamespace:
    """As torch's ``ProcessFailure`` is."""
    file = folder / f"{rank}.json"
    if message:
        file.touch()
    return SimpleNamespace(local_rank=rank, exitcode=code, error_file=str(file), message=message)


def test_an_error_met_by_several_is_one_line(tmp_path: Path) -> None:
    lines = [f"odd ({TRACEBACK} error-{rank}.log)" for rank in range(2)]
    failures = [failure(tmp_path, rank, TOLD, f"{line}\nmore of {rank}") for rank, line in enumerate(lines)]
    stopped = failure(tmp_path, 2, -signal.SIGTERM)
    assert failure_lines([stopped, *failures]) == [lines[0], "more of 0", "more of 1"]


def test_of_those_that_said_nothing_the_one_that_was_not_stopped_is_named(tmp_path: Path) -> None:
    (line,) = failure_lines([failure(tmp_path, 0, -signal.SIGTERM), failure(tmp_path, 1, -signal.SIGSEGV)])
    assert "process 1" in line and "SIGSEGV" in line
