"""Lists that go to disk when they grow, so that memory stays with one file however many are converted."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from huanhuan.errors import UserError, os_error_line
from huanhuan.text.model import Skipped

# Below this many bytes nothing is written to disk.
_IN_MEMORY = 8 << 20


class Texts:
    """An append-only list of texts without newlines; an unnamed temporary file holds it once it is large."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._starts = array("Q")
        self._end = 0

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, text: str) -> None:
        """Add one text.

        Raises: UserError if the disk is full.
        """
        data = text.encode("utf-8", "surrogatepass") + b"\n"
        try:
            # Reading moves the position; writing always goes to the end.
            self._file.seek(self._end)
            self._file.write(data)
        except OSError as error:
            advice = "清理临时目录，或用 TMPDIR 指向另一块磁盘 / free some space there or point TMPDIR to another disk"
            raise UserError(os_error_line(tempfile.gettempdir(), error, advice)) from error
        self._starts.append(self._end)
        self._end += len(data)

    def __getitem__(self, index: int) -> str:
        self._file.seek(self._starts[index])
        return self._file.readline()[:-1].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        # Each text is sought anew, so that several loops may run at once.
        return (self[index] for index in range(len(self)))


class SkippedLog(Sequence[Skipped]):
    """The skipped items of a conversion, read back one by one."""

    def __init__(self) -> None:
        self._texts = Texts()

    def __len__(self) -> int:
        return len(self._texts)

    def append(self, item: Skipped) -> None:
        """Add one item."""
        self._texts.append(json.dumps((item.file, item.line, item.last, item.reason, item.text), ensure_ascii=False))

    @overload
    def __getitem__(self, index: int) -> Skipped: ...
    @overload
    def __getitem__(self, index: slice) -> list[Skipped]: ...
    def __getitem__(self, index: int | slice) -> Skipped | list[Skipped]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Skipped(*json.loads(self._texts[index]))

    def __iter__(self) -> Iterator[Skipped]:
        return (Skipped(*json.loads(text)) for text in self._texts)
