"""Which checkpoint is taken, and that reading one runs nothing of it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from huanhuan.errors import UserError
from huanhuan.export.checkpoint import find_checkpoint, load_checkpoint, plain_name


def touch(path: Path, when: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (when, when))
    return path


def test_newest_is_what_training_says_was_written_last(tmp_path: Path) -> None:
    touch(tmp_path / "iter_20.pth", 200)
    named = touch(tmp_path / "iter_10.pth", 100)
    (tmp_path / "last_checkpoint").write_text("/somewhere/else/iter_10.pth", "utf-8")
    assert find_checkpoint([tmp_path]) == named


def test_newest_without_a_pointer_is_the_one_written_last(tmp_path: Path) -> None:
    touch(tmp_path / "iter_900.pth", 100)
    newest = touch(tmp_path / "epoch_1.pth", 200)
    touch(tmp_path / "best_held_out_loss_iter_5.pth", 300)
    (tmp_path / "last_checkpoint").write_text("gone.pth", "utf-8")
    assert find_checkpoint([tmp_path / "absent", tmp_path]) == newest


def test_equal_times_are_told_apart_by_number(tmp_path: Path) -> None:
    touch(tmp_path / "iter_9.pth", 100)
    assert find_checkpoint([tmp_path, touch(tmp_path / "iter_10.pth", 100).parent]).name == "iter_10.pth"


def test_a_name_a_path_and_best(tmp_path: Path) -> None:
    named, best = touch(tmp_path / "iter_1.pth", 1), touch(tmp_path / "best_held_out_loss_iter_5.pth", 2)
    assert find_checkpoint([tmp_path], "iter_1.pth") == named
    assert find_checkpoint([], str(named)) == named
    assert find_checkpoint([tmp_path], "best") == best


def test_best_of_transformers_trainer_is_what_its_newest_notes_name(tmp_path: Path) -> None:
    for step, best, when in ((2, 2, 200), (4, 2, 400), (10, 4, 300)):
        notes = touch(tmp_path / f"checkpoint-{step}" / "trainer_state.json", when)
        notes.write_text(json.dumps({"best_model_checkpoint": f"/elsewhere/run/checkpoint-{best}"}), "utf-8")
        os.utime(notes, (when, when))
    assert find_checkpoint([tmp_path], "best") == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-2").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint([tmp_path], "best")


@pytest.mark.parametrize("wanted", [None, "best", "iter_3.pth"])
def test_nothing_found_is_one_line(tmp_path: Path, wanted: str | None) -> None:
    with pytest.raises(UserError) as caught:
        find_checkpoint([tmp_path / "work"], wanted)
    (line,) = caught.value.problems
    assert "--checkpoint" in line and "\n" not in line


CALLS: list[str] = []


def hit(word: str) -> None:
    """What an attacker's checkpoint would have called."""
    CALLS.append(word)


class Spy:
    """Unpickling it calls :func:`hit`."""

    def __reduce__(self) -> Any:
        return (hit, ("called",))


def test_nothing_of_a_checkpoint_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"state_dict": {"llm.output.weight": weight}, "message_hub": Spy(), "meta": {"a": Spy()}}, path)
    loaded = load_checkpoint(path)
    assert not CALLS
    assert torch.equal(loaded.tensors["output.weight"].load(), weight)
    # The same file does call it when it is read without care.
    torch.load(path, weights_only=False)
    assert CALLS == ["called", "called"]


def test_system_calls_are_refused(tmp_path: Path) -> None:
    class Shell:
        def __reduce__(self) -> Any:
            return (os.system, ("echo never",))

    torch.save({"state_dict": {"llm.output.weight": torch.ones(1)}, "x": Shell()}, tmp_path / "iter_1.pth")
    with pytest.raises(UserError, match="system"):
        load_checkpoint(tmp_path / "iter_1.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"a": 1})])
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "iter_1.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    (line,) = caught.value.problems
    assert str(path) in line and "\n" not in line


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_one_line(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {"llm.output.weight": torch.ones(1000)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


def test_an_empty_folder_and_a_file_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"_optim_states\.pt"):
        load_checkpoint(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "iter_1.pth")
    with pytest.raises(UserError, match="no weights"):
        load_checkpoint(tmp_path / "iter_1.pth")


def test_names_lose_what_training_wraps_around_the_model() -> None:
    assert plain_name("module.llm.model.norm.weight") == "model.norm.weight"
    assert plain_name("llm._orig_mod.model.norm.weight") == "model.norm.weight"
    assert plain_name("llm.model.layers.1._checkpoint_wrapped_module.attention.wo.weight") == (
        "model.layers.1.attention.wo.weight"
    )
