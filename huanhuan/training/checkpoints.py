"""Checkpoints of a run: which is the newest, whether it is whole, and what torch may read from one."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huanhuan.errors import UserError
from huanhuan.weight_files import indexed_files, safetensors_damage


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a work dir, the newest first: what ``last_checkpoint`` names, then by the time of writing.

    A checkpoint is a ``.pth`` file, DeepSpeed's folder of that ending, a ``checkpoint-*`` folder of Transformers'
    Trainer, or ``folder`` itself if that trainer saved its result there.
    """
    found = [*folder.glob("iter_*.pth"), *folder.glob("epoch_*.pth"), *folder.glob("checkpoint-*")]
    if is_transformers_output(folder):
        found.append(folder)
    found.sort(key=lambda each: (written_at(each), _number(each)), reverse=True)
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        named = Path(pointer.read_text("utf-8").strip())
        # The file holds the path at training time; the folder may have been moved since.
        newest = next((each for each in (folder / named.name, named) if each.exists()), None)
        if newest is not None:
            found = [newest, *(each for each in found if each != newest)]
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest of :func:`checkpoints`, None if there is none.

    Raises: UserError if it is damaged and an older one is whole, naming that one.
    """
    found = checkpoints(folder)
    wrong = damage(found[0]) if found else None
    if wrong is not None:
        older = next((each for each in found[1:] if damage(each) is None), None)
        if older is not None:
            raise UserError(
                f"{found[0]}: 检查点损坏 / damaged checkpoint ({wrong}): 完好的较早一个是 {older}，用 --checkpoint 指定 / "
                f"{older} is older and whole: pass it as --checkpoint"
            )
    return found[0] if found else None


def written_at(path: Path) -> float:
    """When a checkpoint was written; of a folder, its newest weights, since copying a file in changes the folder."""
    files = [each for each in path.iterdir() if each.suffix in (".safetensors", ".pt")] if path.is_dir() else []
    return max((each.stat().st_mtime for each in files), default=path.stat().st_mtime)


def is_transformers_output(folder: Path) -> bool:
    """Whether ``folder`` holds a saved adapter or model."""
    return any(folder.glob("adapter_model*.safetensors")) or any(folder.glob("model*.safetensors"))


def damage(path: Path, *, checksums: bool = False) -> str | None:
    """What is wrong with a checkpoint as far as the structure of its files tells; None if nothing is.

    Sizes and tables of contents are looked at; the weights are read only with ``checksums``, which finds a byte
    that has changed in what ``torch.save`` wrote. Nothing is unpickled.
    """
    if path.is_file():
        return _READERS.get(path.suffix, _archive_damage)(path, checksums)
    # The result of Transformers' Trainer lies beside checkpoints and logs.
    beside = is_transformers_output(path) and not path.name.startswith("checkpoint-")
    files = sorted(path.glob("*.safetensors") if beside else path.rglob("*"))
    weights = {each: _READERS[each.suffix] for each in files if each.suffix in _READERS and each.is_file()}
    if not weights:
        return "no weights in it"
    for file, wrong_with in weights.items():
        wrong = wrong_with(file, checksums)
        if wrong is not None:
            return f"{file.name}: {wrong}"
    return _missing_part(path)


def _archive_damage(file: Path, checksums: bool) -> str | None:
    """``torch.save`` writes a zip archive, whose table of contents comes last: what was cut off has none."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            for name in pickled:
                archive.read(name)  # compared with its checksum
            changed = archive.testzip() if checksums else None
    except Exception as error:  # zipfile raises whatever the damaged byte leads it to
        return f"cut off or overwritten, {' '.join(str(error).split())[:80]}"
    if changed is not None:
        return f"{changed} has changed since it was written"
    return None if pickled else "not written by torch.save"


_READERS: dict[str, Callable[[Path, bool], str | None]] = {
    ".pth": _archive_damage,
    ".pt": _archive_damage,
    ".safetensors": lambda file, checksums: safetensors_damage(file),
}


def _missing_part(folder: Path) -> str | None:
    """A shard that an index names, or a process's part of a DeepSpeed checkpoint.

    On a machine that shares no disk with the others only its own processes' parts are there.
    """
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = indexed_files(index)
        except ValueError:
            return f"{index.name}: unreadable index"
        missing = next((name for name in named if not (folder / name).is_file()), None)
        if missing is not None:
            return f"{missing} is missing"
    parts: dict[str, set[int]] = {"optim": set(), "model": set()}
    for file in folder.glob("*zero_pp_rank_*_states.pt"):
        match = re.search(r"zero_pp_rank_(\d+)_.*_(optim|model)_states\.pt$", file.name)
        if match:
            parts[match[2]].add(int(match[1]))
    optim, model = parts["optim"], parts["model"]
    expected = set(range(min(optim), max(optim) + 1)) if optim else set()
    absent = expected - optim or (expected - model if model else set())
    return f"the part of process {min(absent)} is missing" if absent else None


def allow_own_checkpoints() -> None:
    """Let torch's restricted loading read what training itself puts into a checkpoint beside tensors.

    That is mmengine's log (buffers of float64 and int64 arrays) and DeepSpeed's settings. Nothing that is allowed
    here runs code of a file's choosing: mmengine's buffers name their statistics through ``getattr``, whose place a
    function takes that knows those four only.
    """
    import numpy
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer
    from torch.serialization import add_safe_globals

    # numpy's own functions for arrays and for single numbers have moved between its versions.
    rebuild = [value.__reduce__()[0] for value in (numpy.zeros(0), numpy.float64(0))]
    kinds = [type(numpy.dtype(kind)) for kind in (numpy.float64, numpy.int64)]
    allowed = [HistoryBuffer, ConfigDict, numpy.ndarray, numpy.dtype, *kinds, *rebuild]
    add_safe_globals([*allowed, (_statistic, "builtins.getattr")])  # pyright: ignore[reportArgumentType]


def _statistic(owner: Any, name: str) -> Any:
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"getattr of {name!r}")
    return getattr(HistoryBuffer, name)


def _number(path: Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0
