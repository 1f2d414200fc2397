"""Where a base is looked for, and what is said when it is nowhere."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from xtuner.tools.utils import get_seed_from_checkpoint

from huanhuan.errors import UserError
from huanhuan.training import base


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(base.ENVIRONMENT, raising=False)
    monkeypatch.setattr(base, "MODELS", tmp_path / "models")
    return tmp_path / "models"


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_environment_comes_first(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(models / "internlm2-chat-7b")
    named = make_model(tmp_path / "named")
    monkeypatch.setenv(base.ENVIRONMENT, str(named))
    assert base.find_base("internlm/internlm2-chat-7b") == str(named)


def test_then_the_models_folder(models: Path) -> None:
    folder = make_model(models / "internlm2-chat-7b")
    assert base.find_base("internlm/internlm2-chat-7b") == str(folder)


def test_then_modelscope_then_hugging_face(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def modelscope(name: str) -> str:
        asked.append(f"ms {name}")
        raise ConnectionError("no route")

    def hugging_face(name: str) -> str:
        asked.append(f"hf {name}")
        return "/downloaded"

    monkeypatch.setattr("modelscope.snapshot_download", modelscope)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hugging_face)
    assert base.find_base("internlm/internlm2-chat-7b") == "/downloaded"
    assert asked == ["ms Shanghai_AI_Laboratory/internlm2-chat-7b", "hf internlm/internlm2-chat-7b"]


def test_nowhere_is_one_line_with_both_answers(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("modelscope.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        base.find_base("internlm/internlm2-chat-7b")
    (line,) = caught.value.problems
    assert line.count("no route") == 2
    assert "models/internlm2-chat-7b" in line
    assert base.ENVIRONMENT in line


def test_a_folder_without_a_model_is_refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(base.ENVIRONMENT, str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"config\.json"):
        base.find_base("internlm/internlm2-chat-7b")
    monkeypatch.delenv(base.ENVIRONMENT)
    (models / "internlm2-chat-7b").mkdir(parents=True)
    with pytest.raises(UserError, match=r"config\.json"):
        base.find_base("internlm/internlm2-chat-7b")


def test_a_local_name_is_never_downloaded(models: Path) -> None:
    with pytest.raises(UserError, match="make base"):
        base.find_base("tiny-internlm2")


def test_torch_reads_our_checkpoints_from_then_on(models: Path, tmp_path: Path) -> None:
    make_model(models / "tiny-internlm2")
    path = tmp_path / "iter_1.pth"
    torch.save({"meta": {"seed": 7}, "message_hub": {"log_scalars": {"train/loss": HistoryBuffer([1.0], [1])}}}, path)
    before = torch.serialization.get_safe_globals()
    try:
        torch.serialization.clear_safe_globals()
        with pytest.raises(pickle.UnpicklingError):
            get_seed_from_checkpoint(str(path))
        base.find_base("tiny-internlm2")
        assert get_seed_from_checkpoint(str(path)) == 7
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
