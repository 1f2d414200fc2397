"""A model that comes over the network: fetched once, resumed after a break, checked before it is used.

How far it is shows in the bytes on disk, which is true for a resumed download too. The list of files with
their sizes is written last, into the model's folder, so a folder that holds it is complete and needs no
network any more.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from huanhuan.errors import UserError, disk_size
from huanhuan.files import free_space, write_text
from huanhuan.paths import MODELS

logger = logging.getLogger("huanhuan.chat")

# What is being done, and the share of it that is done, None if unknown.
Report = Callable[[str, "float | None"], None]

MANIFEST = ".huanhuan-files.json"
STUDIO_DISK = Path("/mnt/workspace")
GIB = 2**30
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_USELESS = (".md", ".png", ".jpg", ".jpeg", ".gif", ".onnx", ".gguf", ".pth", ".gitattributes", ".gitignore")


def silent(doing: str, share: float | None) -> None:
    """A :data:`Report` for where nobody wants to know how far it is."""


def is_id(name: str) -> bool:
    """Whether ``name`` can be a hub's ``owner/model`` rather than a folder.

    >>> is_id("internlm/internlm2-chat-7b"), is_id("models/huanhuan"), is_id("./a/b")
    (True, False, False)
    """
    return bool(_ID.fullmatch(name)) and not name.startswith("models/")


def models_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where fetched models are kept: ``HUANHUAN_MODELS``, else ModelScope Studio's lasting disk, else ``models/``."""
    named = environ.get("HUANHUAN_MODELS", "").strip()
    if named:
        return Path(named).expanduser()
    return STUDIO_DISK / "models" if os.access(STUDIO_DISK, os.W_OK) else MODELS


class Hub(Protocol):
    """A place that models come from."""

    name: str

    def files(self, model: str) -> dict[str, int]:
        """Every file of ``model`` with its size in bytes."""
        ...

    def fetch(self, model: str, folder: Path, files: list[str]) -> None:
        """Fetch ``files`` into ``folder``; what is there already is not fetched again."""
        ...


class ModelScope:
    """modelscope.cn, through its own client."""

    name = "ModelScope"

    def files(self, model: str) -> dict[str, int]:
        """Every file of ``model`` with its size in bytes."""
        from modelscope.hub.api import HubApi

        return files_of({each["Path"]: each["Size"] or 0 for each in HubApi().get_model_files(model)})

    def fetch(self, model: str, folder: Path, files: list[str]) -> None:
        """Fetch ``files`` into ``folder``."""
        from modelscope.hub.snapshot_download import snapshot_download

        snapshot_download(model, local_dir=str(folder), allow_patterns=files)


class HuggingFace:
    """huggingface.co, or the mirror that ``HF_ENDPOINT`` names, through its own client."""

    name = "Hugging Face"

    def files(self, model: str) -> dict[str, int]:
        """Every file of ``model`` with its size in bytes."""
        from huggingface_hub import HfApi

        listed = HfApi().model_info(model, files_metadata=True, timeout=20).siblings or []
        return {each.rfilename: each.size or 0 for each in listed}

    def fetch(self, model: str, folder: Path, files: list[str]) -> None:
        """Fetch ``files`` into ``folder``."""
        from huggingface_hub import snapshot_download

        snapshot_download(model, local_dir=folder, allow_patterns=files)


def hubs(environ: Mapping[str, str] = os.environ) -> list[Hub]:
    """ModelScope, then Hugging Face; ``HUANHUAN_HUB`` names only one of them. Raises: UserError for any other."""
    both: dict[str, Hub] = {"modelscope": ModelScope(), "huggingface": HuggingFace()}
    named = environ.get("HUANHUAN_HUB", "").strip().lower()
    if not named:
        return list(both.values())
    if named not in both:
        raise UserError(f"HUANHUAN_HUB={named}: 只能是 / must be {' / '.join(both)}: correct it or unset it")
    return [both[named]]


