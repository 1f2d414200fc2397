"""Pictures: drawn, sealed, and taken from a card."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from huanhuan.chat import portrait
from huanhuan.chat.portrait import as_png, portrait_png, portrait_svg, readable_picture, square


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def test_the_drawn_one_and_the_seal() -> None:
    assert 'aria-label="甄嬛"' in portrait_svg("huanhuan", "甄嬛")
    seal = portrait_svg("../../etc", "<b>&")
    assert "&lt;" in seal and "<b>" not in seal


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_a_picture_is_encoded_anew_and_small(mode: str) -> None:
    kept = readable_picture(png((600, 900), mode))
    assert kept
    with Image.open(io.BytesIO(kept)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (341, 512))
    with Image.open(io.BytesIO(square(kept))) as image:
        assert image.size == (160, 160)
    with Image.open(io.BytesIO(as_png(kept))) as image:
        assert image.format == "PNG"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_picture_that_would_fill_the_memory_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    assert readable_picture(bomb) is None
    monkeypatch.setattr(portrait, "MOST_PIXELS", 99 * 100)
    assert readable_picture(png((100, 100))) is None


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(50), png((100, 100))[:70], png((2, 900)), b"<svg></svg>"])
def test_what_is_no_picture_is_none(content: bytes) -> None:
    assert readable_picture(content) is None


def test_nothing_but_the_pixels_is_kept() -> None:
    whole = portrait_png("阿沅")
    end = whole.rindex(b"IEND") - 4
    kept = readable_picture(whole[:end] + chunk(b"tEXt", b"note\0secret") + whole[end:])
    assert kept and b"secret" not in kept
