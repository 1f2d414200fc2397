"""DeepSpeed's folders are joined to the tensors that were trained, and nothing in them is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from huanhuan.errors import UserError
from huanhuan.export.checkpoint import load_checkpoint

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
        for name, tensor in checkpoint.tensors.items():
            assert torch.equal(tensor.load(), expected[f"llm.{name}"])

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
