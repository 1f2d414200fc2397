"""Which engine and which model folder are taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from huanhuan.chat import lmdeploy_engine, select
from huanhuan.chat.engine import EngineError
from huanhuan.chat.lmdeploy_engine import LMDeployEngine
from huanhuan.chat.model_folder import NoModel, checked, model_folder
from huanhuan.cli import Terminated
from huanhuan.errors import UserError

ROOT = Path(__file__).parents[2]


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
    with pytest.raises(UserError, match=r"HUANHUAN_API_BASE: .*is not set"):
        select.build(environ={"HUANHUAN_ENGINE": "openai"})
    for wrong in ("host:23333/v1", "http://", "ftp://host/v1", "http://host:port/v1"):
        with pytest.raises(UserError, match=f"HUANHUAN_API_BASE={wrong}: "):
            select.build(environ={"HUANHUAN_API_BASE": wrong})


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.model"):
        (folder / name).write_text("{}")
    save_file({"w": torch.zeros(3, 4)}, folder / "model.safetensors", metadata={"format": "pt"})
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


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_that_the_index_names_and_nobody_fetched_are_told(tmp_path: Path, kind: str) -> None:
    folder = model(tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    whole = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    names = [f"{whole}-0000{number}-of-00003.{kind}" for number in (1, 2, 3)]
    index = folder / (f"{whole}.{kind}.index.json")
    index.write_text(json.dumps({"weight_map": {f"layer.{place}": names[place % 3] for place in range(9)}}))
    for name in names:
        save_file({"w": torch.zeros(3)}, folder / name)
    assert checked(folder) == folder
    (folder / names[1]).unlink()
    with pytest.raises(UserError, match=names[1]) as caught:
        checked(folder)
    assert len(caught.value.problems) == 1 and names[0] not in str(caught.value)
    index.write_text("{half")
    with pytest.raises(UserError, match=index.name):
        checked(folder)


@pytest.mark.parametrize("cut", [0, 4, 20, 100, -1])
def test_weights_cut_short_are_noticed_before_loading(tmp_path: Path, cut: int) -> None:
    folder = model(tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"model\.safetensors: .*cut short"):
        checked(folder)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n")
    with pytest.raises(UserError, match="cut short"):
        checked(folder)


def test_lmdeploy_s_check_of_the_machine_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: None
) -> None:
    """It ends the process with ``exit(1)`` where there is no GPU."""
    monkeypatch.setenv("HUANHUAN_LMDEPLOY_BACKEND", "pytorch")
    environ = {"HUANHUAN_ENGINE": "lmdeploy", "HUANHUAN_MODEL": str(model(tmp_path / "model"))}

    def leave(self: LMDeployEngine, config: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(LMDeployEngine, "_build", leave)
    with pytest.raises(EngineError, match="check the GPU and its driver"):
        select.build(environ=environ)

    def ended(self: LMDeployEngine, config: object) -> None:
        raise Terminated(143)

    monkeypatch.setattr(LMDeployEngine, "_build", ended)
    with pytest.raises(Terminated):
        select.build(environ=environ)

    def no_import(*_: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(lmdeploy_engine, "engine_config", no_import)
    with pytest.raises(EngineError, match="check the GPU and its driver"):
        select.build(environ=environ)


@pytest.mark.skipif(torch.cuda.is_available(), reason="LMDeploy runs here")
def test_lmdeploy_itself_on_a_machine_without_a_gpu(tiny_base: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/chat.py"), "--model", str(tiny_base), "--say", "你好"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "HUANHUAN_ENGINE": "lmdeploy", "HUANHUAN_LMDEPLOY_BACKEND": "pytorch"},
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("错误 / error: LMDeploy") and "check the GPU and its driver" in last
    assert "Traceback" not in done.stderr
