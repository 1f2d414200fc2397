"""tools/make_tiny_base.py as a user runs it: on the sample script, with a pretraining of two steps."""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors import SafetensorError

from huanhuan.paths import DATA, ROOT

TOOL = ROOT / "tools" / "make_tiny_base.py"
QUICK = ("--steps", "2")
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the command in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    command = importlib.import_module("make_tiny_base").main

    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(command, [str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base made by the script itself, from a folder that is not the checkout."""
    out = tmp_path_factory.mktemp("models") / "tiny"
    command = [sys.executable, str(TOOL), *QUICK, "--out", str(out)]
    result = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "made" in result.stdout
    return out


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}


def without_time_of_config(files: dict[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
    return files | {"config.json": (0, files["config.json"][1])}


def one_error(result: Result) -> str:
    """The only line of error; everything else must have gone well."""
    errors = [line for line in result.output.splitlines() if line.startswith("错误")]
    assert result.exit_code == 1
    assert len(errors) == 1, result.output
    assert "Traceback" not in result.output
    return errors[0]


def test_makes_an_internlm2_of_one_to_eight_million_weights(made: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made, trust_remote_code=True)
    assert type(model).__name__ == "InternLM2ForCausalLM"
    assert 1e6 <= model.num_parameters() <= 8e6
    assert [path.name for path in made.parent.iterdir()] == ["tiny"], "something is left beside the folder"


def test_same_inputs_are_not_made_again_and_make_takes_the_base_as_new(made: Path, run: Run) -> None:
    for more in ((), ("--overwrite",)):
        os.utime(made / "config.json", (1, 1))
        before = state(made)
        result = run(*QUICK, "--out", made, *more)
        assert result.exit_code == 0, result.output
        assert "up to date" in result.output
        assert without_time_of_config(state(made)) == without_time_of_config(before)
        assert time.time() - (made / "config.json").stat().st_mtime < 100


def test_an_incomplete_folder_is_made_again(made: Path, run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(made, broken)
    (broken / "model.safetensors").unlink()
    assert "--overwrite" in one_error(run(*QUICK, "--out", broken))
    result = run(*QUICK, "--out", broken, "--overwrite")
    assert result.exit_code == 0, result.output
    assert (broken / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


@pytest.mark.parametrize("changed", [("--steps", "3"), ("--seed", "1")])
def test_other_settings_need_overwrite(made: Path, run: Run, changed: Sequence[str]) -> None:
    before = state(made)
    assert "--overwrite" in one_error(run(*QUICK, *changed, "--out", made))
    assert state(made) == before


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["notes.txt", "huanhuan.json"])
def test_a_folder_of_something_else_is_left_alone(run: Run, tmp_path: Path, more: Sequence[str], name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert "choose another folder" in one_error(run(*QUICK, "--out", tmp_path, *more))
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_link_to_a_base_is_followed(made: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "disk/base")
    (tmp_path / "out").symlink_to("disk/base")
    result = run("--steps", "1", "--out", tmp_path / "out", "--overwrite")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out").is_symlink()
    receipt = json.loads((tmp_path / "disk/base/tiny_base.json").read_text("utf-8"))
    assert receipt["settings"]["pretrain"]["steps"] == 1
    assert {path.name for path in (*tmp_path.iterdir(), *(tmp_path / "disk").iterdir())} == {"disk", "out", "base"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--script", "no/such/script"), "no/such/script"),
        (("--persona", "no/such.toml"), "no/such.toml"),
        (("--data", "no/such/data"), "dialogue_to_jsonl"),
    ],
)
def test_missing_input_is_one_line_and_writes_nothing(
    run: Run, tmp_path: Path, arguments: Sequence[str], said: str
) -> None:
    assert said in one_error(run(*QUICK, *arguments, "--out", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_data_of_another_script_names_every_record(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text("甲：你是谁？\n甄嬛：我是甄嬛。\n", "utf-8")
    result = run(*QUICK, "--script", script, "--out", tmp_path / "out")
    records = sum(
        1
        for name in ("train.jsonl", "val.jsonl")
        for line in (DATA / "huanhuan" / name).read_text("utf-8").splitlines()
        if json.loads(line)["source"]["file"] != "persona.toml"
    )
    assert result.exit_code == 1
    assert result.output.count("is not in this script") == records
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]\n", "train.jsonl:1: "),
        (b'{"conversation": []}\n', "train.jsonl:1: [conversation] "),
        (b"5\n", "train.jsonl: "),
        (b'{"conversation": [{"input": "a", "output": "b"}]}\n', "train.jsonl:1: [source] "),
        (b'{"conversation": [{"input": "a", "output": "b"}], "source": "a.txt"}\n', "train.jsonl:1: [source] "),
        (
            b'{"conversation": [{"input": "a", "output": "b"}], "source": {"file": "a.txt", "lines": ["1"]}}\n',
            "train.jsonl:1: [source] ",
        ),
        ('{"conversation": [{"input": "问", "output": "答"}]}\n'.encode("gb18030"), "train.jsonl:1: "),
        ('{"conversation": [{"input": "问", "output": "答"}]}\n'.encode("utf-16"), "train.jsonl: "),
    ],
)
def test_a_faulty_training_file_is_one_line(run: Run, tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_bytes(content)
    (tmp_path / "data/val.jsonl").write_bytes(b"")
    line = one_error(run(*QUICK, "--data", tmp_path / "data", "--out", tmp_path / "out"))
    assert f"{tmp_path / 'data'}/{said}" in line
    assert "Error" not in line
    assert line.count(": ") >= 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "\n\n", "雪下了一夜。\n天亮时停了。\n"])
def test_a_script_in_which_nobody_speaks_is_one_line(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.txt").write_text(content, "utf-8")
    line = one_error(run(*QUICK, "--script", tmp_path / "empty.txt", "--out", tmp_path / "out"))
    assert "empty.txt" in line
    assert "the script is empty" in line
    assert "--script" in line
    assert not (tmp_path / "out").exists()


def test_full_disk_is_noticed_before_training(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 0))
    assert "free some space" in one_error(run(*QUICK, "--out", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [1 << 10, 64 << 10, 1 << 20])
def test_a_file_size_limit_is_one_line(run: Run, tmp_path: Path, limit: int) -> None:
    """Hit by the tokenizer's model, by what the tokenizers library writes, and by the weights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        line = one_error(run("--steps", "1", "--out", tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert line.startswith(f"错误 / error: {tmp_path / 'out'}: ")
    assert "File too large" in line and "free some space" in line
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_while_saving(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    def no_space(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", no_space)
    line = one_error(run(*QUICK, "--out", tmp_path / "out"))
    assert "No space left" in line
    assert "free some space" in line
    assert list(tmp_path.iterdir()) == []
