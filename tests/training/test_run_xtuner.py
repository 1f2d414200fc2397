"""An error of a training process is one line, and its traceback is kept."""

from __future__ import annotations

import errno
import json
import os
import pickle
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from huanhuan.errors import UserError
from huanhuan.training import run_xtuner
from huanhuan.training.run_xtuner import TOLD, lines_of, main


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[BaseException]:
    """Errors that training is to raise, the last one next; the work dir is ``tmp_path``."""
    errors: list[BaseException] = []

    def fail() -> NoReturn:
        raise errors.pop()

    def end(code: int) -> NoReturn:
        raise Ended(code)

    monkeypatch.setattr(run_xtuner, "_train", fail)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "argv", ["run_xtuner", "recipe.py", "--work-dir", str(tmp_path)])
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.delenv(run_xtuner.DEBUG, raising=False)
    return errors


def test_the_lines_of_an_error_and_no_more(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failing.append(UserError(["one", "two"]))
    with pytest.raises(Ended, match=str(TOLD)):
        main()
    assert capsys.readouterr().err == "错误 / error: one\n错误 / error: two\n"
    assert not list(tmp_path.iterdir())


def test_an_unforeseen_error_keeps_its_traceback_in_a_file(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failing.append(ValueError("something\nodd"))
    with pytest.raises(Ended, match=str(TOLD)):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    (log,) = tmp_path.glob("error-*.log")
    assert "ValueError: something odd" in line
    assert str(log) in line
    assert "Traceback" in log.read_text("utf-8")


def test_debug_shows_the_traceback(failing: list[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run_xtuner.DEBUG, "1")
    failing.append(ValueError("odd"))
    with pytest.raises(ValueError, match="odd"):
        main()


def test_an_interrupt_is_no_error(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(KeyboardInterrupt())
    with pytest.raises(Ended, match="130"):
        main()
    assert not capsys.readouterr().err


def test_under_torchrun_the_lines_are_left_to_it(
    failing: list[BaseException],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "told.json"))
    failing.append(UserError(["one", "two"]))
    with pytest.raises(Ended, match=str(TOLD)):
        main()
    assert not capsys.readouterr().err
    assert json.loads((tmp_path / "told.json").read_text("utf-8"))["message"] == "one\ntwo"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "iter_2.pth"), "iter_2.pth"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), "tools/plan.py"),
        (pickle.UnpicklingError("load without care\nWeightsUnpickler error: Unsupported global: a.b"), "a.b"),
    ],
)
def test_what_a_user_can_do_is_said(tmp_path: Path, error: Exception, expected: str) -> None:
    (line,) = lines_of(error, tmp_path)
    assert expected in line
    assert "without care" not in line
    assert "\n" not in line


def test_without_a_work_dir_the_traceback_goes_elsewhere(tmp_path: Path) -> None:
    (line,) = lines_of(ValueError("odd"), tmp_path / "not made yet")
    named = Path(line.rpartition("traceback in ")[2].rstrip(")"))
    assert "ValueError: odd" in named.read_text("utf-8")
    named.unlink()
    assert not (tmp_path / "not made yet").exists()
