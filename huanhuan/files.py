"""Writing files so that nothing is half-written and nothing of the user's is overwritten by accident."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huanhuan.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and rename it into place: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp creates 0600; a file the user asked for gets what the umask allows.
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as :func:`write_bytes` does, newlines unchanged."""
    write_bytes(path, content.encode("utf-8"))


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block ends without an error.

    An existing non-empty ``path`` is refused unless ``overwrite``; then it is replaced only after the new
    content is complete.

    Raises: UserError if ``path`` exists and may not be replaced.
    """
    path = Path(path)
    occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if occupied and not overwrite:
        raise UserError(f"{path}: 已存在，加 --overwrite 替换或换一个目录 / exists: pass --overwrite or choose another")
    if path.is_file():
        raise UserError(f"{path}: 是文件而不是目录 / is a file, not a folder: choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.replace(retired / "old")
            partial.replace(path)
            shutil.rmtree(retired)
        else:
            partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
