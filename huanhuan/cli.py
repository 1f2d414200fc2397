"""What every command-line tool shares: --debug, one-line errors and exit codes that tell the truth."""

from __future__ import annotations

import errno
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from huanhuan.errors import UserError, os_error_line

SYSTEM_ADVICE = {
    errno.ENOSPC: "磁盘已满，请清理空间后重试 / the disk is full: free some space and run again",
    errno.EDQUOT: "磁盘配额已用完，请清理或换一个目录 / the disk quota is used up: free some space or choose another folder",
    errno.EFBIG: "超过了文件大小上限，见 ulimit -f / the file-size limit is reached: raise it with ulimit -f",
    errno.EROFS: "磁盘是只读的，请换一个目录 / the disk is read-only: choose another folder",
    errno.EACCES: "没有权限，请检查目录权限 / permission denied: check who owns it",
    errno.EPERM: "没有权限，请检查目录权限 / permission denied: check who owns it",
    errno.ENOENT: "不存在，请检查路径 / not found: check the path",
    errno.ENOTDIR: "路径中有一段是文件，请检查 / a part of the path is a file: check it",
    errno.ENAMETOOLONG: "名字太长，请换一个短的 / the name is too long: choose a shorter one",
}
# What ends a program from outside: kill, a container that stops, a terminal that closes.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(SystemExit):
    """Raised where the program stands when a signal of SIGNALS ends it, so that it clears up after itself."""


def error_lines(error: BaseException) -> list[str]:
    """The lines a user reads for an error, without a traceback."""
    if isinstance(error, UserError):
        return error.problems
    if isinstance(error, OSError):
        advice = SYSTEM_ADVICE.get(error.errno or 0, "请检查后重试 / check it and run again")
        return [os_error_line(error.filename or "system", error, advice)]
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("huanhuan"):
        return [
            f"{error.name}: 这个 Python 里没有安装，请运行 make setup，再用 .venv/bin/python / is not installed for "
            f"{sys.executable}: run make setup, then .venv/bin/python"
        ]
    text = " ".join(str(error).split()) or "no message"
    return [f"{type(error).__name__}: {text[:400]}: 加 --debug 查看详情 / run again with --debug for the traceback"]


def one_line_errors() -> None:
    """From now on a UserError that nobody catches ends this process with its lines instead of a traceback.

    For processes that we do not start ourselves, such as that of ``xtuner train``.
    """
    if sys.excepthook is not _say_user_error:
        _other_errors.append(sys.excepthook)
        sys.excepthook = _say_user_error


_other_errors: list[Callable[..., Any]] = []


def _say_user_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not isinstance(error, UserError):
        _other_errors[-1](kind, error, trace)
        return
    for line in error_lines(error):
        click.echo(f"错误 / error: {line}", err=True)


def tool(**settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command that ends with one line per error and a non-zero code instead of a traceback.

    ``settings`` go to ``click.command``; the function keeps its own options, and ``--debug`` is added.
    Exit codes: 0 when the function returns, 1 for an error, 2 for wrong options (click's own),
    130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @click.option("--debug", is_flag=True, help="出错时显示完整的调用栈 / show the traceback of an error.")
        @functools.wraps(function)
        def run(debug: bool, **options: Any) -> None:
            try:
                with _signals_raise():
                    function(**options)
            except (click.ClickException, click.exceptions.Exit):
                raise
            except Terminated as end:
                click.echo("已终止 / terminated", err=True)
                sys.exit(end.code)
            except KeyboardInterrupt:
                click.echo("已中断 / interrupted", err=True)
                sys.exit(130)
            except Exception as error:
                if debug:
                    raise
                for line in error_lines(error):
                    click.echo(f"错误 / error: {line}", err=True)
                sys.exit(1)

        settings.setdefault("context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 110})
        return click.command(**settings)(run)

    return decorate


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Inside, SIGNALS raise :class:`Terminated` instead of ending the process at once.

    A signal that somebody already handles or ignores (``nohup``) stays theirs, and only the main thread can
    change what a signal does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: object) -> None:
    # A second signal must not cut the clearing up short; SIGKILL still can.
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(128 + number)
