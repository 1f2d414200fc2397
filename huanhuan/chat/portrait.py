"""A character's picture: one drawn for the project, the card's own, or a seal with the first letter of the name."""

from __future__ import annotations

import hashlib
import io
from html import escape
from pathlib import Path

ASSETS = Path(__file__).parent / "page" / "assets"
# A picture is read up to this size and kept at most this wide and high.
MOST_PIXELS = 12_000_000
KEPT_SIDE = 512


def _hue(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) % 360


def portrait_svg(key: str, name: str) -> str:
    """The SVG of the persona ``key``: the drawn one if there is one, else a seal."""
    drawn = ASSETS / f"{key}.svg"
    if key.isidentifier() and drawn.is_file():
        return drawn.read_text("utf-8")
    letter = escape(next(iter(name.strip()), "?"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128" role="img" aria-label="{escape(name)}">'
        f'<rect x="2" y="2" width="124" height="124" rx="28" fill="hsl({_hue(name)},45%,38%)"/>'
        '<rect x="14" y="14" width="100" height="100" rx="18" fill="none" stroke="#fff8" stroke-width="3"/>'
        '<text x="64" y="86" font-size="62" text-anchor="middle" fill="#fffaf2" '
        f'font-family="Kaiti SC,KaiTi,STKaiti,Noto Serif CJK SC,serif">{letter}</text></svg>'
    )


def readable_picture(content: bytes) -> bytes | None:
    """A PNG or JPEG of anybody's, decoded and encoded anew as a small JPEG; None if it is damaged or too large.

    The size is looked at before anything is decoded, and nothing but the pixels is kept.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MOST_PIXELS or min(image.size) < 16:
                return None
            image.thumbnail((KEPT_SIDE, KEPT_SIDE))
            flat = Image.new("RGB", image.size, "white")
            whole = image.convert("RGBA")
            flat.paste(whole, mask=whole)
    except Exception:
        # A decoder fails in as many ways as a file can be damaged.
        return None
    file = io.BytesIO()
    flat.save(file, "JPEG", quality=85)
    return file.getvalue()


def square(picture: bytes, side: int = 160) -> bytes:
    """The upper middle of a card's picture, where faces are, as a square JPEG."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(picture)) as image:
        cut = ImageOps.fit(image.convert("RGB"), (side, side), centering=(0.5, 0.2))
    file = io.BytesIO()
    cut.save(file, "JPEG", quality=85)
    return file.getvalue()


def as_png(picture: bytes) -> bytes:
    """A card's picture as the PNG that a card file is."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.save(file, "PNG")
    return file.getvalue()


def portrait_png(name: str) -> bytes:
    """A 400 × 600 PNG for a character card: a moon over hills in the character's own colours.

    Drawn without text: the machine may have no font for it.
    """
    from PIL import Image, ImageDraw

    hue = _hue(name)
    image = Image.new("HSV", (400, 600))
    draw = ImageDraw.Draw(image)
    base = hue * 255 // 360
    for row in range(600):
        draw.line([(0, row), (400, row)], fill=(base, 120, 60 + row * 110 // 600))
    draw.ellipse([230, 70, 330, 170], fill=(28, 60, 250))
    for number, height in enumerate((430, 480, 530)):
        draw.polygon(
            [
                (0, 600),
                (0, height),
                (130, height - 60 + 25 * number),
                (260, height + 10),
                (400, height - 30),
                (400, 600),
            ],
            fill=(base, 150, 80 - number * 22),
        )
    for number in range(9):
        x, y = 40 + number * 23 % 150, 60 + number * 47 % 210
        draw.ellipse([x, y, x + 20, y + 20], fill=(245, 90, 240))
        draw.ellipse([x + 7, y + 7, x + 13, y + 13], fill=(28, 90, 250))
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    return file.getvalue()
