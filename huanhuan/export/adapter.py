"""From a LoRA checkpoint to a PEFT adapter, and to what each weight of the base becomes; the base is not needed."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from huanhuan.errors import Problems, UserError
from huanhuan.export.checkpoint import Checkpoint
from huanhuan.export.recipe import differing_settings, trained_settings
from huanhuan.export.weights import LazyTensor

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Initialisations that take a part out of the base's weights: the base on disk is not what the adapter belongs to.
BASE_CHANGING = ("pissa", "olora", "loftq")

_IN_MODEL = "base_model.model."
_PART = re.compile(
    r"^base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?P<field>\.weight|\.bias)?$"
)


class Change(Protocol):
    """What a weight of the base becomes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, before and after."""
        ...

    def rows(self, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` in fp32, given the same rows of the base in fp32."""
        ...


@dataclass(frozen=True)
class LowRank:
    """``base + scale * b @ a``; ``a`` is (rank, in), ``b`` is (out, rank). With ``magnitude`` (out): DoRA."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        return (self.b.shape[0], self.a.shape[1])

    def rows(self, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """See :class:`Change`."""
        merged = torch.addmm(base, self.b[start:stop].float(), self.a.float(), alpha=self.scale)
        if self.magnitude is not None:
            merged *= (self.magnitude[start:stop].float() / merged.norm(dim=1)).unsqueeze(1)
        return merged


@dataclass(frozen=True)
class Shift:
    """``base + scale * by``: the bias of an adapted layer."""

    by: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the bias."""
        return tuple(self.by.shape)

    def rows(self, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """See :class:`Change`."""
        return torch.add(base, self.by[start:stop].float(), alpha=self.scale)


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter: tensors under PEFT's names, and the arguments of its ``LoraConfig``."""

    tensors: Mapping[str, torch.Tensor]
    settings: Mapping[str, Any]

    def changes(self) -> tuple[dict[str, Change], dict[str, LazyTensor]]:
        """What the adapter does to the base: weights it changes, and weights it replaces, by their names there."""
        parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        replaced: dict[str, LazyTensor] = {}
        for name, tensor in self.tensors.items():
            match = _PART.match(name)
            if match is None:
                replaced[name.removeprefix(_IN_MODEL).replace(".base_layer.", ".")] = LazyTensor.of(tensor)
            elif match["field"] == ".bias":
                parts[match["module"]][match["part"] + ".bias"] = tensor
            else:
                parts[match["module"]][match["part"]] = tensor
        changed: dict[str, Change] = {}
        for module, found in parts.items():
            changed.update(self._module_changes(module, found))
        return changed, replaced

    def _module_changes(self, module: str, found: Mapping[str, torch.Tensor]) -> dict[str, Change]:
        if "lora_embedding_A" in found:
            # PEFT keeps an embedding's factors transposed: A is (rank, tokens), B is (hidden, rank).
            a, b = found["lora_embedding_B"].T, found["lora_embedding_A"].T
        else:
            a, b = found["lora_A"], found["lora_B"]
        scale = self.scale(module, a.shape[0])
        changes: dict[str, Change] = {f"{module}.weight": LowRank(a, b, scale, found.get("lora_magnitude_vector"))}
        if "lora_B.bias" in found:
            changes[f"{module}.bias"] = Shift(found["lora_B.bias"], scale)
        return changes

    def rank(self, module: str) -> int:
        """The rank that the settings give ``module``."""
        from peft.tuners.lora.config import LoraConfig

        pattern = self.settings.get("rank_pattern") or {}
        return pattern.get(_pattern_key(pattern, module), self.settings.get("r", LoraConfig().r))

    def scale(self, module: str, rank: int) -> float:
        """What the product of the two factors is multiplied by."""
        from peft.tuners.lora.config import LoraConfig

        pattern = self.settings.get("alpha_pattern") or {}
        alpha = pattern.get(_pattern_key(pattern, module), self.settings.get("lora_alpha", LoraConfig().lora_alpha))
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


def _pattern_key(pattern: Mapping[str, Any], module: str) -> str:
    from peft.utils.other import get_pattern_key

    return get_pattern_key(pattern.keys(), module)


def peft_name(name: str) -> str:
    """The name PEFT stores a tensor under.

    >>> peft_name("base_model.model.model.layers.0.attention.wqkv.lora_A.default.weight")
    'base_model.model.model.layers.0.attention.wqkv.lora_A.weight'
    """
    name = re.sub(r"\.modules_to_save\.default\.", ".", name)
    name = re.sub(r"\.(lora_magnitude_vector)\.default\.weight$", r".\1", name)
    return re.sub(r"\.(lora_\w+)\.default(?=\.|$)", r".\1", name)


def adapter_from_checkpoint(checkpoint: Checkpoint, lora: Mapping[str, Any] | None) -> Adapter:
    """The adapter in a LoRA checkpoint; ``lora`` are the recipe's LoRA settings.

    Raises: UserError, one line per disagreement between recipe and checkpoint, and for what cannot be exported.
    """
    path = checkpoint.path
    lora_names = [name for name in checkpoint.tensors if ".lora_" in name]
    if lora is None:
        raise UserError(
            f"{path}: 是 LoRA 检查点，但配方没有 model.lora / a LoRA checkpoint, but the recipe has no model.lora: "
            f"用训练它的配方 / pass the recipe that trained it"
        )
    if not lora_names:
        raise UserError(
            f"{path}: 不是 LoRA 检查点，但配方有 model.lora / not a LoRA checkpoint, but the recipe has model.lora: "
            f"用训练它的配方 / pass the recipe that trained it"
        )
    problems = Problems()
    _check_settings(checkpoint, lora, problems)
    tensors = {
        peft_name(name): tensor.load()
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(_IN_MODEL) and _is_trained(name, checkpoint, lora)
    }
    settings = dict(lora)
    if not settings.get("target_modules"):
        modules = {match["module"] for match in map(_PART.match, tensors) if match}
        settings["target_modules"] = sorted({module.rpartition(".")[2] for module in modules})
    adapter = Adapter(tensors, settings)
    _check_tensors(adapter, path, problems)
    problems.raise_if_any()
    return adapter


def _is_trained(name: str, checkpoint: Checkpoint, lora: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to the adapter; DeepSpeed may have saved the frozen base with it."""
    if checkpoint.adapter_settings:
        return not name.endswith(".base_layer.weight")
    if ".lora_" in name or ".modules_to_save.default." in name:
        return True
    return name.endswith(".bias") and lora.get("bias", "none") != "none"


def _check_settings(checkpoint: Checkpoint, lora: Mapping[str, Any], problems: Problems) -> None:
    path = checkpoint.path
    initial = str(lora.get("init_lora_weights") or "").split("_")[0].lower()
    if initial in BASE_CHANGING:
        problems.add(
            f"[lora.init_lora_weights] {initial} 改动了底模，不能合并 / {initial} changes the base's own weights "
            f"and cannot be merged: train with init_lora_weights=True"
        )
    if lora.get("layer_replication"):
        problems.add("[lora.layer_replication] 不支持合并 / cannot be merged: train without it")
    trained = checkpoint.adapter_settings or trained_settings(checkpoint.config_text)
    for difference in differing_settings(lora, trained) if trained else []:
        problems.add(
            f"{path}: 检查点来自另一份配方 / the checkpoint is from another recipe: {difference}: "
            f"用训练它的配方，或加 --cfg-options / pass the recipe that trained it or --cfg-options"
        )


def _check_tensors(adapter: Adapter, path: Path, problems: Problems) -> None:
    """Add one problem per kind of fault: what is wrong with one layer usually is with all of them."""
    from peft.tuners.lora.config import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(**adapter.settings)
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    faults: dict[str, list[str]] = defaultdict(list)
    for name, tensor in adapter.tensors.items():
        if not torch.isfinite(tensor).all():
            faults["含 NaN 或无穷，用更早的检查点 / holds NaN or infinity: use an earlier checkpoint"].append(name)
        match = _PART.match(name)
        if match and match["field"] != ".bias":
            parts[match["module"]][match["part"]] = tensor
    for module, found in parts.items():
        kind = "lora_embedding_" if "lora_embedding_A" in found else "lora_"
        a, b = found.get(f"{kind}A"), found.get(f"{kind}B")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            faults["LoRA 张量不成对 / LoRA tensors do not pair: choose another --checkpoint"].append(module)
            continue
        if a.shape[0] != adapter.rank(module):
            expected = f"rank {a.shape[0]}, recipe r={adapter.rank(module)}"
            faults[f"检查点来自另一份配方 / the checkpoint is from another recipe: {expected}"].append(module)
        if not check_target_module_exists(config, module):
            faults["不在配方的 target_modules 里 / not in target_modules: pass the recipe that trained it"].append(
                module
            )
        if kind == "lora_embedding_" and "lora_magnitude_vector" in found:
            faults["不支持嵌入层的 DoRA / DoRA on an embedding cannot be merged"].append(module)
    if isinstance(config.target_modules, (set, list)):
        for target in sorted(config.target_modules):
            if not any(module == target or module.endswith(f".{target}") for module in parts):
                faults["检查点里没有 / not in the checkpoint: pass the recipe that trained it"].append(target)
    for fault, places in faults.items():
        more = f" 等 {len(places)} 处 / and {len(places) - 1} more" if len(places) > 1 else ""
        problems.add(f"{path}: {places[0]}{more}: {fault}")


def write_adapter(adapter: Adapter, folder: Path, base: str, dtype: torch.dtype | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does.

    ``base`` is the base's name as the recipe has it; ``dtype`` None keeps the type each tensor was trained in.
    """
    from peft.tuners.lora.config import LoraConfig
    from safetensors.torch import save_file

    settings = {"task_type": "CAUSAL_LM", **adapter.settings}
    config = LoraConfig(**settings, inference_mode=True, base_model_name_or_path=base)
    # PEFT keeps the targets in a set, whose order differs from run to run.
    written = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(written, ensure_ascii=False, indent=2) + "\n", "utf-8")
    tensors = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in adapter.tensors.items()}
    save_file(tensors, str(folder / ADAPTER_WEIGHTS), metadata={"format": "pt"})
