"""Which checkpoint is taken, what is wrong with one, and what torch may read from it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file

from huanhuan.errors import UserError
from huanhuan.training.checkpoints import allow_own_checkpoints, checkpoints, damage, newest_checkpoint


def save(path: Path, when: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"weight": torch.arange(500.0)}, "meta": {"seed": 1}}, path)
    if when:
        os.utime(path, (when, when))
    return path


def cut(path: Path, share: float = 0.7) -> Path:
    """Keep the beginning of a file, and the time it was written."""
    times = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    os.utime(path, (times.st_atime, times.st_mtime))
    return path


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7, 0.999])
def test_a_file_that_was_cut_off_is_damaged(tmp_path: Path, share: float) -> None:
    whole = save(tmp_path / "iter_1.pth")
    assert damage(whole) is None
    assert damage(cut(whole, share))


def test_a_file_overwritten_inside_is_damaged(tmp_path: Path) -> None:
    path = save(tmp_path / "iter_1.pth")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"state_dict", b"state_dikt", 1))
    assert damage(path)
    path.write_bytes(b"no checkpoint at all")
    assert damage(path)


def test_a_changed_byte_is_found_by_checksums(tmp_path: Path) -> None:
    path = save(tmp_path / "iter_1.pth")
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(500.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert damage(path) is None
    assert "data/0" in str(damage(path, checksums=True))


def test_the_newest_comes_first_and_last_checkpoint_before_it(tmp_path: Path) -> None:
    old, new = save(tmp_path / "iter_2.pth", 100), save(tmp_path / "iter_4.pth", 200)
    save(tmp_path / "best_held_out_loss_iter_2.pth", 300)
    assert checkpoints(tmp_path) == [new, old]
    (tmp_path / "last_checkpoint").write_text("/elsewhere/iter_2.pth", "utf-8")
    assert checkpoints(tmp_path) == [old, new]
    assert newest_checkpoint(tmp_path) == old
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_a_damaged_newest_names_the_older_whole_one(tmp_path: Path) -> None:
    old = save(tmp_path / "iter_2.pth", 100)
    for step in (4, 6):
        cut(save(tmp_path / f"iter_{step}.pth", 100 * step))
    with pytest.raises(UserError) as caught:
        newest_checkpoint(tmp_path)
    (line,) = caught.value.problems
    assert "iter_6.pth" in line and "damaged" in line
    assert f"{old}" in line and "--checkpoint" in line
    cut(old)
    # With no way out the reader of the checkpoint says what is wrong with it.
    assert newest_checkpoint(tmp_path) == tmp_path / "iter_6.pth"


def adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"weight": torch.arange(500.0)}, str(folder / "adapter_model.safetensors"))
    return folder


def test_a_folder_of_transformers_is_whole_or_not(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "checkpoint-4")
    save(folder / "optimizer.pt")
    assert damage(folder) is None
    cut(folder / "optimizer.pt")
    assert "optimizer.pt" in str(damage(folder))
    save(folder / "optimizer.pt")
    cut(folder / "adapter_model.safetensors")
    assert "adapter_model.safetensors" in str(damage(folder))
    (folder / "adapter_model.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"not json at all.")
    assert "adapter_model.safetensors" in str(damage(folder))
    (tmp_path / "checkpoint-6").mkdir()
    assert damage(tmp_path / "checkpoint-6")


def test_a_result_is_judged_without_what_lies_beside_it(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "run")
    cut(save(folder / "iter_1.pth"))
    assert damage(folder) is None


def test_a_shard_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, str(folder / "model-00001-of-00002.safetensors"))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    assert "model-00002-of-00002.safetensors" in str(damage(folder))
    save_file({"b": torch.ones(2)}, str(folder / "model-00002-of-00002.safetensors"))
    assert damage(folder) is None


@pytest.mark.parametrize("stage", [2, 3])
def test_a_process_whose_part_is_missing_is_named(tmp_path: Path, stage: int) -> None:
    folder = tmp_path / "iter_2.pth"
    for rank in range(3):
        save(folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            save(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage == 2:
        save(folder / "mp_rank_00_model_states.pt")
    assert damage(folder) is None
    (folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    assert "process 1" in str(damage(folder))
    save(folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt")
    if stage == 3:
        (folder / "zero_pp_rank_2_mp_rank_00_model_states.pt").unlink()
        assert "process 2" in str(damage(folder))
    else:
        cut(folder / "mp_rank_00_model_states.pt")
        assert "mp_rank_00_model_states.pt" in str(damage(folder))


@pytest.fixture
def restricted() -> Iterator[None]:
    """Torch's restricted loading as a fresh process has it; put back afterwards."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_torch_reads_the_log_in_our_checkpoints(tmp_path: Path, restricted: None) -> None:
    hub = MessageHub("test of a checkpoint")
    for loss in (3.0, 1.0):
        hub.update_scalar("train/loss", loss)
    hub.update_info("eta", numpy.float64(2.5))
    path = tmp_path / "iter_1.pth"
    torch.save({"meta": {"seed": 7}, "message_hub": hub.state_dict()}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    allow_own_checkpoints()
    loaded = torch.load(path, weights_only=True)
    buffer = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert (buffer.mean(), buffer.statistics("max"), buffer.current()) == (2.0, 3.0, 1.0)
    assert loaded["message_hub"]["runtime_info"]["eta"] == 2.5


class Reaches:
    """Unpickling it takes an attribute of an object, which restricted loading must not do."""

    def __init__(self, owner: Any, name: str) -> None:
        self.value = (owner, name)

    def __reduce__(self) -> Any:
        return getattr, self.value


@pytest.mark.parametrize(
    "reached", [Reaches(HistoryBuffer, "__init__"), Reaches(HistoryBuffer, "__globals__"), Reaches(torch.Tensor, "max")]
)
def test_nothing_else_is_reached_through_a_checkpoint(tmp_path: Path, restricted: None, reached: Reaches) -> None:
    allow_own_checkpoints()
    path = tmp_path / "iter_1.pth"
    torch.save({"found": reached}, path)
    with pytest.raises(pickle.UnpicklingError, match="getattr"):
        torch.load(path, weights_only=True)
