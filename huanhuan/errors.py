"""Errors meant for the person at the keyboard: what is wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """One or more problems with what the user gave, each a single line.

    ``problems`` holds every problem found in one pass, so that an input is corrected once and not
    once per run.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Problems:
    """Collects the problems of one input and raises them together.

    >>> problems = Problems()
    >>> problems.add("persona.toml: [name] is missing: add name = \\"…\\"")
    >>> problems.raise_if_any()
    Traceback (most recent call last):
    huanhuan.errors.UserError: persona.toml: [name] is missing: add name = "…"
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Remember one problem, a single line."""
        self.found.append(problem)

    def extend(self, problems: Iterable[str]) -> None:
        """Remember several."""
        self.found.extend(problems)

    def raise_if_any(self) -> None:
        """Raise UserError with every problem added so far; do nothing if there is none."""
        if self.found:
            raise UserError(self.found)


def disk_size(size: float) -> str:
    """Bytes as a person reads them.

    >>> disk_size(3.5 * 2**30), disk_size(2**20), disk_size(1000)
    ('3.5 GiB', '1.0 MiB', '1.0 KiB')
    """
    unit, name = next((each for each in ((2**30, "GiB"), (2**20, "MiB")) if size >= 0.95 * each[0]), (2**10, "KiB"))
    return f"{size / unit:.1f} {name}"


def os_error_line(path: Path | str, error: OSError, action: str) -> str:
    """One line for an OSError: which path, what the system said, and ``action`` to take next."""
    return f"{path}: {error.strerror or error}: {action}"


@contextmanager
def os_errors_about(path: Path | str) -> Iterator[None]:
    """Give every OSError raised inside ``path`` as its file name.

    Writing to a full disk fails without a name, and a temporary file's own name says nothing to the user.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
