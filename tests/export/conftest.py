"""A tiny base in several shapes, and checkpoints as XTuner and DeepSpeed write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["wqkv", "wo", "w1", "w2", "w3", "output"], "bias": "none"}


@dataclass(frozen=True)
class Trained:
    """A checkpoint on disk, and the PEFT model it was taken from."""

    path: Path
    model: Any
    recipe: Path


def load_model(folder: Path, dtype: torch.dtype | None = None) -> Any:
    """The model in ``folder``, in its own type or in ``dtype``."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, torch_dtype=dtype or "auto").eval()


@pytest.fixture(scope="session")
def make_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a copy of the tiny base: in a type, cut into shards, as safetensors or .bin, tied, with biases."""
    from transformers import AutoTokenizer

    made: dict[tuple[Any, ...], Path] = {}

    def make(
        dtype: torch.dtype = torch.float32,
        *,
        shard: str = "300KB",
        safe: bool = True,
        tied: bool = False,
        bias: bool = False,
    ) -> Path:
        key = (dtype, shard, safe, tied, bias)
        if key not in made:
            folder = tmp_path_factory.mktemp("base") / "tiny"
            model = load_model(tiny_base).to(dtype)
            if bias:
                model.config.bias = True
                model = type(model)(model.config)
            if tied:
                model.config.tie_word_embeddings = True
                model.tie_weights()
            model.save_pretrained(folder, max_shard_size=shard, safe_serialization=safe)
            AutoTokenizer.from_pretrained(tiny_base, trust_remote_code=True).save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


def write_recipe(path: Path, lora: dict[str, Any] | None) -> Path:
    """A recipe with nothing in it but what export reads."""
    settings = "".join(f"{key}={value!r}, " for key, value in (lora or {}).items())
    lines = [
        "from peft import LoraConfig",
        "from xtuner.model import SupervisedFinetune",
        "pretrained_model_name_or_path = 'someone/tiny-internlm2'",
        "persona = 'data/huanhuan/persona.toml'",
        f"model = dict(type=SupervisedFinetune, lora={f'dict(type=LoraConfig, {settings})' if lora else None})",
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def mmengine_checkpoint(state: dict[str, torch.Tensor], recipe: Path) -> dict[str, Any]:
    """What mmengine's runner saves around a state dict: settings, log buffers, scalars of numpy, optimiser."""
    import numpy as np
    from mmengine.config import Config
    from mmengine.logging import HistoryBuffer

    return {
        "meta": {"cfg": Config.fromfile(str(recipe)).pretty_text, "iter": 4, "seed": 1},
        "state_dict": state,
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer([2.0, 1.5], [1, 1])},
            "runtime_info": {"eta": np.float64(3.0), "iter": 3},
            "resumed_keys": {},
        },
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
        "param_schedulers": [{"last_step": 4}],
    }


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trained]:
    """Make a LoRA checkpoint over ``base``: ``iter_4.pth`` and the recipe it belongs to."""
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportPrivateImportUsage]
    from xtuner.model.utils import get_peft_model_state_dict

    def make(base: Path, lora: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> Trained:
        settings = {**LORA, **(lora or {})}
        recipe = write_recipe(tmp_path / "tiny_lora.py", settings)
        model: Any = get_peft_model(load_model(base, torch.float32), LoraConfig(**settings, task_type="CAUSAL_LM"))
        torch.manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name and "magnitude" not in name:
                    parameter.normal_(std=0.05)
                elif "magnitude" in name or "modules_to_save" in name:
                    parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
                elif name.endswith(".bias") and settings["bias"] != "none":
                    parameter.normal_(std=0.05)
        state = get_peft_model_state_dict(model)
        state = {f"llm.{name}": tensor.detach().to(dtype).clone() for name, tensor in state.items()}
        path = tmp_path / "work_dirs" / "tiny_lora" / "iter_4.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(mmengine_checkpoint(state, recipe), path)
        return Trained(path, model.eval(), recipe)

    return make


@pytest.fixture
def write_zero() -> Callable[..., Path]:
    """Write a folder as DeepSpeed's ``save_checkpoint`` does: tensors by name, in the pieces of so many processes."""

    def write(
        folder: Path,
        groups: Sequence[Mapping[str, torch.Tensor]],
        stage: int,
        processes: int,
        frozen: Mapping[str, torch.Tensor] | None = None,
        buffers: Mapping[str, torch.Tensor] | None = None,
        shared: Mapping[str, str] | None = None,
    ) -> Path:
        folder.mkdir(parents=True)
        frozen, buffers = frozen or {}, buffers or {}
        model: dict[str, Any] = {
            "module": dict(buffers),
            "buffer_names": list(buffers),
            "param_shapes": [{name: tensor.shape for name, tensor in group.items()} for group in groups],
            "frozen_param_shapes": {name: tensor.shape for name, tensor in frozen.items()},
            "shared_params": dict(shared or {}),
            "ds_version": "0.18.9",
            "meta": {"cfg": ""},
        }
        # A list of groups, each of one flat tensor per process.
        pieces = [_pieces(group.values(), stage, processes) for group in groups]
        for rank in range(processes):
            optimizer: dict[str, Any] = {"zero_stage": stage, "partition_count": processes}
            if stage == 3:
                optimizer["fp32_flat_groups"] = [each[rank] for each in pieces]
                parts = {name: _pieces([tensor], 3, processes)[rank] for name, tensor in frozen.items()}
                torch.save(
                    model | {"frozen_param_fragments": parts},
                    folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt",
                )
            else:
                optimizer["partition_count"] = [processes] * len(groups)
                optimizer["single_partition_of_fp32_groups"] = [each[rank] for each in pieces]
            torch.save({"optimizer_state_dict": optimizer}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage != 3:
            torch.save(model | {"frozen_param_fragments": dict(frozen)}, folder / "mp_rank_00_model_states.pt")
        return folder

    return write


def _pieces(tensors: Iterable[torch.Tensor], stage: int, processes: int) -> list[torch.Tensor]:
    if stage == 3:
        cuts = [_cut(tensor.flatten(), processes, processes) for tensor in tensors]
        return [torch.cat(each) for each in zip(*cuts, strict=True)]
    return _cut(torch.cat([tensor.flatten() for tensor in tensors]), processes, 2 * processes)


def _cut(flat: torch.Tensor, count: int, border: int) -> list[torch.Tensor]:
    padded = torch.cat([flat, flat.new_full((-len(flat) % border,), float("nan"))])
    # Copies: saving a view saves all of what it is a view of.
    return [each.clone() for each in padded.chunk(count)]
