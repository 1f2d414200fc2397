"""tools/plot_training.py as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from huanhuan.paths import ROOT

TOOL = ROOT / "tools" / "plot_training.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False)


def test_draws_into_the_work_dir(tmp_path: Path) -> None:
    log = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    rows = [{"loss": 4.0 / step, "lr": 1e-4, "step": step} for step in range(1, 20)]
    rows += [{"held_out/loss": 2.5, "step": 10}, {"held_out/loss": 2.25, "step": 19}]
    log.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    result = run(str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "2.2500" in result.stdout
    assert "up to step 19" in result.stdout


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for arguments, told in (((str(tmp_path),), "scalars.json"), ((str(tmp_path), "--out", "a.gif"), ".svg")):
        result = run(*arguments)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert told in line
    assert list(tmp_path.iterdir()) == []
