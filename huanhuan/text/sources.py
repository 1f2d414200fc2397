"""The files of a source, in the order a reader would take them, and their text."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huanhuan.errors import Problems, UserError, os_error_line
from huanhuan.text.encoding import decode
from huanhuan.text.numerals import natural_key

# Files that hold conversations already; taken only when named, since a folder of scripts may hold what was made of them.
READY = (".jsonl", ".json")
SUFFIXES = (".txt", ".md", ".markdown", ".docx", ".fountain")


@dataclass(frozen=True)
class SourceFile:
    """A file to read. ``name`` is its path from the parent of the SOURCE it was found under, with ``/``."""

    path: Path
    name: str


def find_files(sources: Iterable[Path | str]) -> list[SourceFile]:
    """Every readable file of ``sources`` (files or folders), folders in natural order, no file twice.

    Names do not depend on the current folder: the same sources give the same names from anywhere.
    Raises: UserError for a source that is missing or a folder without a script.
    """
    problems = Problems()
    found: dict[Path, SourceFile] = {}
    for source in map(Path, sources):
        root = source.resolve()
        if root.is_dir():
            files = [
                path
                for path in root.rglob("*")
                if path.suffix.lower() in SUFFIXES
                and path.is_file()
                # Hidden files, and the lock files that word processors leave beside a document.
                and not any(part.startswith((".", "~$")) for part in path.relative_to(root).parts)
            ]
            if not files:
                problems.add(
                    f"{source}: 文件夹里没有剧本 / no script in this folder: put {', '.join(SUFFIXES)} files into it"
                )
            files.sort(key=lambda path: [natural_key(part) for part in path.relative_to(root).parts])
        elif root.exists():
            files = [root]
        else:
            problems.add(f"{source}: 找不到 / no such file or folder: check SOURCE")
            continue
        for path in files:
            found.setdefault(path, SourceFile(path, path.relative_to(root.parent).as_posix()))
    problems.raise_if_any()
    return list(found.values())


def read_text(source: SourceFile, encoding: str | None = None) -> tuple[str, str]:
    """The text of a file and the name of its encoding (``docx`` for Word documents).

    Raises: UserError if it cannot be read, is not text, or its encoding is not certain.
    """
    try:
        data = source.path.read_bytes()
    except OSError as error:
        raise UserError(
            os_error_line(source.name, error, "检查文件和权限 / check the file and its permissions")
        ) from None
    if source.path.suffix.lower() == ".docx":
        return _docx_text(source, data), "docx"
    return decode(data, source.name, encoding)


def _docx_text(source: SourceFile, data: bytes) -> str:
    """Paragraphs and table rows in document order, one line each; a tab stands between the cells of a row."""
    import io

    # Loaded only here: it takes longer to import than a script to read.
    from docx import Document
    from docx.opc.exceptions import PackageNotFoundError
    from docx.table import Table

    broken = UserError(
        f"{source.name}: 不是有效的 Word 文档 / not a valid .docx: open it and save it again as .docx or .txt"
    )
    try:
        document = Document(io.BytesIO(data))
        lines: list[str] = []
        for block in document.iter_inner_content():
            if isinstance(block, Table):
                for row in block.rows:
                    # A merged cell is listed once per column it spans.
                    cells = dict.fromkeys(cell._tc for cell in row.cells)
                    texts = [
                        " ".join(p.text for p in cell.paragraphs)
                        for cell in row.cells
                        if cells.pop(cell._tc, 0) is None
                    ]
                    lines.append("\t".join(texts))
            else:
                lines.append(block.text)
    except (PackageNotFoundError, zipfile.BadZipFile, KeyError, ValueError, SyntaxError) as error:
        raise broken from error
    return "\n".join(lines)
