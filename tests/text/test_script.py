"""What real scripts do to a reader, case by case."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huanhuan.text.headings import read_heading
from huanhuan.text.labels import Speakers, could_be_name, look_alikes, strip_prefix
from huanhuan.text.layouts import LAYOUTS
from huanhuan.text.model import Direction, Script
from huanhuan.text.reader import parse_text

NAMES = ("甄嬛", "嬛嬛")


def read(text: str, **options: str) -> Script:
    return parse_text(text, "a.txt", Speakers(NAMES), **options)  # type: ignore[arg-type]


def said(script: Script) -> list[list[tuple[str, str]]]:
    return [[("、".join(each.speakers), each.text) for each in scene.speeches] for scene in script.scenes]


def one(text: str) -> list[tuple[str, str]]:
    """The speeches of a script of one scene."""
    found = said(read(text))
    assert len(found) == 1, found
    return found[0]


BODY = "皇帝：平身。\n甄嬛：谢皇上。\n皇帝：坐。\n甄嬛：是。\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("皇帝（喜）：好。", [("皇帝", "好。")]),
        ("皇帝 ( 喜 ) : 好。", [("皇帝", "好。")]),
        ("皇帝【喜】：好。", [("皇帝", "好。")]),
        ("（画外音）皇帝：好。", [("皇帝", "好。")]),
        ("皇帝（对众人：看）：好。", [("皇帝", "好。")]),
        ("皇帝：（喜）好。", [("皇帝", "好。")]),
        ("皇帝：好（喜）。", [("皇帝", "好。")]),
        ("皇帝：好。（转身离去）", [("皇帝", "好。")]),
        ("皇帝：好【转身】。", [("皇帝", "好。")]),
        ("皇帝：好(转身）。", [("皇帝", "好。")]),
        ("皇帝：好（转身)。", [("皇帝", "好。")]),
        ("皇帝：好（转身（又回头））。", [("皇帝", "好。")]),
        ("皇帝：（笑），好。", [("皇帝", "好。")]),
        ("皇帝：好。（笑）。", [("皇帝", "好。")]),
        ("皇帝：好（槿汐：是），走。", [("皇帝", "好"), ("槿汐", "是"), ("皇帝", "走。")]),
        ("皇帝：好（笑），走。", [("皇帝", "好，走。")]),
        ("皇帝：（笑）……好。", [("皇帝", "……好。")]),
        ("皇帝：有道是：好。", [("皇帝", "有道是：好。")]),
        ("皇帝：他说：“好。”", [("皇帝", "他说：“好。”")]),
        ("皇帝：：好。", [("皇帝", "好。")]),
        ("皇帝；好。", [("皇帝", "好。")]),
        ("皇帝，好。", [("皇帝", "好。")]),
        ("皇帝？好。", [("皇帝", "好。")]),
        ("皇帝“好。”", [("皇帝", "好。")]),
        ("皇帝：“好。”", [("皇帝", "好。")]),
        ("皇帝（笑）：「好。」", [("皇帝", "好。")]),
        ("皇帝：（笑）“好。”", [("皇帝", "好。")]),
        ("皇帝：“好。”（转身离去）", [("皇帝", "好。")]),
        ("皇帝：“好（笑），走。”", [("皇帝", "好，走。")]),
        ("皇帝：“好。”（笑）“走。”", [("皇帝", "好。走。")]),
        ("皇帝：“他说‘好’。”", [("皇帝", "他说‘好’。")]),
        ("皇帝：“他说“好”。”", [("皇帝", "他说“好”。")]),
        ("皇帝：“好”字怎么写？", [("皇帝", "“好”字怎么写？")]),
        ("皇帝：只说“好”", [("皇帝", "只说“好”")]),
        ("皇帝：“忠”与“孝”", [("皇帝", "“忠”与“孝”")]),
        ("皇帝：“忠”（停）“孝”二字。", [("皇帝", "“忠”“孝”二字。")]),
        ("皇帝：“好。", [("皇帝", "“好。")]),
        ("皇帝：“”", []),
        ("皇帝：“（不语）”", []),
        ("　　皇帝　：好。", [("皇帝", "好。")]),
        ("\u200b皇\ufeff帝：好\u200d。", [("皇帝", "好。")]),
        ("皇帝\u00a0：\u00a0好。", [("皇帝", "好。")]),
        ("皇帝OS：好。", [("皇帝", "好。")]),
        ("皇帝（V.O.）：好。", [("皇帝", "好。")]),
        ("皇帝甄嬛：好。", [("皇帝、甄嬛", "好。")]),
        ("皇帝、甄嬛：好。", [("皇帝、甄嬛", "好。")]),
        ("皇帝和甄嬛：好。", [("皇帝、甄嬛", "好。")]),
        ("众人：好。", [("众人", "好。")]),
        ("皇帝：好。（槿汐：奴婢在）走。", [("皇帝", "好。"), ("槿汐", "奴婢在"), ("皇帝", "走。")]),
        ("（皇帝：好）", [("皇帝", "好")]),
        ("（皇帝拂袖：好）", []),
        ("（字幕：三年后）", []),
        ("（对皇帝：好）", []),
        ("旁白：好。", []),
        ("【皇帝不语】", []),
        ("（皇帝不语）", []),
        ("（皇帝起身，\n走到窗前）", []),
        ("皇帝：（不语）", []),
    ],
)
def test_a_line_after_a_dialogue(line: str, expected: list[tuple[str, str]]) -> None:
    before = [("皇帝", "平身。"), ("甄嬛", "谢皇上。"), ("皇帝", "坐。"), ("甄嬛", "是。")]
    assert one(BODY + line) == [*before, *expected]


def test_every_direction_can_be_kept() -> None:
    script = read("皇帝（喜）：好【笑】，（起身）坐。\n（风起）\n甄嬛：是。")
    first, wind, second = script.scenes[0].items
    assert isinstance(wind, Direction)
    assert wind.text == "风起"
    assert [first.staged, second.staged] == ["（喜）好（笑），（起身）坐。", "是。"]  # type: ignore[union-attr]
    quoted = read("皇帝（喜）：“好（笑），坐。”\n甄嬛：“是。”（起身）").scenes[0].speeches
    assert [speech.staged for speech in quoted] == ["（喜）好（笑），坐。", "是。（起身）"]


def test_an_unbalanced_bracket_is_reported() -> None:
    script = read(BODY + "皇帝：好（转身离去\n甄嬛：哭）是。")
    assert said(script)[0][-2:] == [("皇帝", "好"), ("甄嬛", "是。")]
    assert [(item.line, item.reason) for item in script.skipped] == [(5, "unbalanced"), (6, "unbalanced")]


def test_a_line_without_a_label_goes_on() -> None:
    assert one("皇帝：朕想了很久，\n还是要去。\n甄嬛：是。")[0] == ("皇帝", "朕想了很久，还是要去。")
    assert one(BODY + "　　还是要去。")[-1] == ("甄嬛", "是。还是要去。")


def test_narration_is_no_speech() -> None:
    script = read(BODY + "甄嬛跪下，叩首。\n\n天色渐渐暗了。\n" + BODY)
    assert [item.text for item in script.skipped] == ["甄嬛跪下，叩首。", "天色渐渐暗了。"]
    assert all("暗" not in text and "跪" not in text for scene in said(script) for _, text in scene)


def test_narration_between_paragraphs_is_no_speech() -> None:
    text = "".join(
        f"皇帝：第{n}句话。\n\n甄嬛：回第{n}句。\n\n她望着窗外，没有说话。\n\n" for n in "一二三四五六七八九十"
    )
    assert all("窗外" not in spoken for scene in said(read(text)) for _, spoken in scene)


def test_a_colon_without_speech_takes_the_next_line() -> None:
    assert one("皇帝：\n平身。\n甄嬛：\n谢皇上。\n皇帝：坐。") == [
        ("皇帝", "平身。"),
        ("甄嬛", "谢皇上。"),
        ("皇帝", "坐。"),
    ]


HEADINGS = """第12幕|第十二幕|第9幕：|第265秒|第610,幕|【另分一幕】|第3场|第三场 养心殿 日 内|12-3|12-3 养心殿 日|场景一：殿内
INT. HALL - DAY|EXT. GARDEN - NIGHT|SCENE II. A street.|ACT III|Scene 4|第十集|第2集|第五回 甄士隐|* * *
———|## 第3场|【第3幕】|（第3幕）|第３幕|第 3 幕
第3幕（续）|第3场御花园|Chapter 5|Episode 12: Snow"""


@pytest.mark.parametrize("heading", HEADINGS.replace("\n", "|").split("|"))
def test_headings_divide(heading: str) -> None:
    assert said(read(f"第1幕\n{BODY}{heading}\n{BODY}"))[1:] == [one(BODY)]


@pytest.mark.parametrize(
    "line",
    [
        "第一，你不该来。",
        "第一场雪，下得真大。",
        "12-3是他的号码。",
        "INTO the hall",
        "第三个人：好。",
        "——",
        "2026-11"[:0] or "十二月",
    ],
)
def test_what_only_looks_like_a_heading(line: str) -> None:
    assert read_heading(line) is None


def test_scene_numbers_may_repeat() -> None:
    assert len(read(f"第1幕\n{BODY}第1幕\n{BODY}").scenes) == 2


def test_a_continued_scene_goes_on_after_an_episode_and_after_a_cutaway() -> None:
    script = read("第1幕\n皇帝：来。\n第二集\n第1幕（续）\n甄嬛：是。\n第2幕\n皇帝：走。\n第1幕（续）\n甄嬛：好。")
    assert said(script) == [[("皇帝", "来。"), ("甄嬛", "是。"), ("甄嬛", "好。")], [("皇帝", "走。")]]


def test_a_continued_scene_of_nowhere_is_a_scene() -> None:
    script = read(f"第7幕（续）\n{BODY}")
    assert [(scene.key, scene.continues) for scene in script.scenes] == [("7", True)]


def test_look_alikes_are_reported_and_never_merged() -> None:
    script = read(BODY * 6 + "甄 嬛：错。\n甄缳：错。\n甄嬛嬛：错。")
    assert script.labels["甄嬛"] == 12
    alike = look_alikes(script.labels)
    assert set(alike["甄嬛"]) == {"甄 嬛", "甄缳", "甄嬛嬛"}
    assert "皇帝" not in alike


def test_titles_and_counted_people_are_no_slips_and_no_joint_labels() -> None:
    counts = {"皇帝": 90, "皇后": 80, "太监甲": 30, "太监乙": 1, "华妃": 50, "娘娘": 9, "华妃娘娘": 4}
    assert look_alikes(counts) == {}
    speakers = Speakers()
    for name, count in counts.items():
        speakers.counts[name] = count
    assert speakers.resolve("华妃娘娘") == ("华妃娘娘",)
    assert speakers.resolve("皇帝皇后") == ("皇帝", "皇后")
    assert speakers.resolve("皇帝皇后华妃") == ("皇帝", "皇后", "华妃")
    assert speakers.resolve("和珅") == ("和珅",)


PREFIXES = [
    "12. ",
    "12、",
    "(12) ",
    "0012 ",
    "00:12 ",
    "> ",
    "- ",
    "① ",
    "[00:12] ",
    "3-12 ",
    "00:01:02,003 --> 00:01:05,000 ",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(prefix: str) -> None:
    assert strip_prefix(f"{prefix}甲：乙") == "甲：乙"


@pytest.mark.parametrize("line", ["3号：乙", "甲：12. 乙", "12.", "9"])
def test_no_prefixes(line: str) -> None:
    assert strip_prefix(line) == line


def test_subtitles_are_read() -> None:
    blocks = [("皇帝", "平身。"), ("甄嬛", "谢皇上。"), ("皇帝", "坐。"), ("甄嬛", "是。")]
    text = "\n".join(f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\n{a}：{b}\n" for n, (a, b) in enumerate(blocks, 1))
    assert one(text) == blocks


@pytest.mark.parametrize("name", ["他只回了我一句话", "她说", "12", "——", "Thus say I", "http", "of"])
def test_what_is_no_name(name: str) -> None:
    assert not could_be_name(name)


def test_every_line_is_accounted_for() -> None:
    text = f"剧名：后宫\n第1幕\n（夜）\n{BODY}旁白：多年以后。\n她走了。\n\n槿汐望着她。\n12\n【完】\n甄嬛：（不语）\n"
    script = read(text)
    seen = {scene.first for scene in script.scenes if scene.heading}
    for scene in script.scenes:
        for item in scene.items:
            seen.update(range(item.first, item.last + 1))
    for item in script.skipped:
        seen.update(range(item.line, item.last + 1))
    lines = text.split("\n")
    assert [lines[n - 1] for n in range(1, len(lines) + 1) if lines[n - 1] and n not in seen] == []


_PIECES = st.sampled_from(
    [
        *"：:；（）()【】“”\n\t　第幕集-*#\r\x00。…的冷@>~",
        "\n\n",
        "甄嬛",
        "皇帝",
        "（续）",
        "12",
        "**",
        "NAME",
        "Name",
        "INT. ",
        "\u200b",
        "说道",
        "/*",
        "[[",
        "00:01",
    ]
)


@settings(max_examples=300, deadline=2000)
@given(st.lists(_PIECES, max_size=60).map("".join), st.sampled_from([None, *LAYOUTS]))
def test_no_input_makes_it_crash(text: str, layout: str | None) -> None:
    script = parse_text(text, "a.txt", Speakers(NAMES), layout=layout)
    for scene in script.scenes:
        for speech in scene.speeches:
            assert speech.text.strip()
            assert 1 <= speech.first <= speech.last <= script.lines + 1


@settings(max_examples=200, deadline=2000)
@given(st.text(max_size=300), st.sampled_from([None, *LAYOUTS]))
def test_no_text_makes_it_crash(text: str, layout: str | None) -> None:
    parse_text(text, "a.txt", Speakers(NAMES), layout=layout)


# What a careless pattern would take quadratic or exponential time for.
_UNITS = """甄嬛 甄嬛： （ ） （甄嬛：好 “ ” “好” 冷的 说道， * - 第1 第 1 1- [00:01] A Name: @A /* [[
甄嬛、 和 【 【甄嬛】 ， 。 笑 一面 那 甲乙丙丁"""
UNITS = [
    *_UNITS.split(),
    "　",
    " ",
    "\t",
    "** ",
    "- ",
    "- - ",
    "A ",
    "\n",
    "\r",
    "甄嬛：好\n",
    "甄嬛\n",
    "（\n",
    "“好\n",
    "甄嬛：（\n",
]


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_time_grows_with_the_length_alone(layout: str | None) -> None:
    slow: list[str] = []
    for unit in UNITS:
        text = unit * (100_000 // len(unit))
        start = time.process_time()
        parse_text(text, "a.txt", Speakers(NAMES), layout=layout)
        if time.process_time() - start > 1.5:
            slow.append(f"{unit!r}: {time.process_time() - start:.1f} s")
    assert not slow


@pytest.mark.parametrize("unit", ["甄嬛：好的（笑）", "“不去。”甄嬛笑道：", "a b: c ", "【名】（"])
def test_a_megabyte_without_a_newline(unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode()))
    start = time.process_time()
    parse_text(text, "a.txt", Speakers(NAMES))
    assert time.process_time() - start < 5
