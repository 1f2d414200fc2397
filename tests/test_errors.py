"""Errors for the person at the keyboard: all at once, one line each, with the file they are about."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from huanhuan.errors import Problems, UserError, os_error_line, os_errors_about


def test_one_problem_or_many() -> None:
    assert UserError("a: b: c").problems == ["a: b: c"]
    error = UserError(each for each in ("a: b: c", "d: e: f"))
    assert error.problems == ["a: b: c", "d: e: f"]
    assert str(error) == "a: b: c\nd: e: f"


def test_problems_are_raised_together_and_none_is_no_error() -> None:
    problems = Problems()
    problems.raise_if_any()
    problems.add("first")
    problems.add("second")
    problems.extend(each for each in ("third", "fourth"))
    problems.extend([])
    with pytest.raises(UserError) as error:
        problems.raise_if_any()
    assert error.value.problems == ["first", "second", "third", "fourth"]


def test_a_line_says_which_path_what_and_what_next() -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    assert os_error_line(Path("a/b"), error, "free some") == "a/b: No space left on device: free some"
    assert os_error_line("a", OSError("odd"), "look") == "a: odd: look"


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EACCES, "Permission denied", "/out/.a.txt.x1.part"),
        OSError(errno.EXDEV, "Invalid cross-device link", "/out/.a.txt.x1.part", None, "/out/a.txt"),
    ],
)
def test_an_error_is_about_the_file_that_the_user_knows(raised: OSError) -> None:
    with pytest.raises(OSError) as error, os_errors_about(Path("a.txt")):
        raise raised
    assert error.value is raised
    assert (error.value.filename, error.value.filename2) == ("a.txt", None)


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(UserError, match=r"^said$"), os_errors_about("a.txt"):
        raise UserError("said")
