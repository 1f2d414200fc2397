"""Checkpoints that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import CheckpointHook
from mmengine.runner import runner as mmengine_runner

from huanhuan.errors import UserError, os_error_line

ADVICE = (
    "清理磁盘，再用 --resume 从上一个检查点继续 / free some space, then --resume the last checkpoint; "
    "max_keep_ckpts=1 保留得更少 / keeps fewer"
)


class WholeCheckpointHook(CheckpointHook):
    """mmengine's hook, which writes in place and removes the best checkpoint before the new one is there.

    Here a checkpoint is written beside its place and renamed, straight to the disk (mmengine makes two copies of it in
    memory first), and the best one goes when its successor has come. DeepSpeed writes its folders itself.
    """

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        with _written_whole():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        if not self.save_best:
            return
        outdated = _Outdated(self.file_backend)
        self.file_backend = outdated
        try:
            with _written_whole():
                super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = outdated.backend
        outdated.remove_all(kept=str(self.best_ckpt_path))


class _Outdated:
    """A file backend that only remembers what it is told to remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._files: list[str] = []
        self._folders: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Later."""
        self._files.append(str(path))

    def rmtree(self, path: str) -> None:
        """Later."""
        self._folders.append(str(path))

    def remove_all(self, kept: str) -> None:
        """Now, but for ``kept``: a step that is best again has written there."""
        for path in self._files:
            if path != kept:
                self.backend.remove(path)
        for path in self._folders:
            if path != kept:
                self.backend.rmtree(path)


@contextmanager
def _written_whole() -> Iterator[None]:
    theirs: Any = mmengine_runner.save_checkpoint
    mmengine_runner.save_checkpoint = write_checkpoint
    try:
        yield
    finally:
        mmengine_runner.save_checkpoint = theirs


def write_checkpoint(checkpoint: dict[str, Any], filename: str, **_: Any) -> None:
    """Write ``checkpoint`` beside ``filename`` and rename it into place, so that no part of one is ever there.

    Raises: UserError if the disk does not take it.
    """
    path = Path(filename)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save(checkpoint, file)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        # PyTorch's writer complains of a wrong position; why stands behind that.
        behind = error if isinstance(error, OSError) else error.__context__
        reason = behind if isinstance(behind, OSError) else OSError(" ".join(str(error).split())[:160])
        raise UserError(os_error_line(path, reason, ADVICE)) from error
    finally:
        part.unlink(missing_ok=True)
