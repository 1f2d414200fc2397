"""A checkpoint is whole or not there, and the best one is never missing."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner import runner as mmengine_runner

from huanhuan.errors import UserError
from huanhuan.training import saving
from huanhuan.training.saving import WholeCheckpointHook, write_checkpoint


def test_it_is_written_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "work" / "iter_1.pth"
    write_checkpoint({"weight": torch.ones(3)}, str(path), backend_args=None)
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.ones(3))
    assert [each.name for each in path.parent.iterdir()] == ["iter_1.pth"]


LIMITED = """
import resource, sys, torch
from huanhuan.errors import UserError
from huanhuan.training.saving import write_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint({"weight": torch.ones(1_000_000)}, sys.argv[1])
except UserError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    write_checkpoint({"weight": torch.zeros(2)}, str(path))
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, result.stderr
    # DeepSpeed's import says on standard output that there is no GPU.
    line = result.stdout.splitlines()[-1]
    assert line.startswith(f"{path}: ") and "File too large" in line and "--resume" in line
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.zeros(2))
    assert [each.name for each in tmp_path.iterdir()] == ["iter_1.pth"]


class Runner:
    """What the hook touches of a runner; it saves its step's number."""

    def __init__(self, folder: Path, name: str) -> None:
        self.work_dir, self.iter, self.epoch = str(folder), 0, 0
        self.message_hub = MessageHub.get_instance(name)
        self.logger = SimpleNamespace(info=lambda text: None)
        self.seen: list[list[str]] = []

    def save_checkpoint(self, folder: str, filename: str, *_: Any, **__: Any) -> None:
        """As mmengine's, through the function that the hook puts in its place."""
        mmengine_runner.save_checkpoint({"iter": self.iter}, str(Path(folder) / filename))
        self.seen.append(sorted(each.name for each in Path(folder).glob("best_*")))


@pytest.fixture
def hook(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[WholeCheckpointHook, Runner]:
    built = WholeCheckpointHook(by_epoch=False, interval=100, save_best="held_out/loss", rule="less")
    runner = Runner(tmp_path, request.node.name)
    built.before_train(runner)
    return built, runner


def test_the_best_one_goes_when_its_successor_has_come(hook: tuple[WholeCheckpointHook, Runner]) -> None:
    saver, runner = hook
    for step, loss in ((2, 3.0), (4, 2.0), (6, 2.5), (8, 1.0)):
        runner.iter = step
        saver.after_val_epoch(runner, {"held_out/loss": loss})
    one, two, three = (f"best_held_out_loss_iter_{step}.pth" for step in (2, 4, 8))
    assert runner.seen == [[one], [one, two], [two, three]]
    assert [each.name for each in Path(runner.work_dir).glob("best_*")] == [three]
    assert mmengine_runner.save_checkpoint is not write_checkpoint


def test_without_a_best_one_a_validation_writes_nothing(tmp_path: Path) -> None:
    saver, runner = WholeCheckpointHook(by_epoch=False, interval=100), Runner(tmp_path, "none")
    saver.before_train(runner)
    saver.after_val_epoch(runner, {"held_out/loss": 3.0})
    assert not list(tmp_path.iterdir())


def test_one_that_cannot_be_written_leaves_the_best_one(
    hook: tuple[WholeCheckpointHook, Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, runner = hook
    runner.iter = 2
    saver.after_val_epoch(runner, {"held_out/loss": 3.0})

    def full(checkpoint: Any, part: Any) -> None:
        part.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving.torch, "save", full)
    runner.iter = 4
    with pytest.raises(UserError, match="iter_4"):
        saver.after_val_epoch(runner, {"held_out/loss": 2.0})
    assert [each.name for each in Path(runner.work_dir).iterdir()] == ["best_held_out_loss_iter_2.pth"]
    assert mmengine_runner.save_checkpoint is not write_checkpoint
