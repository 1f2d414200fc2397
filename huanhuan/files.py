"""Writing files so that nothing is half-written and nothing of the user's is overwritten by accident."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from huanhuan.errors import UserError, os_errors_about

# A folder that holds one of these was made by a tool of this project: a merged model or an adapter, a tiny base.
MARKERS = ("huanhuan.json", "tiny_base.json")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and rename it into place: readers see the old file or the new one.

    Raises: OSError that names ``path``.
    """
    with os_errors_about(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            make_readable(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def make_readable(file: Path) -> None:
    """Give a temporary file, which is made for its owner only, the permissions that the umask allows."""
    # The umask can only be read by setting it.
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as :func:`write_bytes` does, newlines unchanged."""
    write_bytes(path, content.encode("utf-8"))


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False, markers: Sequence[str] = MARKERS) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block ends without an error.

    An existing ``path`` is replaced if it is empty; or, with ``overwrite``, if it holds one of the files ``markers``,
    which say that a tool made it. It goes only after the new content is complete, and comes back if that cannot be
    put in place. Where ``path`` is a link, the folder it points to is replaced and the link stays.

    Raises: UserError if ``path`` exists and may not be replaced; OSError that names ``path`` if it cannot be written.
    """
    target = Path(path).resolve()
    with ExitStack() as undo:
        with os_errors_about(path):
            _clear_dead(target)
            _refuse(target, Path(path), overwrite, markers)
            undo.callback(remove_empty, missing_folders(target.parent))
            target.parent.mkdir(parents=True, exist_ok=True)
            staging = undo.enter_context(_staging(target))
        content = staging / "new"
        try:
            content.mkdir()
            yield content
            _refuse(target, Path(path), overwrite, markers)  # again: hours may have passed
            if target.exists():
                target.rename(staging / "old")
            content.rename(target)
        except OSError as error:
            # A full disk is reported without a name, and one inside the temporary folder says nothing to the user.
            if error.filename is None or str(error.filename).startswith(str(staging)):
                error.filename, error.filename2 = str(path), None
            raise


def nearest_existing(path: Path) -> Path:
    """``path``, or what there is of it already: the lowest of its parents that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def free_space(path: Path) -> int:
    """Free bytes of the disk that ``path`` is or will be on."""
    return shutil.disk_usage(nearest_existing(path.resolve())).free


def missing_folders(folder: Path) -> list[Path]:
    """``folder`` and those above it that do not exist yet, deepest first."""
    return [each for each in (folder, *folder.absolute().parents) if not each.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, deepest first, that were made for an output that did not come."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _refuse(target: Path, shown: Path, overwrite: bool, markers: Sequence[str]) -> None:
    """Raise UserError if ``target`` may not be replaced."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{shown}: 是文件而不是目录 / is a file, not a folder: choose another")
    here = Path.cwd()
    if target == here or target in here.parents:
        raise UserError(
            f"{shown}: 当前目录就在里面，不能替换 / is or holds the current folder and cannot be replaced: "
            "换一个目录 / choose another folder"
        )
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not any((target / name).is_file() for name in markers):
        raise UserError(
            f"{shown}: 里面的东西不是本工具生成的，加 --overwrite 也不会替换 / holds what no tool of this project made, "
            "which --overwrite does not replace either: 换一个目录 / choose another folder"
        )
    if not overwrite:
        raise UserError(
            f"{shown}: 已存在，加 --overwrite 替换或换一个目录 / exists: pass --overwrite or choose another"
        )


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, locked as long as it is there so that another run does not take it for dead."""
    staging, lock = _claim(target)
    try:
        yield staging
    finally:
        _clear(staging, target)
        if lock is not None:
            os.close(lock)


def _claim(target: Path) -> tuple[Path, int | None]:
    while True:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        # Until it is locked, another run may remove it.
        with suppress(FileNotFoundError, BlockingIOError):
            lock = _lock(staging)
            if staging.is_dir():
                return staging, lock
            if lock is not None:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock ``folder`` for as long as the returned descriptor is open; None where there are no such locks.

    The system gives the lock back when the process ends, however it ends.

    Raises: BlockingIOError if another process has it, FileNotFoundError if the folder is gone.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:  # some network file systems
        os.close(descriptor)
        return None
    return descriptor


def _clear_dead(target: Path) -> None:
    """Remove what runs for ``target`` left behind that were killed before they could."""
    if not target.parent.is_dir():
        return
    left = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.part")
    for staging in target.parent.iterdir():
        if left.fullmatch(staging.name) and staging.is_dir() and not staging.is_symlink():
            # Somebody else's, or in use: it stays.
            with suppress(OSError):
                lock = _lock(staging)
                if lock is not None:
                    try:
                        _clear(staging, target)
                    finally:
                        os.close(lock)


def _clear(staging: Path, target: Path) -> None:
    """Remove ``staging``; what it holds of an older ``target`` goes back if nothing took its place."""
    old = staging / "old"
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(staging, ignore_errors=True)
