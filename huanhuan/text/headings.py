"""Lines that divide a script: scenes, episodes, separators."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from huanhuan.text.numerals import CHINESE

_NUMBER = f"[0-9０-９{CHINESE}][0-9０-９{CHINESE},，.．、\\s-]{{0,12}}"
_END = r"(?=$|[\s:：（(【\[、,，.．—\-－·|/])"
_OPEN = r"[#*_【\[（(〔<《=\-—\s]*"
_SCENE = re.compile(
    rf"{_OPEN}(?:第\s*{_NUMBER}\s*[幕场場镜鏡秒景](?:戏|戲)?{_END.replace('$', r'$|[】）)*_]')}"
    rf"|[场場][次景]\s*[:：]?\s*{_NUMBER}|[场場]\s*{_NUMBER}{_END}"
    # 【另分一幕】 and its like: a short note that ends in the word for a scene.
    rf"|【[^】]{{0,8}}[幕场場]】\s*$)"
)
_NUMBERED = re.compile(r"\d{1,4}\s?[-–—－]\s?\d{1,4}[A-Za-z]?(?:\s[^:：]*|[.．、:：]?)$")
# 第3场养心殿: nothing after the word for a scene but a few words of a place.
_PLAIN = re.compile(rf"第\s*{_NUMBER}\s*([幕场場镜鏡集回章])[^，。！？：:；“”]{{1,20}}$")
_ENGLISH = re.compile(
    r"[#*\s]*(?:\d+[A-Z]?[.\s]\s*)?(?:(?:INT|EXT|EST|INT\./EXT|EXT\./INT|INT/EXT|I/E)[.\s]\s*\S"
    r"|(?:SCENE|Scene|ACT|Act)\s+(?:[0-9]+|[IVXLC]+)\b(?:[.:,\s—-].*)?$|PROLOGUE\s*$|EPILOGUE\s*$)"
)
_EPISODE = re.compile(
    rf"{_OPEN}(?:第\s*{_NUMBER}\s*[集回章季卷话話期部节節]{_END.replace('$', r'$|[】）)*_》]')}"
    r"|(?:EPISODE|Episode|CHAPTER|Chapter)\s+(?:[0-9]+|[IVXLC]+)\b)"
)
# Blanks stand only between the signs, so that no line can be matched in many ways.
_BREAK = re.compile(
    r"(?:[*＊](?:\s*[*＊]){2,}|[-－=＝~～_—](?:\s*[-－=＝~～_—]){2,}|[◇◆※○●☆★□■▲△§#](?:\s*[◇◆※○●☆★□■▲△§#])*)$"
)
_CONTINUED = re.compile(r"[（(【\[]\s*(?:续|續|接上|CONT'?D?|CONTINUED)\s*\d*\s*[）)】\]]|(?:续|續)\s*$")
_KEY = re.compile(rf"第\s*({_NUMBER})|(\d{{1,4}}\s*[-–—－]\s*\d{{1,4}})")
# A heading is short; a sentence that begins like one is not.
_LONGEST = 80
_FIRST = frozenset("第【[（(〔<《#*_场場INESPCAinescpa=-—－ \t　※◇◆○●☆★□■▲△§~～＝＊0123456789０１２３４５６７８９")


@dataclass(frozen=True)
class Heading:
    """A dividing line. ``key`` is the scene's number, the same for a scene and its continuation."""

    kind: Literal["scene", "episode", "break"]
    text: str
    key: str
    continued: bool


def read_heading(line: str) -> Heading | None:
    """The heading that ``line`` is, or None.

    >>> read_heading("第610,幕（续）")
    Heading(kind='scene', text='第610,幕（续）', key='610', continued=True)
    """
    if not line or line[0] not in _FIRST or len(line) > _LONGEST:
        return None
    text = line.strip()
    if _SCENE.match(text) or _NUMBERED.match(text) or _ENGLISH.match(text):
        kind: Literal["scene", "episode", "break"] = "scene"
    elif _EPISODE.match(text):
        kind = "episode"
    elif _BREAK.match(text):
        return Heading("break", "", "", False)
    elif plain := _PLAIN.match(text):
        kind = "scene" if plain.group(1) in "幕场場镜鏡" else "episode"
    else:
        return None
    found = _KEY.search(text)
    key = re.sub(r"[\s,，.．、]", "", found.group(1) or found.group(2)).strip("-") if found else ""
    shown = text.strip("#*_ \t　").rstrip(":：").strip()
    return Heading(kind, shown, key, bool(_CONTINUED.search(text)))
