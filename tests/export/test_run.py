"""The whole export needs little memory, whatever the model's size, and says how far it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from huanhuan.export.run import export
from huanhuan.export.weights import read_weights

# Merges each checkpoint of a list and prints how far anonymous memory, which no file backs, went up meanwhile.
MEASURE = r"""
import gc, json, re, sys, threading
from pathlib import Path
from huanhuan.export import weights
from huanhuan.export.run import export

# Small beside the model, as the real size is beside a real one.
weights.BLOCK_ELEMENTS = 2**17

def anonymous():
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def merge(base, recipe, checkpoint, out):
    export(Path(recipe), Path(out), checkpoint=checkpoint, base=Path(base), max_shard_size="8MB", progress=False)

jobs, rises = json.load(sys.stdin), []
merge(*jobs[0])  # imports whatever is needed
for job in jobs[1:]:
    gc.collect()
    before = peak = anonymous()
    done = threading.Event()
    def watch():
        global peak
        while not done.wait(0.001):
            peak = max(peak, anonymous())
    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(*job)
    done.set()
    watcher.join()
    rises.append(peak - before)
print(json.dumps(rises))
"""


@dataclass(frozen=True)
class Model:
    """A base and a recipe for full finetuning."""

    folder: Path
    recipe: Path

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every weight, under its name in the language model."""
        return {name: tensor.load() for name, tensor in read_weights(self.folder).tensors.items()}


@pytest.fixture
def large(tmp_path: Path) -> Model:
    """36 million weights, 144 MB, the largest of them 4 MB."""
    from huanhuan.training.tiny_base import build_random_base

    folder = build_random_base(tmp_path / "large", ["春风吹过长长的宫墙。"], hidden=640, layers=8)
    recipe = tmp_path / "full.py"
    recipe.write_text("pretrained_model_name_or_path = 'x'\nmodel = dict(type='M')\n", "utf-8")
    return Model(folder, recipe)


def checkpoints(model: Model, folder: Path, write_zero: Callable[..., Path]) -> Iterator[Path]:
    """The model as a plain checkpoint, and as ZeRO-2 and ZeRO-3 leave it, of two processes."""
    state = {f"llm.{name}": tensor for name, tensor in model.tensors.items()}
    torch.save({"state_dict": state, "meta": {}}, folder / "iter_1.pth")
    yield folder / "iter_1.pth"
    for stage in (2, 3):
        yield write_zero(folder / f"zero{stage}.pth", [state], stage, 2)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_model(
    large: Model,
    make_base: Callable[..., Path],
    train: Callable[..., Any],
    write_zero: Callable[..., Path],
    tmp_path: Path,
) -> None:
    size = sum(tensor.nbytes for tensor in large.tensors.values())
    assert size > 140e6
    small = train(make_base())
    jobs = [[make_base(), small.recipe, small.path.rename(tmp_path / "small.pth"), tmp_path / "small"]]
    kinds = {"full": large.recipe, "zero2": large.recipe, "zero3": large.recipe}
    for (kind, recipe), checkpoint in zip(kinds.items(), checkpoints(large, tmp_path, write_zero), strict=True):
        jobs.append([large.folder, recipe, checkpoint, tmp_path / kind])
    adapted = train(large.folder)
    jobs.append([large.folder, adapted.recipe, adapted.path, tmp_path / "lora"])
    result = subprocess.run(
        [sys.executable, "-c", MEASURE],
        input=json.dumps(jobs, default=str),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    rises = dict(zip([*kinds, "lora"], json.loads(result.stdout.splitlines()[-1]), strict=True))
    adapter = adapted.path.stat().st_size
    for kind, rise in rises.items():
        assert rise < 16e6 + (adapter if kind == "lora" else 0), rises
    before = large.tensors
    for kind in kinds:
        merged = read_weights(tmp_path / kind).tensors
        assert merged.keys() == before.keys()
        assert all(torch.equal(merged[name].load(), tensor) for name, tensor in before.items())


def test_a_bar_shows_how_far_it_is(
    make_base: Callable[..., Path], train: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base()
    trained = train(base)
    export(trained.recipe, tmp_path / "quiet", checkpoint=str(trained.path), base=base, progress=False)
    assert "merging" not in capsys.readouterr().err
    export(trained.recipe, tmp_path / "shown", checkpoint=str(trained.path), base=base)
    shown = capsys.readouterr().err
    assert "合并 / merging:   0%" in shown
    assert "合并 / merging: 100%" in shown