def files_of(listed: dict[str, int]) -> dict[str, int]:
    """``listed`` without folders: ModelScope's client lists them as files of no size and keeps their type to itself.

    >>> files_of({"config.json": 9, "sub": 0, "sub/deep": 0, "sub/deep/a.json": 2})
    {'config.json': 9, 'sub/deep/a.json': 2}
    """
    folders = {str(parent) for path in listed for parent in PurePosixPath(path).parents}
    return {path: size for path, size in listed.items() if path not in folders}


def wanted_files(listed: dict[str, int]) -> dict[str, int]:
    """The files that loading needs: no pictures and papers, and one format of weights, safetensors if it is there."""
    kept = {path: size for path, size in listed.items() if not path.lower().endswith(_USELESS)}
    if any(path.endswith(".safetensors") for path in kept):
        kept = {path: size for path, size in kept.items() if not path.endswith((".bin", ".pt"))}
    return kept


def missing_files(folder: Path, files: dict[str, int]) -> list[str]:
    """Those of ``files`` that are not in ``folder`` with the right size."""
    return [path for path, size in files.items() if not _has(folder / path, size)]


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def fetched(model: str, places: list[Hub], models: Path, report: Report) -> Path:
    """The folder of the hub model ``model`` (``owner/name``), fetched if it is not complete yet.

    Raises: UserError if no place has it, the disk is too small, or files are missing in the end; what has
    arrived stays, and the next try goes on from there.
    """
    folder = models / model.replace("/", "--")
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            files: dict[str, int] = json.loads(manifest.read_text("utf-8"))
        except (OSError, ValueError):
            files = {}
        if files and not missing_files(folder, files):
            return folder
    hub, listed = _find(model, places, report)
    files = wanted_files(listed)
    _check_room(folder, files)
    folder.mkdir(parents=True, exist_ok=True)
    _fetch(hub, model, folder, files, report)
    missing = missing_files(folder, files)
    if missing:
        raise UserError(
            f"{model}: 还缺 {', '.join(missing[:3])}，重试会接着下载 / {len(missing)} files are missing or damaged: "
            "try again, it goes on from here"
        )
    write_text(manifest, json.dumps(files, indent=1))
    return folder


def _find(model: str, places: list[Hub], report: Report) -> tuple[Hub, dict[str, int]]:
    failures: list[str] = []
    for hub in places:
        report(f"{hub.name}: {model}", None)
        try:
            files = hub.files(model)
        except Exception as error:
            logger.warning("%s: %s: %s", hub.name, model, error)
            failures.append(f"{hub.name}: {type(error).__name__}")
            continue
        if files:
            return hub, files
        failures.append(f"{hub.name}: no files")
    raise UserError(
        f"{model}: 下载不到（{'；'.join(failures)}），请检查名字与网络，或把 HUANHUAN_MODEL 指向本地目录 / "
        "cannot be fetched: check the name and the network, or set HUANHUAN_MODEL to a folder"
    )


def _check_room(folder: Path, files: dict[str, int]) -> None:
    needed = sum(files.values()) - _bytes_in(folder)
    free = free_space(folder)
    if needed > free:
        raise UserError(
            f"{folder}: 磁盘空间不够，还需 {disk_size(needed)}，只剩 {disk_size(free)} / the disk is too small: "
            "free some space or set HUANHUAN_MODELS to another disk"
        )


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_blocks * 512
            except OSError:
                # A temporary file that was renamed between the listing and the look at it.
                continue
    return total


def _fetch(hub: Hub, model: str, folder: Path, files: dict[str, int], report: Report) -> None:
    total = max(sum(files.values()), 1)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            done = min(_bytes_in(folder), total)
            report(f"{hub.name}: {model}  {done / GIB:.2f} / {total / GIB:.2f} GiB", done / total)

    watcher = threading.Thread(target=watch, name="download-watch", daemon=True)
    watcher.start()
    try:
        hub.fetch(model, folder, list(files))
    except Exception as error:
        logger.error("%s: %s", hub.name, model, exc_info=error)
        raise UserError(
            f"{model}: 下载中断（{type(error).__name__}），重试会接着下载 / the download broke off: "
            "try again, it goes on from here"
        ) from error
    finally:
        ended.set()
        watcher.join(2)
