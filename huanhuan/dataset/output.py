"""Several files put in place together, or none of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from huanhuan.errors import UserError


def check_out(out: Path) -> None:
    """Refuse early what could not be written later.

    Raises: UserError if a folder stands where a file should, or the other way round.
    """
    if out.suffix == ".jsonl":
        if out.is_dir():
            raise UserError(f"{out}: 是文件夹而不是文件 / is a folder, not a file: choose another --out")
    elif out.exists() and not out.is_dir():
        raise UserError(
            f"{out}: 是文件而不是文件夹 / is a file, not a folder: choose another --out or end it in .jsonl"
        )
    parent = next(each for each in (out, *out.absolute().parents) if each.exists())
    if not parent.is_dir() and parent != out:
        raise UserError(f"{parent}: 是文件而不是文件夹 / is a file, not a folder: choose another --out")


def write_together(folder: Path, contents: dict[str, Iterable[str]], remove: Sequence[str] = ()) -> None:
    """Write each of ``contents`` (file name to pieces of text) into ``folder``; other files there stay.

    Files of the names in ``remove`` are deleted once the new ones are in place.

    All are written beside their places first and then renamed; if anything fails, every file is as it was.
    """
    created = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        undo.callback(_remove_empty, created)
        parts: dict[Path, Path] = {}
        for name, pieces in contents.items():
            handle, part = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder)
            undo.callback(Path(part).unlink, missing_ok=True)
            parts[folder / name] = Path(part)
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.writelines(pieces)
            # mkstemp creates 0600; a file the user asked for gets what the umask allows.
            umask = os.umask(0)
            os.umask(umask)
            Path(part).chmod(0o666 & ~umask)
        _swap(parts)
        undo.pop_all()
    for name in remove:
        (folder / name).unlink(missing_ok=True)


def _swap(parts: dict[Path, Path]) -> None:
    """Rename every part to its place; the old files come back if one of the renames fails."""
    old: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for place, part in parts.items():
            if place.exists():
                old[place] = part.with_suffix(".old")
                os.link(place, old[place])
            part.replace(place)
            done.append(place)
    except BaseException:
        for place in done:
            if place in old:
                old.pop(place).replace(place)
            else:
                place.unlink(missing_ok=True)
        raise
    finally:
        for kept in old.values():
            kept.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made for an output that did not come, deepest first."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
