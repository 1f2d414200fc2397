"""What every command-line tool shares: --debug, one-line errors and exit codes that tell the truth."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from huanhuan.errors import UserError, os_error_line

SYSTEM_ADVICE = {
    errno.ENOSPC: "磁盘已满，请清理空间后重试 / the disk is full: free some space and run again",
    errno.EACCES: "没有权限，请检查目录权限 / permission denied: check who owns it",
    errno.ENOENT: "不存在，请检查路径 / not found: check the path",
}


def error_lines(error: BaseException) -> list[str]:
    """The lines a user reads for an error, without a traceback."""
    if isinstance(error, UserError):
        return error.problems
    if isinstance(error, OSError):
        advice = SYSTEM_ADVICE.get(error.errno or 0, "请检查后重试 / check it and run again")
        return [os_error_line(error.filename or "system", error, advice)]
    text = " ".join(str(error).split()) or "no message"
    return [f"{type(error).__name__}: {text[:400]}: 加 --debug 查看详情 / run again with --debug for the traceback"]


def tool(**settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command that ends with one line per error and a non-zero code instead of a traceback.

    ``settings`` go to ``click.command``; the function keeps its own options, and ``--debug`` is added.
    Exit codes: 0 when the function returns, 1 for an error, 2 for wrong options (click's own),
    130 after Ctrl-C.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @click.option("--debug", is_flag=True, help="出错时显示完整的调用栈 / show the traceback of an error.")
        @functools.wraps(function)
        def run(debug: bool, **options: Any) -> None:
            try:
                function(**options)
            except (click.ClickException, click.exceptions.Exit):
                raise
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
