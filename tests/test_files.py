"""Nothing is half-written, nothing of the user's is replaced, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from huanhuan.errors import UserError
from huanhuan.files import (
    MARKERS,
    free_space,
    nearest_existing,
    new_folder,
    remove_empty,
    write_bytes,
    write_text,
)
from huanhuan.paths import ROOT

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def tree(folder: Path) -> dict[str, str]:
    """The files below ``folder``, hidden ones included, and the empty folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_text("utf-8")
        elif not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def fill(path: Path, text: str = "new", **options: Any) -> None:
    with new_folder(path, **options) as folder:
        (folder / "tiny_base.json").write_text(text, "utf-8")


def a_base(path: Path, text: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "tiny_base.json").write_text(text, "utf-8")
    return path


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def fail_rename(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """Let the ``which``-th rename fail, and none before or after it."""
    real, count = Path.rename, iter(range(1, 99))

    def rename(self: Path, target: Path) -> Path:
        if next(count) == which:
            raise OSError(errno.EIO, "Input/output error", str(self), None, str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_text_is_written_as_it_is_with_the_usual_permissions(tmp_path: Path) -> None:
    with umask(0o027):
        write_text(tmp_path / "new/a.txt", "一\r\n二\n")
    assert (tmp_path / "new/a.txt").read_bytes() == "一\r\n二\n".encode()
    assert (tmp_path / "new/a.txt").stat().st_mode & 0o777 == 0o640
    write_bytes(tmp_path / "new/a.txt", b"again")
    assert tree(tmp_path) == {"new/a.txt": "again"}


def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("old", "utf-8")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError) as error:
            write_bytes(tmp_path / "a.txt", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "a.txt"))
    assert tree(tmp_path) == {"a.txt": "old"}


def test_a_place_that_cannot_be_written_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    for write in (lambda path: write_bytes(path, b"x"), fill):
        with pytest.raises(OSError) as error:
            write(tmp_path / "file/below")
        assert str(error.value.filename) == str(tmp_path / "file/below")


def test_a_folder_appears_when_it_is_complete_with_the_usual_permissions(tmp_path: Path) -> None:
    with umask(0o027), new_folder(tmp_path / "a/b") as folder:
        (folder / "one").write_text("1", "utf-8")
        assert not (tmp_path / "a/b").exists()
    assert tree(tmp_path) == {"a/b/one": "1"}
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o750


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert tree(tmp_path) == {"out/tiny_base.json": "new"}


@pytest.mark.parametrize(
    "error", [NO_SPACE, KeyboardInterrupt(), ValueError("odd")], ids=lambda error: type(error).__name__
)
def test_a_block_that_fails_leaves_nothing_and_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    a_base(tmp_path / "old")
    for path in (tmp_path / "old", tmp_path / "new/deep"):
        with pytest.raises(type(error)), new_folder(path, overwrite=True) as folder:
            (folder / "half").write_text("half", "utf-8")
            raise error
    assert tree(tmp_path) == {"old/tiny_base.json": "old"}


def test_an_error_without_a_name_or_inside_the_temporary_folder_gets_the_name_of_the_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError) as error, new_folder(out) as folder:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(out)
    with pytest.raises(FileNotFoundError) as missing, new_folder(out) as folder:
        (folder / "none").read_bytes()
    assert missing.value.filename == str(out)
    with pytest.raises(FileNotFoundError) as other, new_folder(out) as folder:
        (tmp_path / "base").read_bytes()
    assert other.value.filename == str(tmp_path / "base")


@pytest.mark.parametrize("marker", MARKERS)
def test_what_a_tool_made_is_replaced_when_asked_only(tmp_path: Path, marker: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / marker).write_text("old", "utf-8")
    with pytest.raises(UserError, match="--overwrite") as error:
        fill(tmp_path / "out")
    assert len(error.value.problems) == 1
    assert tree(tmp_path) == {f"out/{marker}": "old"}
    fill(tmp_path / "out", overwrite=True)
    assert tree(tmp_path) == {"out/tiny_base.json": "new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_tool_made_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine", "utf-8")
    (tmp_path / "file").write_text("mine", "utf-8")
    for name in ("out", "file"):
        with pytest.raises(UserError, match="choose another") as error:
            fill(tmp_path / name, overwrite=overwrite)
        assert len(error.value.problems) == 1
    assert tree(tmp_path) == {"file": "mine", "out/notes.txt": "mine"}


