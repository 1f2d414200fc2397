"""Which checkpoint of a run is the newest, whatever wrote it."""

from __future__ import annotations

import re
from pathlib import Path


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that ``last_checkpoint`` of a work dir names, else the one written last; None if there is none.

    A checkpoint is a ``.pth`` file, DeepSpeed's folder of that ending, a ``checkpoint-*`` folder of Transformers'
    Trainer, or ``folder`` itself if that trainer saved its result there.
    """
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        named = Path(pointer.read_text("utf-8").strip())
        # The file holds the path at training time; the folder may have been moved since.
        for candidate in (folder / named.name, named):
            if candidate.exists():
                return candidate
    found = [*folder.glob("iter_*.pth"), *folder.glob("epoch_*.pth"), *folder.glob("checkpoint-*")]
    if is_transformers_output(folder):
        found.append(folder)
    return max(found, key=lambda each: (written_at(each), _number(each)), default=None)


def written_at(path: Path) -> float:
    """When a checkpoint was written; of a folder, its newest weights, since copying a file in changes the folder."""
    files = [each for each in path.iterdir() if each.suffix in (".safetensors", ".pt")] if path.is_dir() else []
    return max((each.stat().st_mtime for each in files), default=path.stat().st_mtime)


def is_transformers_output(folder: Path) -> bool:
    """Whether ``folder`` holds a saved adapter or model."""
    return any(folder.glob("adapter_model*.safetensors")) or any(folder.glob("model*.safetensors"))


def _number(path: Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0
