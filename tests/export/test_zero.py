"""DeepSpeed's folders are joined to the tensors that were trained, and nothing in them is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from huanhuan.errors import UserError
from huanhuan.export import weights
from huanhuan.export.checkpoint import load_checkpoint
from huanhuan.export.zero import load_zero_folder

TRAIN = r"""
import os, sys, torch
import deepspeed
import numpy as np
from mmengine.logging import HistoryBuffer
from torch import nn

# Compiled at first use, which needs a compiler and a minute.
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
out = sys.argv[1]
deepspeed.init_distributed("gloo")

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(6, 5, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.llm = Layer()

    def forward(self, x):
        return self.llm(x).square().sum()

for stage in (2, 3):
    torch.manual_seed(stage)
    model = Model()
    trained = [each for each in model.parameters() if each.requires_grad]
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(trained, lr=1e-2), config=settings)
    for _ in range(2):
        engine.backward(engine(torch.randn(1, 6)))
        with torch.no_grad():
            engine.step()
    client = {
        "meta": {"cfg": "model = dict(lora=dict(r=2))"},
        "message_hub": {"loss": HistoryBuffer([1.0], [1]), "eta": np.float64(3)},
    }
    engine.save_checkpoint(
        f"{out}/zero{stage}", tag="iter_2.pth", client_state=client, save_latest=False, exclude_frozen_parameters=True
    )
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        expected = {name: each.detach().clone() for name, each in model.named_parameters()}
    if int(os.environ["RANK"]) == 0:
        torch.save(expected, f"{out}/zero{stage}.pt")
"""


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(shape) for shape in shapes]


def convert(folder: Path) -> dict[str, torch.Tensor]:
    """What DeepSpeed's own conversion makes of a folder."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    converted: Any = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    return converted


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 3, 11])
def test_joined_as_deepspeed_joins(
    write_zero: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, processes: int
) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.config import ZeroStageEnum

    torch.manual_seed(stage)
    shapes = [(7, 5), (3,), (), (2, 3, 4), (1, 1), (6,)]
    groups = [dict(zip("abcdef", tensors(*shapes), strict=True)), dict(zip("gh", tensors((5,), (4, 9)), strict=True))]
    folder = write_zero(
        tmp_path / "iter_2.pth",
        groups,
        ZeroStageEnum(stage),
        processes,
        frozen={"base": torch.randn(5, 3).bfloat16()},
        buffers={"table": torch.randn(4).half()},
        shared={"tied": "d", "of nothing": "absent"},
    )
    expected, found = convert(folder), load_zero_folder(folder)["state_dict"]
    assert list(found) == list(expected)
    monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 10)
    for name, tensor in found.items():
        assert (tensor.shape, tensor.dtype) == (tuple(expected[name].shape), expected[name].dtype)
        assert torch.equal(tensor.load(), expected[name])
        rows = [rows for _, _, rows in tensor.blocks()]
        assert torch.equal(torch.cat(rows) if tensor.shape else tensor.load(), expected[name])
    assert torch.equal(found["h"].load(), groups[1]["h"])


def test_missing_pieces_are_one_line(write_zero: Callable[..., Path], tmp_path: Path) -> None:
    for stage, piece in ((2, "zero_pp_rank_1_mp_rank_00_optim_states.pt"), (3, "*rank_1_*model_states.pt")):
        folder = write_zero(tmp_path / f"zero{stage}.pth", [{"a": torch.randn(4, 3)}], stage, 2)
        next(folder.glob(piece)).unlink()
        with pytest.raises(UserError) as caught:
            load_checkpoint(folder)
        (line,) = caught.value.problems
        assert "1 of 2" in line and "\n" not in line


@pytest.mark.parametrize("stage", [2, 3])
def test_pieces_of_another_size_are_refused(write_zero: Callable[..., Path], tmp_path: Path, stage: int) -> None:
    folder = write_zero(tmp_path / "iter_1.pth", [{"a": torch.randn(40, 3)}], stage, 2)
    file = folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    content = torch.load(file, weights_only=True)
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for size in (50, 70):
        content["optimizer_state_dict"][key] = [torch.randn(size)]
        torch.save(content, file)
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(folder)


@pytest.mark.slow
def test_zero_2_and_3_of_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "train.py").write_text(TRAIN, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, str(tmp_path / "train.py"), str(tmp_path)], env=environment, check=True, timeout=240, cwd=tmp_path
    )
    for stage in (2, 3):
        expected = torch.load(tmp_path / f"zero{stage}.pt", weights_only=True)
        folder = tmp_path / f"zero{stage}" / "iter_2.pth"
        checkpoint = load_checkpoint(folder)
        assert checkpoint.config_text == "model = dict(lora=dict(r=2))"
        assert set(checkpoint.tensors) == {"lora_A.default.weight", "lora_B.default.weight"}
        converted = convert(folder)
        for name, tensor in checkpoint.tensors.items():
            assert torch.equal(tensor.load(), expected[f"llm.{name}"])
            assert torch.equal(tensor.load(), converted[f"llm.{name}"])

        piece = next(folder.glob("*optim_states.pt"))
        piece.write_bytes(piece.read_bytes()[:-200])
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(folder)


def test_a_folder_of_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"nothing")
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path)
    (line,) = caught.value.problems
    assert str(tmp_path) in line and "\n" not in line
