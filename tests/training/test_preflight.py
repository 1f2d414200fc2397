"""What is checked before training starts: the base's files, the work dir and the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub

from huanhuan.errors import UserError
from huanhuan.training import base
from huanhuan.training.memory import SHAPES
from huanhuan.training.plan import shape_in
from huanhuan.training.plan_recipe import Length, Recipe
from huanhuan.training.preflight import check, checkpoint_space, kept_checkpoints
from huanhuan.training.recipe import find_recipe, load_recipe

LONG, SHORT = Length(1000, 1000, 10, 6), Length(30, 30, 10, 6)


def read(recipe: str, *overrides: str) -> Recipe:
    return Recipe.read(find_recipe(recipe), overrides)


@pytest.mark.parametrize(
    ("recipe", "length", "kept"),
    [
        ("huanhuan_lora", LONG, (2, 1)),
        ("huanhuan_lora", SHORT, (1, 1)),
        ("huanhuan_lora default_hooks.checkpoint.max_keep_ckpts=5", LONG, (5, 1)),
        # All of them: five by the interval, and one for each new best.
        ("huanhuan_lora default_hooks.checkpoint.max_keep_ckpts=-1", LONG, (11, 1)),
        ("huanhuan_lora default_hooks.checkpoint.save_best=None", LONG, (2, 0)),
        ("huanhuan_lora default_hooks.checkpoint.by_epoch=True", LONG, (1, 1)),
        # Transformers removes the oldest after it has written the newest.
        ("huanhuan_lora_transformers", LONG, (3, 1)),
        ("huanhuan_lora_transformers", SHORT, (1, 1)),
        ("huanhuan_lora_transformers training_args.save_total_limit=None", LONG, (5, 1)),
        ("huanhuan_lora_transformers training_args.save_total_limit=None training_args.save_steps=0.1", LONG, (10, 1)),
    ],
)
def test_checkpoints_are_counted(recipe: str, length: Length, kept: tuple[int, int]) -> None:
    name, *overrides = recipe.split()
    assert kept_checkpoints(read(name, *overrides), length) == kept


def test_the_space_is_that_of_what_is_kept() -> None:
    often = "default_hooks.checkpoint.interval=1"
    gigabytes = {
        (name, deepspeed): checkpoint_space(read(name, often), SHAPES[size], gpus=gpus, deepspeed=deepspeed) / 1e9
        for name, size, gpus, deepspeed in (
            ("huanhuan_lora", "7b", 1, None),
            ("huanhuan_qlora_1_8b", "1.8b", 1, None),
            ("huanhuan_full", "7b", 8, "deepspeed_zero3"),
        )
    }
    # Two with the optimiser's states, and the best one's weights.
    assert list(gigabytes.values()) == pytest.approx([2 * 1.81 + 0.60, 2 * 0.755 + 0.25, 2 * 62.2 + 15.5], rel=0.01)


def test_mmengine_makes_room_before_it_writes(tmp_path: Path) -> None:
    hub = MessageHub.get_instance("test_preflight")
    most = 0

    def save(folder: str, filename: str, *_: Any, **__: Any) -> None:
        nonlocal most
        (Path(folder) / filename).touch()
        most = max(most, sum(1 for _ in tmp_path.glob("iter_*.pth")))

    logger = SimpleNamespace(info=lambda _: None)
    runner: Any = SimpleNamespace(work_dir=str(tmp_path), message_hub=hub, save_checkpoint=save, logger=logger, epoch=0)
    hook = CheckpointHook(by_epoch=False, interval=1, max_keep_ckpts=2)
    hook.before_train(runner)
    for iteration in range(5):
        runner.iter = iteration
        hook.after_train_iter(runner, iteration)
    assert most == 2


def test_a_disk_without_room_is_told(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(base.ENVIRONMENT, str(tiny_base))
    path = find_recipe("huanhuan_qlora_demo")
    recipe = load_recipe(path)
    needed = checkpoint_space(Recipe.of(path, recipe), shape_in(tiny_base))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(needed) - 1))
    with pytest.raises(UserError, match="--work-dir"):
        check(path, recipe, tmp_path / "work")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(needed) + 1))
    assert check(path, recipe, tmp_path / "work") == {base.ENVIRONMENT: str(tiny_base)}


def test_settings_that_the_loop_refuses_are_told_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(base.ENVIRONMENT, raising=False)
    monkeypatch.setattr(base, "MODELS", tmp_path / "models")
    path = find_recipe("huanhuan_qlora")
    with pytest.raises(UserError, match="max_epochs=None"):
        check(path, load_recipe(path, ["train_cfg.max_iters=5"]), tmp_path / "work")


def copied(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    monkeypatch.setenv(base.ENVIRONMENT, str(folder))
    return folder


def problems_of(work_dir: Path, *overrides: str) -> list[str]:
    path = find_recipe("huanhuan_qlora_demo")
    with pytest.raises(UserError) as caught:
        check(path, load_recipe(path, overrides), work_dir)
    return caught.value.problems


def test_a_base_cut_off_and_a_work_dir_that_is_a_file_are_told_together(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = copied(tiny_base, tmp_path, monkeypatch) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    (tmp_path / "work").write_text("a file", "utf-8")
    told = problems_of(tmp_path / "work", f"train_dataloader.dataset.path={tmp_path / 'gone.jsonl'}")
    assert len(told) == 3
    for line, expected in zip(told, ("gone.jsonl", "model.safetensors", "a file, not a folder"), strict=True):
        assert expected in line
    # The same for a folder below that file.
    assert "a file, not a folder" in problems_of(tmp_path / "work" / "below")[-1]


def test_a_shard_that_the_index_names_is_missed(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(tiny_base, tmp_path, monkeypatch)
    weight_map = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    (line,) = problems_of(tmp_path / "work")
    assert "model-00002-of-00002.safetensors" in line and "missing" in line
    index.write_text("{", "utf-8")
    assert "damaged index" in problems_of(tmp_path / "work")[0]
    index.unlink()
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in problems_of(tmp_path / "work")[0]


def test_a_base_that_came_in_part_is_told(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tiny_base, tmp_path, monkeypatch)
    monkeypatch.delenv(base.ENVIRONMENT)
    monkeypatch.setattr(base, "MODELS", tmp_path / "models")
    monkeypatch.setattr("modelscope.snapshot_download", lambda name: str(folder))
    path = find_recipe("huanhuan_qlora_demo")
    recipe = load_recipe(path, ["pretrained_model_name_or_path=someone/model"])
    assert check(path, recipe, tmp_path / "work") == {base.ENVIRONMENT: str(folder)}
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="damaged weights"):
        check(path, recipe, tmp_path / "work")


def test_a_small_disk_is_told_in_small_units(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(base.ENVIRONMENT, str(tiny_base))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5000))
    (line,) = problems_of(tmp_path / "work")
    assert "4.9 KiB" in line and "MiB" in line and "0.0" not in line
