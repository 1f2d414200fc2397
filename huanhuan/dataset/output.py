"""Several files put in place together, or none of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from huanhuan.errors import Problems, UserError, os_errors_about
from huanhuan.files import make_readable, missing_folders, nearest_existing, remove_empty

# What a folder gets; report.html only if it is wanted.
TRAIN, VAL, REPORT, PAGE = FOLDER_FILES = ("train.jsonl", "val.jsonl", "report.json", "report.html")


def is_one_file(out: Path) -> bool:
    """Whether ``out`` names one file for all records, and not a folder.

    >>> is_one_file(Path("all.JSONL")), is_one_file(Path("data/huanhuan"))
    (True, False)
    """
    return out.suffix.lower() == ".jsonl"


def check_out(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse early what could not be written later, and what would replace one of ``inputs``.

    Raises: UserError if a folder stands where a file should, or the other way round, or for every input that would be
    overwritten.
    """
    if is_one_file(out):
        if out.is_dir():
            raise UserError(f"{out}: 是文件夹而不是文件 / is a folder, not a file: choose another --out")
    elif out.exists() and not out.is_dir():
        raise UserError(
            f"{out}: 是文件而不是文件夹 / is a file, not a folder: choose another --out or end it in .jsonl"
        )
    parent = nearest_existing(out)
    if not parent.is_dir() and parent != out.absolute():
        raise UserError(f"{parent}: 是文件而不是文件夹 / is a file, not a folder: choose another --out")
    problems = Problems()
    places = [out] if is_one_file(out) else [out / name for name in FOLDER_FILES]
    for given in dict.fromkeys(inputs):
        for place in places:
            if place.exists() and given.exists() and place.samefile(given):
                problems.add(
                    f"{given}: 会被输出覆盖 / is an input that the output would replace: 换一个 --out / choose another --out"
                )
    problems.raise_if_any()


def write_together(folder: Path, contents: dict[str, Iterable[str]], remove: Sequence[str] = ()) -> None:
    """Write each of ``contents`` (file name to pieces of text) into ``folder``; other files there stay.

    Files of the names in ``remove`` are deleted once the new ones are in place.

    All are written beside their places first and then renamed; if anything fails, every file is as it was.

    Raises: OSError that names the file which cannot be written.
    """
    with ExitStack() as undo:
        undo.callback(remove_empty, missing_folders(folder))
        with os_errors_about(folder):
            folder.mkdir(parents=True, exist_ok=True)
        parts: dict[Path, Path] = {}
        for name, pieces in contents.items():
            with os_errors_about(folder / name):
                handle, part = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder)
                undo.callback(Path(part).unlink, missing_ok=True)
                parts[folder / name] = Path(part)
                with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                    file.writelines(pieces)
                make_readable(Path(part))
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
            with os_errors_about(place):
                if place.exists():
                    old[place] = part.with_suffix(".old")
                    _keep(place, old[place])
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


def _keep(place: Path, other: Path) -> None:
    """Let ``other`` hold what ``place`` holds, whatever takes that place."""
    try:
        os.link(place, other)
    except OSError:
        # Some file systems have no second name for a file.
        shutil.copy2(place, other)
