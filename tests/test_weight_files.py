"""Whether weight files are whole, as their headers and indexes tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from huanhuan import weight_files
from huanhuan.weight_files import indexed_files, safetensors_damage


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(3, 2), "b": torch.ones(5)}, tmp_path / "whole.safetensors", {"format": "pt"})
    return tmp_path / "whole.safetensors"


def test_what_the_library_writes_is_whole(whole: Path, tmp_path: Path) -> None:
    assert safetensors_damage(whole) is None
    save_file({}, tmp_path / "empty.safetensors")
    assert safetensors_damage(tmp_path / "empty.safetensors") is None


def test_wherever_a_file_is_cut_it_is_noticed(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        assert safetensors_damage(cut), length
    cut.write_bytes(content[:-1])
    assert safetensors_damage(cut) == f"{len(content) - 1} of {len(content)} bytes"
    cut.write_bytes(content[:9])
    assert safetensors_damage(cut) == "cut off"


def test_a_longer_file_is_noticed_too(whole: Path) -> None:
    with whole.open("ab") as file:
        file.write(b"x")
    assert "bytes" in (safetensors_damage(whole) or "")


@pytest.mark.parametrize(
    "header", [b"[]", b"{not json", b'{"a": 1}', b'{"a": {}}', b'{"a": {"data_offsets": [0]}}', b"\xff\xff", b"null"]
)
def test_a_header_that_is_none(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert safetensors_damage(file) == "unreadable header"


def test_a_header_longer_than_the_format_allows_is_not_read(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "LONGEST_HEADER", 16)
    assert safetensors_damage(whole) == "unreadable header"


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    assert safetensors_damage(tmp_path / "nowhere.safetensors") == "unreadable, No such file or directory"


@given(names=st.lists(st.sampled_from(["1.bin", "2.bin", "3.bin"])))
def test_an_index_names_each_file_once(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    index = tmp_path_factory.mktemp("index") / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {str(place): name for place, name in enumerate(names)}}))
    assert indexed_files(index) == sorted(set(names))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": 1}', b"\xff"])
def test_an_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(ValueError):
        indexed_files(tmp_path / "index.json")
