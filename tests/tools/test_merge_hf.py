"""The command line: one folder out, or one line per problem and nothing written."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from huanhuan.paths import ROOT

Run = Callable[..., Result]

RECIPE = """
from peft import LoraConfig
from xtuner.model import SupervisedFinetune
pretrained_model_name_or_path = 'someone/tiny-internlm2'
model = dict(type=SupervisedFinetune, lora=dict(type=LoraConfig, r=4, lora_alpha=8, target_modules=['output']))
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_base: Path) -> Path:
    """A folder with a recipe and, where training leaves it, a checkpoint."""
    from safetensors.torch import load_file

    head = load_file(tiny_base / "model.safetensors")["output.weight"]
    name = "llm.base_model.model.output.lora_{}.default.weight"
    state = {name.format("A"): torch.ones(4, head.shape[1]), name.format("B"): torch.ones(head.shape[0], 4)}
    (tmp_path / "tiny_lora.py").write_text(RECIPE, "utf-8")
    work_dir = tmp_path / "work_dirs" / "tiny_lora"
    work_dir.mkdir(parents=True)
    torch.save({"state_dict": state, "meta": {}}, work_dir / "iter_3.pth")
    (work_dir / "last_checkpoint").write_text("/elsewhere/iter_3.pth", "utf-8")
    return tmp_path


@pytest.fixture
def merge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in ``folder``, inside this process: importing torch anew takes seconds."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    main = importlib.import_module("merge_hf").main
    return lambda *options: CliRunner().invoke(main, options)


def errors(result: Result) -> list[str]:
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("错误")]


def test_the_newest_checkpoint_becomes_a_model(merge: Run, folder: Path, tiny_base: Path) -> None:
    from safetensors.torch import load_file

    result = merge("tiny_lora.py", "--out", "merged", "--base", str(tiny_base))
    assert result.exit_code == 0, result.stderr
    assert "iter_3.pth" in result.stdout and "100%" in result.stderr
    before, after = (load_file(each / "model.safetensors") for each in (tiny_base, folder / "merged"))
    torch.testing.assert_close(after["output.weight"], before["output.weight"] + 8.0)
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    again = merge("tiny_lora.py", "--out", "merged", "--base", str(tiny_base))
    assert again.exit_code == 1 and "--overwrite" in errors(again)[0]


def test_the_adapter_needs_no_base(merge: Run, folder: Path) -> None:
    result = merge("tiny_lora.py", "--out", "adapter", "--adapter-only")
    assert result.exit_code == 0, result.stderr
    assert (folder / "adapter/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["absent.py"], "no such recipe"),
        (["tiny_lora.py", "--checkpoint", "iter_9.pth"], "iter_9.pth"),
        (["tiny_lora.py", "--work-dir", "nowhere"], "no checkpoint"),
        (["tiny_lora.py", "--base", "nowhere"], "config.json"),
        (["tiny_lora.py", "--max-shard-size", "big"], "2GB"),
        (["tiny_lora.py", "--cfg-options", "model.lora.r"], "key=value"),
        (["tiny_lora.py", "--cfg-options", "model.lora.r=9"], "rank 4, recipe r=9"),
    ],
)
def test_each_mistake_is_one_line_and_nothing_is_written(
    merge: Run, folder: Path, options: list[str], expected: str
) -> None:
    result = merge(*options, "--out", "out")
    assert result.exit_code == 1
    (line,) = errors(result)
    assert expected in line
    assert not (folder / "out").exists()
    assert not list(folder.glob(".out*"))


def test_a_damaged_checkpoint_is_one_line(merge: Run, folder: Path) -> None:
    path = folder / "work_dirs/tiny_lora/iter_3.pth"
    path.write_bytes(path.read_bytes()[:500])
    result = merge("tiny_lora.py", "--out", "out")
    assert result.exit_code == 1
    (line,) = errors(result)
    assert "iter_3.pth" in line and "damaged" in line
    assert not (folder / "out").exists()


def test_one_changed_bit_of_the_weights_is_found(merge: Run, folder: Path, tiny_base: Path) -> None:
    path = folder / "work_dirs/tiny_lora/iter_3.pth"
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(40).numpy().tobytes()) + 50] ^= 1
    path.write_bytes(content)
    for options in (["--adapter-only"], ["--base", str(tiny_base)]):
        result = merge("tiny_lora.py", "--out", "out", *options)
        assert result.exit_code == 1
        (line,) = errors(result)
        assert "iter_3.pth" in line and "damaged" in line
        assert not (folder / "out").exists()


def test_the_script_runs_from_any_folder(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/merge_hf.py")]
    shown = subprocess.run(
        [*command, "--help"], cwd=folder, capture_output=True, text=True, encoding="utf-8", check=True
    )
    for option in ("--out", "--checkpoint", "--base", "--adapter-only", "--overwrite", "--max-shard-size", "--dtype"):
        assert option in shown.stdout
    failed = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    assert failed.returncode == 2
