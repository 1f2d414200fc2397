"""``tools/serve.py`` as a person starts it; what it starts is tested in ``tests/chat/test_server.py``."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-the-tests-01"


def tool(*arguments: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/serve.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "HUANHUAN_API_KEY": key, "COLUMNS": "100"},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("api", "--port", "99999"), 2, "99999 is not in the range"),
        (("api", "--behind-proxy", "--host", "0.0.0.0"), 1, "private address"),
        (("proxy", "127.0.0.1:23333", "http://127.0.0.1:1"), 1, "127.0.0.1:23333: "),
        (("proxy",), 2, "Missing argument"),
    ],
)
def test_a_wrong_option_of_the_tool_is_told(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = tool(*arguments)
    assert done.returncode == code and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    if arguments[0] == "api":
        assert "HUANHUAN_API_KEY" in tool("api", key="short").stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="LMDeploy runs here")
def test_without_a_gpu_the_tool_says_so_in_one_line(tiny_base: Path) -> None:
    done = tool("api", str(tiny_base))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no CUDA GPU here" in done.stderr


def test_the_examples_of_the_help_are_options_that_exist() -> None:
    """Every example ends with a command that the tool itself can parse, and shows a whole line."""
    for command in ("api", "proxy"):
        lines = [line.strip() for line in tool(command, "--help").stdout.splitlines() if "tools/serve.py" in line]
        assert lines
        for line in lines:
            if line.startswith("Usage"):
                continue
            arguments = shlex.split(line)
            arguments = arguments[arguments.index("tools/serve.py") + 1 :]
            assert arguments[0] == command
            parsed = _tool_commands()[command].make_context(command, arguments[1:])
            assert isinstance(parsed, click.Context)


def _tool_commands() -> Any:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return runpy.run_path(str(ROOT / "tools/serve.py"))["main"].commands
    finally:
        sys.path.remove(str(ROOT / "tools"))
