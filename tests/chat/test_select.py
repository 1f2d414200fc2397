"""Which engine and which model folder are taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from huanhuan.chat import select
from huanhuan.chat.model_folder import NoModel, model_folder
from huanhuan.errors import UserError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "has_cuda", lambda: True)


def test_the_machine_decides_when_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for present, kind in ((True, "lmdeploy"), (False, "transformers")):
        monkeypatch.setattr(select, "has_cuda", lambda present=present: present)
        assert select.choose({}) == kind


def test_the_environment_goes_before_the_machine(cuda: None) -> None:
    assert select.choose({"HUANHUAN_API_BASE": "http://host/v1"}) == "openai"
    assert select.choose({"HUANHUAN_API_BASE": "http://host/v1", "HUANHUAN_ENGINE": "Transformers"}) == "transformers"
    with pytest.raises(UserError, match=r"HUANHUAN_ENGINE=vllm.*lmdeploy, openai, transformers"):
        select.choose({"HUANHUAN_ENGINE": "vllm"})
    with pytest.raises(UserError, match="HUANHUAN_API_BASE"):
        select.build(environ={"HUANHUAN_ENGINE": "openai"})


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (folder / name).write_text("{}")
    return folder


def test_the_trained_model_goes_before_the_demo(tmp_path: Path) -> None:
    demo = model(tmp_path / "huanhuan-demo")
    assert model_folder(environ={}, models=tmp_path) == demo
    trained = model(tmp_path / "huanhuan")
    assert model_folder(environ={}, models=tmp_path) == trained
    assert model_folder(environ={"HUANHUAN_MODEL": str(demo)}, models=tmp_path) == demo
    assert model_folder(str(trained), environ={"HUANHUAN_MODEL": str(demo)}) == trained


def test_with_no_model_the_ways_to_go_on_are_told(tmp_path: Path) -> None:
    with pytest.raises(NoModel) as caught:
        model_folder(environ={}, models=tmp_path)
    text = str(caught.value)
    assert all(way in text for way in ("make character", "HUANHUAN_MODEL", "HUANHUAN_API_BASE"))


def test_an_incomplete_folder_says_what_is_missing(tmp_path: Path) -> None:
    folder = model(tmp_path / "half")
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"safetensors.*tokenizer"):
        model_folder(str(folder))
    with pytest.raises(UserError, match="no such model folder"):
        model_folder(str(tmp_path / "nowhere"))
