"""Weight files of a model folder as far as their structure tells, without torch: whole or not, and which an index names."""

from __future__ import annotations

import json
from pathlib import Path

# The longest header of a safetensors file, as the format itself limits it.
LONGEST_HEADER = 100_000_000


def safetensors_damage(file: Path) -> str | None:
    """What is wrong with the length or the header of a safetensors file; None if nothing is.

    The format (its README, "Format"): eight bytes with the header's length, little-endian; the header, JSON with the
    ``data_offsets`` of every tensor; the tensors. There are no checksums, and the tensors are not read.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= size - 8:
                return "cut off"
            if length > LONGEST_HEADER:
                return "unreadable header"
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"unreadable, {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "unreadable header"
    return None if size == expected else f"{size} of {expected} bytes"


def indexed_files(index: Path) -> list[str]:
    """The names of the weight files in a ``*.index.json``, sorted.

    A ``weight_map`` of ``{"a": "model-2.safetensors", "b": "model-1.safetensors"}`` gives
    ``["model-1.safetensors", "model-2.safetensors"]``.

    Raises: ValueError for what is no such index.
    """
    try:
        return sorted({str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: no weight map") from error
