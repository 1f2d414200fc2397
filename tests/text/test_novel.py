"""Quotations of a novel: found where evident, given to the right person, left out with a reason otherwise."""

from __future__ import annotations

from collections import Counter

import pytest

from huanhuan.text.labels import Speakers
from huanhuan.text.model import Script, Speech
from huanhuan.text.reader import parse_text

# Each of these people speaks often enough to be known for a speaker.
CAST = "".join(f"{name}道：“第{n}句。”\n" for name in ("秋砚", "绮妃", "太后") for n in "一二三四") + "\n第二章\n\n"


def read(text: str, *names: str) -> Script:
    return parse_text(CAST + text, "a.txt", Speakers(names or ("阿沅",)), layout="quotes")


def said(text: str, *names: str) -> list[tuple[str, str]]:
    script = read(text, *names)
    return [(speech.speakers[0], speech.text) for scene in script.scenes for speech in scene.speeches][12:]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("阿沅道：“不去。”", [("阿沅", "不去。")]),
        ("阿沅冷笑道：“不去。”", [("阿沅", "不去。")]),
        ("阿沅∶“不去。”", [("阿沅", "不去。")]),
        ("只见阿沅低头道：“不去。”", [("阿沅", "不去。")]),
        ("阿沅听了，放下书，冷笑道：“不去。”", [("阿沅", "不去。")]),
        ("秋砚见阿沅来了，忙道：“小主。”", [("秋砚", "小主。")]),
        ("秋砚便向阿沅道：“小主。”", [("秋砚", "小主。")]),
        ("阿沅摇摇头，“不去。”", [("阿沅", "不去。")]),
        ("“不去。”阿沅说道。", [("阿沅", "不去。")]),
        ("“不去，”阿沅道，“你去。”", [("阿沅", "不去，"), ("阿沅", "你去。")]),
        ("阿沅站起身来。笑道：“不去。”", [("阿沅", "不去。")]),
        ("秋砚道：“去不去？”阿沅道：“不去。”", [("秋砚", "去不去？"), ("阿沅", "不去。")]),
        ("「不去。」", []),
        ("“不去。”", []),
        ("她道：“不去。”", []),
        ("阿沅走了。她笑道：“不去。”", []),
        ("阿沅的丫头道：“不去。”", []),
        ("阿沅被秋砚拦住，笑道：“不去。”", []),
        ("阿沅看见匾上写着“天地同春”四个大字。", []),
        ("阿沅见那石上刻道：“天地同春。”", []),
        ("阿沅小名叫做“阿圆”。", []),
        ("阿沅听见“砰”的一声。", []),
    ],
)
def test_who_says_it(text: str, expected: list[tuple[str, str]]) -> None:
    assert said(text) == expected


def test_a_heroine_who_tells_her_own_story() -> None:
    text = "我低下头，“臣妾不敢。”\n绮妃微微一笑，“起来罢。”\n我站起身，“谢娘娘。”\n他看了我一眼，“坐。”\n我依言坐下，“是。”"
    assert said(text, "阿沅", "我") == [
        ("我", "臣妾不敢。"),
        ("绮妃", "起来罢。"),
        ("我", "谢娘娘。"),
        ("他", "坐。"),
        ("我", "是。"),
    ]


def test_a_closing_mark_in_the_next_paragraph() -> None:
    script = read("阿沅道：“不去。\n”秋砚道：“小主。”")
    found = [(speech.text, speech.first, speech.last) for scene in script.scenes for speech in scene.speeches][12:]
    assert [text for text, _, _ in found] == ["不去。", "小主。"]
    assert found[0][2] == found[0][1] + 1


def test_an_unclosed_quotation_is_reported_and_not_used() -> None:
    script = read("阿沅道：“不去。\n秋砚道：“小主。”")
    assert ("unbalanced", "不去。") in [(item.reason, item.text) for item in script.skipped]
    assert "不去。" not in [speech.text for scene in script.scenes for speech in scene.speeches]


def test_an_unclosed_quotation_in_a_paragraph_takes_no_narration_along() -> None:
    script = read("秋砚道：“小主，天冷。阿沅忙笑道：“不去。”\n秋砚道：“是。”")
    used = [speech.text for scene in script.scenes for speech in scene.speeches][12:]
    assert "是。" in used
    assert all("阿沅" not in text and "“" not in text for text in used)
    assert "unbalanced" in [item.reason for item in script.skipped]


def test_a_quotation_in_a_quotation_is_part_of_it() -> None:
    assert said("阿沅道：“他说：‘这叫“朝开夜合”的。’我不信。”") == [("阿沅", "他说：‘这叫“朝开夜合”的。’我不信。")]


def test_a_speech_of_several_paragraphs_is_of_one_speaker() -> None:
    assert said("阿沅道：“不去。\n“雪太大。\n“明日再说。”") == [
        ("阿沅", "不去。"),
        ("阿沅", "雪太大。"),
        ("阿沅", "明日再说。"),
    ]


def test_nothing_said_by_nobody_evident_is_answered() -> None:
    script = read("秋砚道：“去不去？”\n“谁在外头？”\n阿沅道：“我。”")
    items = [item for scene in script.scenes for item in scene.items][12:]
    assert [isinstance(item, Speech) for item in items] == [True, False, True]
    assert [item.text for item in script.skipped if item.reason == "unattributed"] == ["谁在外头？"]


def test_talk_far_apart_is_of_different_scenes() -> None:
    near = read("秋砚道：“一。”\n她走了几步。\n阿沅道：“二。”")
    far = read("秋砚道：“一。”\n" + "一夜无话，雪落了又停。\n" * 40 + "阿沅道：“二。”")
    assert len(far.scenes) == len(near.scenes) + 1


def test_every_quotation_occurs_in_the_source_and_is_counted_once() -> None:
    text = "秋砚道：“去。”阿沅笑道：“不去。”\n匾上写着“天地”。\n“谁？”\n"
    script = read(text)
    used = Counter(speech.text for scene in script.scenes for speech in scene.speeches)
    left = Counter(item.text for item in script.skipped)
    assert sum(used.values()) + sum(left.values()) == (CAST + text).count("“")
    assert all(f"“{quote}”" in CAST + text for quote in [*used, *left])


def test_hard_wrapped_paragraphs_are_put_together() -> None:
    told = [
        f"　　秋砚道：“{'雪还在下，' * n}小主。”阿沅放下手里的书，望了望窗外的雪，慢慢说道：“{'不妨事，' * n}去罢。”"
        for n in range(3, 13)
    ]
    wrapped = "\n".join("\n".join(line[at : at + 30] for at in range(0, len(line), 30)) for line in told)
    whole = parse_text("\n".join(told), "a.txt", Speakers(("阿沅",)), layout="quotes")
    script = parse_text(wrapped, "a.txt", Speakers(("阿沅",)), layout="quotes")
    texts = [
        [(speech.speakers, speech.text) for scene in each.scenes for speech in scene.speeches]
        for each in (whole, script)
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 20
    lines = wrapped.split("\n")
    for scene in script.scenes:
        for speech in scene.speeches:
            assert speech.text in "".join(lines[speech.first - 1 : speech.last])


def test_a_novel_is_recognised() -> None:
    text = CAST + "阿沅走到窗前，望着雪。\n秋砚道：“小主，天冷。”阿沅道：“不妨事。”\n" * 5
    assert parse_text(text, "a.txt", Speakers(("阿沅",))).layout == "quotes"
