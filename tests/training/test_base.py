"""Where a base is looked for, and what is said when it is nowhere."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from xtuner.tools.utils import get_seed_from_checkpoint

from huanhuan.errors import UserError
from huanhuan.training import base


@pytest.fixture(autouse=True)
def hook() -> Iterator[None]:
    """What handles an uncaught error afterwards is what did before."""
    before = sys.excepthook
    yield
    sys.excepthook = before


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


def test_the_log_says_where_it_was_found(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("mmengine.logging.print_log", lambda message, *_: told.append(message))
    monkeypatch.setattr("modelscope.snapshot_download", lambda name: "/fetched")
    base.find_base("internlm/internlm2-chat-7b")
    here = make_model(models / "internlm2-chat-7b")
    base.find_base("internlm/internlm2-chat-7b")
    monkeypatch.setenv(base.ENVIRONMENT, str(here))
    base.find_base("internlm/internlm2-chat-7b")
    sources = [line.partition("internlm/internlm2-chat-7b: ")[2] for line in told]
    assert sources == ["ModelScope: /fetched", f"models/: {here}", f"{base.ENVIRONMENT}: {here}"]


def test_attempts_of_a_client_are_not_told_one_by_one(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("modelscope_hub.legacy_api")

    def fail(name: str) -> str:
        logger.warning("retry in 1s")
        raise ConnectionError("no route: " + "x" * 500)

    monkeypatch.setattr("modelscope.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    before = logger.getEffectiveLevel()
    with pytest.raises(UserError) as caught:
        base.find_base("internlm/internlm2-chat-7b")
    assert "x" * 100 not in caught.value.problems[0]
    assert logger.getEffectiveLevel() == before
    # Hugging Face's is not silenced, so that only the first of the two is missing.
    assert [record.message for record in caplog.records if record.name == logger.name] == ["retry in 1s"]


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
