"""Model weights on disk, read and written a few rows at a time, so that a model may be larger than memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from huanhuan.errors import Problems, UserError
from huanhuan.weight_files import indexed_files

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

# safetensors' names of the types; its own table is private.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Elements worked on at once: 32 MiB in fp32, small beside the imports and large enough for a fast product.
BLOCK_ELEMENTS = 8 * 2**20


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is opened; ``open`` returns something that row slices can be taken of."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    open: Callable[[], Any]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> LazyTensor:
        """A tensor that is in memory, or memory-mapped, already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def load(self) -> torch.Tensor:
        """The whole tensor."""
        return self.open()[...]

    def blocks(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """``(start, stop, rows)`` from first row to last; a tensor without dimensions is one block."""
        opened = self.open()
        if not self.shape:
            yield 0, 1, opened[...]
            return
        step = max(1, BLOCK_ELEMENTS // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            yield start, stop, opened[start:stop]


@dataclass(frozen=True)
class Weights:
    """Weights of a Hugging Face folder: its files in order, each with the names of its tensors."""

    layout: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, LazyTensor]


def read_safetensors(file: Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, none of them read yet.

    Raises: safetensors.SafetensorError if the file is damaged.
    """
    from safetensors import safe_open

    def opener(name: str) -> Callable[[], Any]:
        def open_slice() -> Any:
            # A file handle of its own: closing it gives back the pages that were mapped for this tensor.
            handle: Any = safe_open(str(file), framework="pt")
            handle.__enter__()
            return handle.get_slice(name) if handle.get_slice(name).get_shape() else handle.get_tensor(name)

        return open_slice

    found = {}
    with safe_open(str(file), framework="pt") as handle:
        for name in handle.keys():  # noqa: SIM118  # the handle is not a dict
            view = handle.get_slice(name)
            found[name] = LazyTensor(tuple(view.get_shape()), DTYPES[view.get_dtype()], opener(name))
    return found


def read_weights(folder: Path) -> Weights:
    """Find the weights of a model folder: safetensors if it has them, else ``.bin``; sharded or in one file.

    Raises: UserError naming every missing or damaged file.
    """
    for index, single in ((SAFETENSORS_INDEX, SAFETENSORS), (BIN_INDEX, BIN)):
        if (folder / index).is_file():
            return _read_files(folder, _index_files(folder / index))
        if (folder / single).is_file():
            return _read_files(folder, [single])
    raise UserError(f"{folder}: 没有权重文件 / no weights ({SAFETENSORS}, {BIN} or an index): check --base")


def _index_files(index: Path) -> list[str]:
    try:
        files = indexed_files(index)
    except ValueError:
        raise UserError(f"{index}: 索引损坏 / damaged index: 重新下载底模 / download the base again") from None
    if any(Path(file).name != file for file in files):
        raise UserError(f"{index}: 索引指向目录之外 / the index points outside its folder: download the base again")
    return files


def _read_files(folder: Path, files: Sequence[str]) -> Weights:
    problems = Problems()
    layout: dict[str, tuple[str, ...]] = {}
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        if not (folder / file).is_file():
            problems.add(f"{folder / file}: 缺少权重文件 / weights missing: 重新下载底模 / download the base again")
            continue
        try:
            found = read_safetensors(folder / file) if file.endswith(".safetensors") else _read_bin(folder / file)
        except Exception as error:  # the readers raise whatever the damaged byte leads them to
            problems.add(
                f"{folder / file}: 权重损坏 / damaged weights ({error}): 重新下载底模 / download the base again"
            )
            continue
        layout[file] = tuple(found)
        tensors.update(found)
    problems.raise_if_any()
    return Weights(layout, tensors)


def _read_bin(file: Path) -> dict[str, LazyTensor]:
    loaded = torch.load(str(file), map_location="cpu", mmap=True, weights_only=True)
    return {name: LazyTensor.of(tensor) for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}


def byte_size(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * dtype.itemsize


def shard_names(count: int) -> list[str]:
    """File names as Transformers gives them.

    >>> shard_names(2)
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    if count == 1:
        return [SAFETENSORS]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_safetensors(
    file: Path,
    tensors: Mapping[str, tuple[Sequence[int], torch.dtype]],
    blocks: Callable[[str], Iterable[torch.Tensor]],
    written: Callable[[int], Any] = lambda count: None,
) -> None:
    """Write a safetensors file whose tensors come in blocks of rows; safetensors itself needs them whole.

    ``tensors`` gives shape and dtype of each name, ``blocks(name)`` its content in order, ``written`` is told
    the number of bytes after each block.
    """
    # Wide types first: every tensor then starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: -tensors[name][1].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        shape, dtype = tensors[name]
        end = offset + byte_size(shape, dtype)
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, ensure_ascii=False).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as target:
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            for block in blocks(name):
                content = block.contiguous().reshape(-1).view(torch.uint8).numpy()
                target.write(content.data)
                written(content.nbytes)


def write_index(folder: Path, shards: Mapping[str, Iterable[str]], total_size: int) -> None:
    """Write the index of a sharded model; nothing if there is one file only. ``total_size`` is in bytes."""
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
