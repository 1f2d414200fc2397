"""ZeRO-3 with kernels that are functions of a weight, as on a card, and no calls of the module that holds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from huanhuan.paths import ROOT

# In the place of Liger's kernels, which need a card: a norm that reads its weight again in the backward pass.
SCRIPT = """
import torch
from huanhuan.training import layers

class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight):
        assert len(weight) == states.shape[-1], "not gathered"
        ctx.save_for_backward(states, weight)
        return states * weight

    @staticmethod
    def backward(ctx, gradient):
        states, weight = ctx.saved_tensors
        assert len(weight) == states.shape[-1], "not gathered for the backward pass"
        return gradient * weight, (gradient * states).sum(0)

layers._norm = lambda module, states, kernels: Norm.apply(states, module.weight)
from huanhuan.training.run_xtuner import main
main()
"""


def test_every_weight_is_there_when_it_is_read(tiny_base: Path, tmp_path: Path) -> None:
    options = ["train_cfg.max_epochs=None", "train_cfg.max_iters=2", "train_cfg.validations=1"]
    options += ["model.llm.torch_dtype=float32", "train_dataloader.dataset.max_length=512"]
    options += ["train_dataloader.dataset.pack_length=512", "train_dataloader.collate_fn.pad_to=None"]
    options += ["default_hooks.checkpoint.save_last=False", "default_hooks.checkpoint.save_best=None"]
    options += ["custom_hooks.0.starters=1", "custom_hooks.0.max_new_tokens=2"]
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "configs" / "huanhuan_lora.py"), "--work-dir", str(tmp_path)]
    command += ["--deepspeed", "deepspeed_zero3", "--cfg-options", *options]
    environment = os.environ | {"HUANHUAN_BASE": str(tiny_base), "HUANHUAN_DEBUG": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "held_out/perplexity" in result.stdout + result.stderr
