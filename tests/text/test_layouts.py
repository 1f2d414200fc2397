"""One script, written in every layout and encoding, is read as the same scenes and gives the same records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from huanhuan.dataset.convert import Conversion
from huanhuan.dataset.filters import NAMES, FilterOptions
from huanhuan.dataset.options import Options
from huanhuan.errors import UserError
from huanhuan.text.encoding import decode
from huanhuan.text.labels import Speakers
from huanhuan.text.model import Script
from huanhuan.text.reader import parse_text

CHINESE = ("甄嬛", "皇帝", "沈眉庄", "小允子", "太后")
ENGLISH = ("ROMEO", "LADY ANNE", "FIRST CITIZEN", "O'BRIEN")
HERO = {"甄嬛", "ROMEO"}


@dataclass(frozen=True)
class Line:
    """A speech: who, what, how (a direction at the label), and a direction inside the text, if any."""

    name: str
    text: str
    beat: str = ""
    aside: str = ""


Scenes = list[list[Line]]

_HAN = "天地玄黄日月盈昃寒来暑往秋收冬藏云腾致雨露结为霜金生丽水玉出昆冈的一是不了人我在有他这中大"
_WORDS = "we shall not speak of night or morning but go softly home"


def chinese_text(random: Random, clauses: int = 4, alphabet: str = _HAN) -> str:
    """A sentence of some clauses; colons and dashes stand inside real speech too."""
    parts = ["".join(random.choices(alphabet, k=random.randint(1, 14))) for _ in range(random.randint(1, clauses))]
    marks = random.choices("，：、——", k=len(parts))
    return "".join(part + mark for part, mark in zip(parts, marks, strict=True))[:-1] + random.choice("。！？…")


def traditional_text(random: Random, clauses: int = 4) -> str:
    """The same in characters that Big5 has."""
    return chinese_text(
        random, clauses, "天地玄黃日月盈昃寒來暑往秋收冬藏雲騰致雨露結為霜金生麗水玉出的一是不了人我在有他這中大"
    )


def english_text(random: Random, clauses: int = 4) -> str:
    """A sentence of some words, with a colon inside now and then."""
    words = random.choices(_WORDS.split(), k=random.randint(2, 3 * clauses))
    if random.random() < 0.3:
        words[len(words) // 2] += ":"
    return " ".join(words).rstrip(":").capitalize() + random.choice(".!?")


Text = Callable[[Random, int], str]


@st.composite
def scripts(draw: st.DrawFn, names: tuple[str, ...] = CHINESE, text: Text = chinese_text, clauses: int = 4) -> Scenes:
    """Scenes in which everybody speaks at least twice, as people of a real script do.

    One seed is drawn and not every character: that is what makes hundreds of scripts cheap.
    """
    random = draw(st.randoms(use_true_random=True))
    rows: Scenes = []
    for _ in range(random.randint(2, 4)):
        rows.append([])
        for name in random.choices(names, k=random.randint(2, 6)):
            beat = random.choice(["", "", "", "喜", "低头", "看着皇帝"]) if names is CHINESE else ""
            aside = random.choice(["", "", "", "起身", "众人退下"]) if names is CHINESE else ""
            rows[-1].append(Line(name, text(random, clauses), beat, aside))
    rows[0] = [Line(name, text(random, clauses)) for name in names] + rows[0]
    rows[-1] = rows[-1] + [Line(name, text(random, clauses)) for name in reversed(names)]
    return rows


def _script(scenes: Scenes, heading: Callable[[int], str], line: Callable[[Line, int], str], gap: str = "\n") -> str:
    parts: list[str] = []
    number = 0
    for index, scene in enumerate(scenes):
        lines = []
        for each in scene:
            number += 1
            lines.append(line(each, number))
        parts.append(heading(index) + gap + gap.join(lines))
    return "\n\n".join(parts) + "\n"


def _plain(line: Line, number: int) -> str:
    return f"{line.name}：{line.text}"


def _numeral(value: int) -> str:
    return "零一二三四五六七八九"[value]


def _act(index: int) -> str:
    return f"第{index + 1}幕"


def _beat(line: Line) -> str:
    return f"（{line.beat}）" if line.beat else ""


def _aside(line: Line) -> str:
    """The text with its direction in front of the last mark, where writers put it in the middle or at the end."""
    return f"{line.text}（{line.aside}）" if line.aside else line.text


def _wrapped(text: str, width: int = 16) -> str:
    return "\n".join(text[at : at + width] for at in range(0, len(text), width))


def _slipped(line: Line, number: int) -> str:
    # A slip is known for one only after a name that is known, and needs a line that is none otherwise.
    return f"{line.name}{'；' if number % 5 == 0 and number > 5 else '：'}{line.text}"


LAYOUTS: dict[str, Callable[[Scenes], str]] = {
    "full-width colon, beats and asides": lambda s: _script(s, _act, lambda x, n: f"{x.name}{_beat(x)}：{_aside(x)}"),
    "half-width colon": lambda s: _script(s, _act, lambda x, n: f"{x.name}({x.beat or '笑'}): {x.text}"),
    "ratio sign as colon": lambda s: _script(s, _act, lambda x, n: f"{x.name}∶{x.text}"),
    "blank before the colon": lambda s: _script(s, _act, lambda x, n: f"　{x.name} ：{x.text}"),
    "slipped colon": lambda s: _script(s, _act, _slipped),
    "numbered": lambda s: _script(s, _act, lambda x, n: f"{n}. {x.name}：{x.text}"),
    "numbered in brackets": lambda s: _script(s, _act, lambda x, n: f"[{n:04}] {x.name}：{x.text}"),
    "time stamps": lambda s: _script(s, _act, lambda x, n: f"[00:{n // 60:02}:{n % 60:02}] {x.name}：{x.text}"),
    "time stamps without brackets": lambda s: _script(s, _act, lambda x, n: f"00:{n:02}:10,500 {x.name}：{x.text}"),
    "Markdown bold": lambda s: _script(s, lambda i: f"## 第{i + 1}场", lambda x, n: f"**{x.name}**{_beat(x)}：{x.text}", "\n\n"),
    "Markdown bold with colon, list": lambda s: _script(s, lambda i: f"### 第{i + 1}场", lambda x, n: f"- **{x.name}：** {x.text}"),
    "boxed": lambda s: _script(s, _act, lambda x, n: f"【{x.name}】{x.text}"),
    "boxed with colon": lambda s: _script(s, _act, lambda x, n: f"【{x.name}】{_beat(x)}：{_aside(x)}"),
    "square brackets": lambda s: _script(s, _act, lambda x, n: f"[{x.name}] {x.text}"),
    "tab": lambda s: _script(s, _act, lambda x, n: f"{x.name}\t{_aside(x)}"),
    "full-width blank": lambda s: _script(s, _act, lambda x, n: f"{x.name}　{x.text}"),
    "name on its own line": lambda s: _script(s, lambda i: f"第{_numeral(i + 1)}场", lambda x, n: f"\n{x.name}\n{_aside(x)}"),
    "name on its own line, dense": lambda s: _script(s, _act, lambda x, n: f"{x.name}{_beat(x)}\n{x.text}"),
    "name on its own line, all spaced": lambda s: _script(s, _act, lambda x, n: f"{x.name}\n\n{x.text}", "\n\n"),
    "name on its own line, short ones beside it": lambda s: _script(
        s, _act, lambda x, n: f"\n{x.name}：{x.text}" if n > 12 and len(x.text) < 6 else f"\n{x.name}\n{x.text}"
    ),
    "boxed name on its own line": lambda s: _script(s, _act, lambda x, n: f"【{x.name}】\n{x.text}\n"),
    "name and colon on their own line": lambda s: _script(s, _act, lambda x, n: f"\n{x.name}：\n{x.text}"),
    "quoted": lambda s: _script(s, _act, lambda x, n: f"{x.name}：“{x.text}”"),
    "corner quotes": lambda s: _script(s, _act, lambda x, n: f"{x.name}：「{x.text}」"),
    "quoted without colon": lambda s: _script(s, _act, lambda x, n: f"{x.name}{'：' if n < 12 else ''}“{x.text}”"),
    "Fountain": lambda s: _script(s, lambda i: f"INT. 殿内 {i} - DAY\n", lambda x, n: f"@{x.name}\n({x.beat or '笑'})\n{x.text}\n"),
    "headings N-M": lambda s: _script(s, lambda i: f"12-{i + 1} 养心殿 日 内", _plain),
    "headings with titles": lambda s: _script(s, lambda i: f"第{i + 1}场  御花园（夜）", _plain),
    "headings in boxes": lambda s: _script(s, lambda i: "【另分一幕】", _plain),
    "slipped headings": lambda s: _script(s, lambda i: ["第9幕：", "第265秒", "第610,幕", "第９幕"][i % 4], _plain),
    "episodes only": lambda s: _script(s, lambda i: f"第{_numeral(i + 1)}集", _plain),
    "stars": lambda s: _script(s, lambda i: "* * *", _plain),
    "directions open scenes": lambda s: _script(s, lambda i: f"第{i + 1}幕\n（夜，甄嬛独坐，皇帝至）", _plain),
    "blank lines only": lambda s: "\n\n".join("\n".join(f"{x.name}：{x.text}" for x in scene) for scene in s),
    "two blank lines only": lambda s: "\n\n\n".join("\n\n".join(f"{x.name}：{x.text}" for x in scene) for scene in s),
}  # fmt: skip

WRAPPED: dict[str, Callable[[Scenes], str]] = {
    "wrapped": lambda s: _script(s, _act, lambda x, n: _wrapped(f"{x.name}：{x.text}")),
    "wrapped under the name": lambda s: _script(s, _act, lambda x, n: f"\n{x.name}\n{_wrapped(x.text)}"),
}  # fmt: skip

ENGLISH_LAYOUTS: dict[str, Callable[[Scenes], str]] = {
    "NAME: text": lambda s: _script(s, lambda i: f"SCENE {'I' * (i + 1)}. A street.", lambda x, n: f"{x.name}: {x.text}"),
    "Name: text": lambda s: _script(s, lambda i: f"Scene {i + 1}", lambda x, n: f"{x.name.title()}: {x.text}"),
    "NAME (beat): text": lambda s: _script(s, lambda i: f"SCENE {i + 1}", lambda x, n: f"{x.name} (V.O.): {x.text}"),
    "Name alone": lambda s: _script(s, lambda i: f"ACT {'I' * (i + 1)}", lambda x, n: f"\n{x.name.title()}:\n{x.text}"),
    "Fountain": lambda s: _script(s, lambda i: f"EXT. STREET {i} - NIGHT\n", lambda x, n: f"{x.name} (CONT’D)\n(softly)\n{x.text}\n"),
    "Fountain, forced headings": lambda s: _script(s, lambda i: f".STREET {i}\n\nThey go.\n", lambda x, n: f"{x.name} (V.O.)\n{x.text}\n"),
    "tab": lambda s: _script(s, lambda i: f"SCENE {i + 1}", lambda x, n: f"{x.name}\t{x.text}"),
}  # fmt: skip


def _words(text: str, width: int = 40) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def read(text: str, **options: str) -> Script:
    return parse_text(text, "a.txt", Speakers(HERO), **options)  # type: ignore[arg-type]


def said(script: Script) -> list[list[tuple[str, str]]]:
    """Who says what in each scene; names without case, which some layouts change."""
    return [[(speech.speakers[0].upper(), speech.text) for speech in scene.speeches] for scene in script.scenes]


def meant(scenes: Scenes) -> list[list[tuple[str, str]]]:
    return [[(line.name, line.text) for line in scene] for scene in scenes]


def records(script: Script, name: str) -> list[dict]:
    options = Options((name,), filters=FilterOptions(off=frozenset(NAMES)), val_share=0)
    conversion = Conversion(options)
    conversion.add(script)
    found = [json.loads(line) for line in conversion.finish().train()]
    return [each["conversation"] for each in found]


def expected_records(scenes: Scenes, name: str) -> list[list[dict[str, str]]]:
    """What the records of ``name`` are, told by a second and simpler account of the rules."""
    found: list[list[dict[str, str]]] = []
    for scene in scenes:
        turns: list[list[str]] = []
        for line in scene:
            if turns and turns[-1][0] == line.name:
                joint = " " if line.text[0].isascii() else ""
                turns[-1][1] += joint + line.text
            else:
                turns.append([line.name, line.text])
        pairs = [{"input": before[1], "output": turn[1]} for before, turn in pairwise(turns) if turn[0] == name]
        if pairs:
            found.append(pairs)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(scenes=scripts())
def test_chinese_layouts_give_the_same_scenes_and_records(layout: str, scenes: Scenes) -> None:
    script = read(LAYOUTS[layout](scenes))
    assert said(script) == meant(scenes)
    assert records(script, "甄嬛") == expected_records(scenes, "甄嬛")


@pytest.mark.parametrize("layout", ENGLISH_LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(scenes=scripts(ENGLISH, english_text))
def test_english_layouts_give_the_same_scenes_and_records(layout: str, scenes: Scenes) -> None:
    script = read(ENGLISH_LAYOUTS[layout](scenes))
    assert said(script) == meant(scenes)
    assert records(script, "Romeo") == expected_records(scenes, "ROMEO")


@pytest.mark.parametrize("layout", WRAPPED)
@settings(max_examples=30, deadline=None)
@given(scenes=scripts(clauses=9))
def test_wrapped_lines_are_put_together(layout: str, scenes: Scenes) -> None:
    text = WRAPPED[layout](scenes)
    # Wrapping shows in the width of the lines that are continued; one or two of them show nothing.
    assume(sum(len(line.text) > 32 for scene in scenes for line in scene) > 5)
    script = read(text)
    assert said(script) == meant(scenes)
    assert records(script, "甄嬛") == expected_records(scenes, "甄嬛")


@settings(max_examples=20, deadline=None)
@given(scenes=scripts(ENGLISH, english_text, 9))
def test_wrapped_words_are_put_together(scenes: Scenes) -> None:
    text = _script(scenes, lambda i: f"SCENE {i + 1}", lambda x, n: "\n".join(_words(f"{x.name}: {x.text}")))
    assert said(read(text)) == meant(scenes)


@settings(max_examples=60, deadline=None)
@given(
    scenes=scripts(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    codec=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_encodings_and_line_ends_change_nothing(scenes: Scenes, layout: str, codec: str, newline: str) -> None:
    text = LAYOUTS[layout](scenes)
    data = text.replace("\n", newline).encode(codec)
    told, _ = decode(data, "a.txt", "utf-8" if codec == "utf-8-sig" else codec)
    assert said(read(told)) == meant(scenes)
    try:
        guessed, _ = decode(data, "a.txt")
    except UserError as error:
        assert "--encoding" in str(error)
    else:
        assert guessed == text.replace("\n", newline)


@settings(max_examples=40, deadline=None)
@given(
    scenes=scripts(("甄嬛", "皇帝", "沈眉莊", "太后"), traditional_text),
    layout=st.sampled_from(sorted(LAYOUTS)),
    codec=st.sampled_from(["big5", "gbk", "utf-8"]),
)
def test_traditional_scripts_in_every_code_page(scenes: Scenes, layout: str, codec: str) -> None:
    text = LAYOUTS[layout](scenes)
    try:
        # The ratio sign and the simplified words of some headings are not in Big5.
        data = text.encode(codec)
    except UnicodeEncodeError:
        assume(False)
        return
    assert said(read(decode(data, "a.txt")[0])) == meant(scenes)


@pytest.mark.parametrize("layout", ["colon", "tab", "bracket", "name-line"])
def test_a_named_layout_is_used(layout: str) -> None:
    text = {
        "colon": "甲：一句。\n乙：两句。",
        "tab": "甲\t一句。\n乙\t两句。",
        "bracket": "【甲】一句。\n【乙】两句。",
        "name-line": "甲\n一句。\n\n甲\n一句。\n\n乙\n两句。\n\n乙\n两句。",
    }[layout]
    script = read(text, layout=layout)
    assert script.layout == layout
    assert {name for name in script.labels} == {"甲", "乙"}


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(UserError, match="--layout sideways"):
        read("甲：一。", layout="sideways")
