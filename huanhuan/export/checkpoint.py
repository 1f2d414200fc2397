"""Training checkpoints: finding the newest one and reading its tensors without running what it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from huanhuan.errors import UserError
from huanhuan.export.weights import LazyTensor, read_safetensors
from huanhuan.training.checkpoints import damage, is_transformers_output, newest_checkpoint, written_at

# Wrappers that training may put around a module; they are no part of a tensor's name.
_WRAPPERS = re.compile(r"(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_PREFIX = re.compile(r"^(module\.)?llm\.")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint under the names they have in the language model itself.

    Nothing is read before it is used. ``config_text`` is the recipe that the
    checkpoint was trained with, as it was written down in it; ``adapter_settings`` the same for a PEFT folder.
    """

    path: Path
    tensors: Mapping[str, LazyTensor]
    config_text: str = ""
    adapter_settings: Mapping[str, Any] = field(default_factory=dict)


class _Inert:
    """Stands in for every object of a checkpoint that is not a tensor or plain data: it takes and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return 0


def find_checkpoint(work_dirs: Iterable[Path], wanted: str | None = None) -> Path:
    """The checkpoint to export: ``wanted`` (a path, a name in a work dir, or ``best``), else the newest one.

    Raises: UserError if there is none, naming the folders searched.
    """
    folders = [Path(each) for each in work_dirs]
    if wanted and wanted != "best":
        for candidate in (Path(wanted), *(folder / wanted for folder in folders)):
            if candidate.exists():
                return candidate
        raise UserError(f"{wanted}: 找不到检查点 / no such checkpoint: check --checkpoint")
    for folder in folders:
        found = _best_in(folder) if wanted else newest_checkpoint(folder)
        if found is not None:
            return found
    searched = ", ".join(str(folder) for folder in folders)
    kind = "best_*.pth" if wanted else "iter_*.pth, epoch_*.pth, checkpoint-*"
    raise UserError(
        f"{searched}: 没有检查点 / no checkpoint ({kind}): 先训练，或用 --checkpoint 指定 / train first or pass --checkpoint"
    )


def _best_in(folder: Path) -> Path | None:
    return max(folder.glob("best_*.pth"), key=written_at, default=None) or _best_of_trainer(folder)


def _best_of_trainer(folder: Path) -> Path | None:
    """What the newest notes of Transformers' Trainer name; it loads that one at the end and saves it once more."""
    notes = max(folder.glob("checkpoint-*/trainer_state.json"), key=lambda file: file.stat().st_mtime, default=None)
    named = json.loads(notes.read_text("utf-8")).get("best_model_checkpoint") if notes else None
    # The file holds the path at training time; the folder may have been moved since.
    best = folder / Path(named).name if named else None
    return best if best is not None and best.is_dir() else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of ``xtuner train``: a ``.pth`` file, a DeepSpeed folder, or a Transformers folder.

    Raises: UserError if it is damaged or is none of these.
    """
    if path.is_dir() and is_transformers_output(path):
        return _load_transformers(path)
    for file in [path] if path.is_file() else sorted(path.glob("*.pt")):
        wrong = damage(file, checksums=True)
        if wrong is not None:
            raise UserError(
                f"{file}: 检查点损坏或不是训练检查点 / damaged, or not a training checkpoint ({wrong}): "
                "换一个 --checkpoint / choose another"
            )
    try:
        if path.is_dir():
            from huanhuan.export.zero import load_zero_folder

            content = load_zero_folder(path)
        else:
            content = load_untrusted(path)
    except UserError:
        raise
    except Exception as error:  # torch and DeepSpeed raise whatever the damaged byte leads them to
        # torch's own text begins by advising to unpickle without restriction.
        reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:200]
        raise UserError(
            f"{path}: 检查点损坏或不是训练检查点 / damaged, or not a training checkpoint "
            f"({type(error).__name__}: {reason}): 换一个 --checkpoint / choose another"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    tensors = {}
    for name, tensor in (state or {}).items():
        if isinstance(tensor, torch.Tensor):
            tensor = LazyTensor.of(tensor)
        if isinstance(tensor, LazyTensor):
            tensors[plain_name(name)] = tensor
    if not tensors:
        raise UserError(f"{path}: 检查点里没有权重 / holds no weights: 换一个 --checkpoint / choose another")
    meta = content.get("meta") if isinstance(content, Mapping) else None
    text = meta.get("cfg", "") if isinstance(meta, Mapping) else ""
    return Checkpoint(path, tensors, text if isinstance(text, str) else "")


def plain_name(name: str) -> str:
    """A tensor's name without what training wraps around the model.

    >>> plain_name("llm.model.layers.0._orig_mod.attention.wo.weight")
    'model.layers.0.attention.wo.weight'
    """
    return _PREFIX.sub("", _WRAPPERS.sub("", name))


def load_untrusted(path: Path, known: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """What ``torch.save`` wrote to ``path``, memory-mapped, with nothing of it executed.

    torch's restricted unpickler builds tensors and plain containers. Whatever else the file names (mmengine
    keeps its log there, with functions in it) becomes an inert object, unless ``known`` gives a harmless class
    for its dotted name. So a checkpoint from a stranger can at worst be refused.
    """
    path = Path(path)
    named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    with stand_ins(named, known or {}):
        return torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)


@contextmanager
def stand_ins(names: Iterable[str], known: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Let torch's restricted unpickler meet ``names``, each as an inert object or as the class ``known`` gives."""
    # A type of its own for each name: torch looks classes up by identity and several names may share none.
    allowed: list[Any] = [(known.get(name) or type("Inert", (_Inert,), {}), name) for name in names]
    with torch.serialization.safe_globals(allowed):
        yield


def _load_transformers(folder: Path) -> Checkpoint:
    """What Transformers' Trainer leaves behind: a PEFT adapter, or a whole model."""
    pattern = "adapter_model*.safetensors" if any(folder.glob("adapter_model*.safetensors")) else "model*.safetensors"
    tensors: dict[str, LazyTensor] = {}
    for file in sorted(folder.glob(pattern)):
        tensors |= read_safetensors(file)
    settings = folder / "adapter_config.json"
    found = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
    return Checkpoint(folder, {plain_name(name): tensor for name, tensor in tensors.items()}, "", found)
