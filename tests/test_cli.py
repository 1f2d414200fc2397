"""What every tool does with errors and signals: one line, a true exit code, nothing left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from huanhuan.cli import SYSTEM_ADVICE, error_lines, tool
from huanhuan.errors import UserError
from huanhuan.paths import ROOT


def run(function: Callable[[], None], *arguments: str) -> Result:
    @tool()
    @click.option("--count", type=int, default=0)
    def main(count: int) -> None:
        """What the tool does."""
        function()

    return CliRunner().invoke(main, list(arguments))


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def test_a_process_of_somebody_else_ends_in_our_lines_too() -> None:
    code = "from huanhuan.cli import one_line_errors\nfrom huanhuan.errors import UserError\none_line_errors()\none_line_errors()\n"
    for raised, expected in (("UserError(['a: b', 'c: d'])", ["a: b", "c: d"]), ("ValueError('odd')", None)):
        command = [sys.executable, "-c", f"{code}raise {raised}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
        assert ended.returncode == 1
        if expected is None:
            assert "Traceback" in ended.stderr and "ValueError: odd" in ended.stderr
        else:
            assert ended.stderr.splitlines() == [f"错误 / error: {line}" for line in expected]


def test_a_function_that_returns_is_success() -> None:
    result = run(lambda: click.echo("done"))
    assert (result.exit_code, result.output) == (0, "done\n")


def test_every_problem_is_one_line_and_the_code_is_1() -> None:
    result = run(raising(UserError(["a: 一 / one: do this", "b: 二 / two: do that"])))
    assert result.exit_code == 1
    assert result.stderr == "错误 / error: a: 一 / one: do this\n错误 / error: b: 二 / two: do that\n"
    assert result.stdout == ""


@pytest.mark.parametrize("number", SYSTEM_ADVICE)
def test_an_error_of_the_system_names_the_path_and_the_way_out(number: int) -> None:
    result = run(raising(OSError(number, os.strerror(number), "out/train.jsonl")))
    assert result.exit_code == 1
    assert result.stderr == f"错误 / error: out/train.jsonl: {os.strerror(number)}: {SYSTEM_ADVICE[number]}\n"


def test_a_full_disk_and_a_size_limit_have_advice_of_their_own() -> None:
    assert "free some space" in SYSTEM_ADVICE[errno.ENOSPC]
    assert "ulimit -f" in SYSTEM_ADVICE[errno.EFBIG]


def test_an_error_nobody_foresaw_is_one_line_too() -> None:
    result = run(raising(ValueError("first\n  second " + "x" * 900)))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("错误 / error: ValueError: first second xxx")
    assert line.endswith("--debug for the traceback")
    assert len(line) < 520
    assert error_lines(ValueError())[0].startswith("ValueError: no message: ")


def test_a_package_that_is_missing_says_how_to_come_by_it() -> None:
    """What a beginner sees who starts a tool with the Python of the system."""
    (line,) = error_lines(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert line.startswith("torch: ") and sys.executable in line and "make setup" in line
    assert "--debug" in error_lines(ModuleNotFoundError("No module named 'x'", name="huanhuan.x"))[0]


def test_debug_shows_the_traceback() -> None:
    error = ValueError("odd")
    assert run(raising(error), "--debug").exception is error
    assert run(raising(UserError("said")), "--debug").exception.problems == ["said"]  # type: ignore[union-attr]


@pytest.mark.parametrize("arguments", [["--count", "many"], ["--unknown"], ["more"]])
def test_wrong_options_are_click_s_and_the_code_is_2(arguments: list[str]) -> None:
    result = run(lambda: None, *arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr


def test_click_s_own_errors_from_inside_keep_their_code() -> None:
    assert run(raising(click.UsageError("not so"))).exit_code == 2
    assert run(raising(click.exceptions.Exit(7))).exit_code == 7
    assert run(raising(SystemExit(5))).exit_code == 5


def test_ctrl_c_is_130() -> None:
    result = run(raising(KeyboardInterrupt()))
    assert (result.exit_code, result.stderr) == (130, "已中断 / interrupted\n")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str) -> None:
    result = run(lambda: None, option)
    assert result.exit_code == 0
    assert "What the tool does." in result.output
    assert "--debug" in result.output


PROGRAM = """
import signal, sys, time
from pathlib import Path
from huanhuan.cli import tool
from huanhuan.files import new_folder

@tool()
def main():
    with new_folder(Path(sys.argv.pop())) as folder:
        (folder / "half").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

main(args=[])
"""


def heed_signals() -> None:
    """Undo what ``nohup`` or a shell's ``&`` around the tests would hand down."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_tool_that_is_ended_from_outside_clears_up(tmp_path: Path, number: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "deep/out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert list((tmp_path / "deep").iterdir())
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == code
    assert len(told.splitlines()) == 1 and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored_and_what_was_there_comes_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    seen: list[object] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run(lambda: seen.extend((signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM))))
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert seen[0] is signal.SIG_IGN
    assert callable(seen[1]) or before[signal.SIGTERM] is not signal.SIG_DFL
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_second_signal_does_not_interrupt_the_clearing_up() -> None:
    left: list[str] = []

    def function() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            left.append("cleared")

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    result = run(function)
    assert (result.exit_code, result.stderr, left) == (143, "已终止 / terminated\n", ["cleared"])