def test_a_caller_may_name_its_own_markers(tmp_path: Path) -> None:
    a_base(tmp_path / "out")
    with pytest.raises(UserError, match="choose another"):
        fill(tmp_path / "out", overwrite=True, markers=("huanhuan.json",))
    fill(tmp_path / "out", overwrite=True, markers=("tiny_base.json",))
    assert tree(tmp_path) == {"out/tiny_base.json": "new"}


def test_the_markers_are_what_the_tools_write() -> None:
    from huanhuan.export.model_folder import PROVENANCE
    from huanhuan.training.demo_base import RECEIPT

    assert MARKERS == (PROVENANCE, RECEIPT)


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_the_current_folder_is_not_pulled_from_under_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(a_base(tmp_path / "here"))
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"current folder") as error:
        fill(Path(out), overwrite=True)
    assert error.value.problems[0].startswith(f"{out}: ")
    assert tree(tmp_path) == before


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    a_base(tmp_path / "disk/base")
    (tmp_path / "out").symlink_to(tmp_path / "disk/base")
    with pytest.raises(UserError, match="--overwrite"):
        fill(tmp_path / "out")
    fill(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert tree(tmp_path / "disk") == {"base/tiny_base.json": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "out"}


def test_a_link_to_nowhere_yet_is_followed(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "disk/base")
    fill(tmp_path / "out")
    assert tree(tmp_path / "disk") == {"base/tiny_base.json": "new"}


@pytest.mark.parametrize("which", [1, 2])
def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    a_base(tmp_path / "out")
    fail_rename(monkeypatch, which)
    with pytest.raises(OSError) as error:
        fill(tmp_path / "out", overwrite=True)
    assert error.value.filename == str(tmp_path / "out")
    assert tree(tmp_path) == {"out/tiny_base.json": "old"}


KILLED = """
import os, sys
from pathlib import Path
from huanhuan.files import new_folder
with new_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "half").write_text("half")
    if len(sys.argv) > 2:  # between the two renames
        Path(sys.argv[1]).rename(folder.parent / "old")
    os._exit(9)
"""


def killed(out: Path, *more: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), *more], cwd=ROOT, check=False)
    assert done.returncode == 9


def test_what_a_killed_run_left_is_cleared_by_the_next_one(tmp_path: Path) -> None:
    killed(tmp_path / "out")
    killed(tmp_path / "out.b")
    (tmp_path / ".out.notes.part").mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    fill(tmp_path / "out")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left[1:] == [".out.notes.part", "out"]
    assert left[0].startswith(".out.b.")


def test_a_folder_that_a_killed_run_had_moved_aside_comes_back(tmp_path: Path) -> None:
    a_base(tmp_path / "out")
    killed(tmp_path / "out", "between")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--overwrite"):
        fill(tmp_path / "out")
    assert tree(tmp_path) == {"out/tiny_base.json": "old"}


def test_a_run_that_is_still_going_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "tiny_base.json").write_text("slower", "utf-8")
        fill(tmp_path / "out")
        assert tree(tmp_path / "out") == {"tiny_base.json": "new"}
    assert tree(tmp_path) == {"out/tiny_base.json": "slower"}


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose another"), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/notes.txt").write_text("mine", "utf-8")
    assert tree(tmp_path) == {"out/notes.txt": "mine"}


def test_only_empty_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/mine").write_text("mine", "utf-8")
    remove_empty([tmp_path / "a/b/c", tmp_path / "a/b", tmp_path / "a", tmp_path / "none"])
    assert tree(tmp_path) == {"a/mine": "mine"}


def test_the_disk_is_that_of_what_there_is_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert nearest_existing(Path("a/b/c")) == tmp_path
    (tmp_path / "a").mkdir()
    assert nearest_existing(Path("a/b/c")) == tmp_path / "a"
    (tmp_path / "file").touch()
    assert nearest_existing(Path("file")) == nearest_existing(Path("file/x")) == tmp_path / "file"


def test_the_disk_of_a_link_is_that_of_what_it_points_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "models").symlink_to(other / "not/yet")
    usage = shutil.disk_usage(tmp_path)
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage._replace(free=7))
    assert free_space(tmp_path / "models" / "huanhuan") == 7
    assert asked == [other]
