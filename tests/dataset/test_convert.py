"""A whole conversion against the truth that a generated script is written from."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from huanhuan.dataset.conversations import CutOptions
from huanhuan.dataset.convert import Conversion, Result, convert
from huanhuan.dataset.filters import NAMES, FilterOptions
from huanhuan.dataset.options import Options
from huanhuan.dataset.report import Report
from huanhuan.errors import UserError
from huanhuan.persona import Identity, Persona
from huanhuan.text.labels import Speakers
from huanhuan.text.reader import parse_text

HERO = "阿沅"
HERS = (HERO, "沅贵人", "沅儿")
OTHERS = ("皇帝", "绮妃", "秋砚", "太后", "卞总管", "小墩子", "陆晚照")
KEEP_ALL = FilterOptions(off=frozenset(NAMES))
_HAN = "天地玄黄日月盈昃寒来暑往秋收冬藏云腾致雨露结为霜金生丽水玉出昆冈的一是不了人我在有他这中大"


@dataclass
class Truth:
    """A script in the common layout with every quirk of real ones, and what is right about it."""

    text: str
    pairs: list[tuple[str, str]] = field(default_factory=list)
    hers: list[str] = field(default_factory=list)
    answered: int = 0


def write_script(seed: int, scenes: int = 60) -> Truth:
    """Every text is unique, so that a line found among the records is known by its words."""
    rng = random.Random(seed)
    lines: list[str] = []
    truth = Truth("")
    count = 0

    def text() -> str:
        nonlocal count
        count += 1
        body = "".join(rng.choices(_HAN, k=rng.randint(1, 18)))
        inner = rng.choice(["", "", "", "", "：", "，", "——"])
        return f"{body}{inner}{count}号{rng.choice('。！？…')}"

    for number in range(scenes):
        if number % 15 == 0:
            lines.append(f"第{'一二三四五六七'[number // 15]}集")
        lines.append(
            rng.choice(
                [f"第{number % 40 + 1}幕", f"第{number % 40 + 1}幕：", f"第{number}秒", "【另分一幕】", f"第{number}场"]
            )
        )
        if rng.random() < 0.8:
            lines.append(f"（夜，{HERO}独坐，皇帝进来）")
        cast = [HERO, *rng.sample(OTHERS, 3)]
        turns: list[tuple[bool, str, str]] = []
        for _ in range(rng.randint(3, 18)):
            who = rng.choice(cast)
            label = rng.choice(HERS) if who == HERO else who
            said = text()
            written = said
            if rng.random() < 0.05:
                written = f"（{rng.choice(['笑', '起身', '看着皇帝'])}）{said}"
            elif rng.random() < 0.05:
                written = f"{said}（{rng.choice(['转身离去', '跪下', '众人退下'])}）"
            beat = rng.choice(["", "", "", "", "（喜）", "(低头)"])
            colon = rng.choice(["："] * 60 + [":", "；", " ："])
            lines.append(f"{label}{beat}{colon}{written}")
            if turns and turns[-1][1] == who:
                turns[-1] = (turns[-1][0], who, turns[-1][2] + said)
            else:
                turns.append((who == HERO, who, said))
            if rng.random() < 0.06:
                lines.append(rng.choice(["（众人退下）", "【风起】", "旁白：多年以后。"]))
        for before, turn in zip([None, *turns], turns, strict=False):
            if turn[0]:
                truth.hers.append(turn[2])
                if before:
                    truth.pairs.append((before[2], turn[2]))
    truth.text = "\n".join(lines) + "\n"
    return truth


def run(text: str, name: str = "a.txt", **options: object) -> Result:
    chosen = Options(**{"names": HERS, "filters": KEEP_ALL, "val_share": 0.0, **options})  # type: ignore[arg-type]
    conversion = Conversion(chosen)
    conversion.add(parse_text(text, name, Speakers(chosen.names)))
    return conversion.finish()


def exchanges(result: Result) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in (*result.train(), *result.val())]
    return [(row["input"], row["output"]) for record in records for row in record["conversation"]]


@pytest.mark.parametrize("seed", range(6))
def test_what_must_hold_on_the_common_layout(seed: int) -> None:
    truth = write_script(seed)
    found = exchanges(run(truth.text))
    hers = set(truth.hers)
    assert [reply for _, reply in found if reply not in hers] == []
    wanted = set(truth.pairs)
    assert [pair for pair in found if pair not in wanted] == []
    assert len(found) >= 0.995 * len(truth.pairs)
    assert not any(mark in text for pair in found for text in pair for mark in "（）()【】")


def test_the_filters_leave_nearly_everything() -> None:
    truth = write_script(9)
    assert len(exchanges(run(truth.text, filters=FilterOptions()))) >= 0.995 * len(truth.pairs)


def test_everything_is_used_or_listed_with_a_reason() -> None:
    truth = write_script(3)
    result = run(truth.text, filters=FilterOptions(min_chars=4))
    covered: set[int] = set()
    for line in result.train():
        first, last = json.loads(line)["source"]["lines"]
        covered.update(range(first, last + 1))
    for item in result.report.skipped:
        covered.update(range(item.line, item.last + 1))
    lines = truth.text.split("\n")
    left = [line for number, line in enumerate(lines, 1) if line and number not in covered]
    assert [line for line in left if not line.startswith(("第", "【另分"))] == []


def test_the_report_counts_what_is_there(tmp_path: Path) -> None:
    truth = write_script(4)
    result = run(truth.text, val_share=0.2)
    report = Report.from_json(result.report.to_json())
    assert report.to_json() == result.report.to_json()
    assert report.counts["exchanges"] == len(exchanges(result)) == sum(part.exchanges for part in report.split)
    assert report.counts["records"] == len(list(result.train())) + len(list(result.val()))
    assert report.counts["character_turns"] == len(truth.hers)
    assert report.lengths["reply"].total == report.counts["exchanges"] == sum(report.lengths["reply"].counts)
    assert len(report.samples) == 20
    assert (
        sum(speaker.speeches for speaker in report.speakers if speaker.is_character)
        == report.counts["character_speeches"]
    )
    assert report.skipped_counts == {
        reason: sum(item.reason == reason for item in report.skipped) for reason in report.skipped_counts
    }


def test_a_scene_is_on_one_side_of_the_split_only() -> None:
    result = run(write_script(5).text, val_share=0.3, cut=CutOptions(single_turn=True))
    scenes: dict[str, set[int]] = {"train": set(), "val": set()}
    heads = [
        n
        for n, line in enumerate(write_script(5).text.split("\n"), 1)
        if line.startswith(("第", "【另分")) and "集" not in line
    ]
    for side, lines in (("train", result.train()), ("val", result.val())):
        for line in lines:
            first = json.loads(line)["source"]["lines"][0]
            scenes[side].add(max(head for head in heads if head <= first))
    assert scenes["train"]
    assert scenes["val"]
    assert not scenes["train"] & scenes["val"]


def test_scenes_with_a_starter_are_trained_on() -> None:
    truth = write_script(6)
    everything = run(truth.text, val_share=0.9)
    starters = tuple(json.loads(line)["conversation"][0]["input"] for line in everything.val())[:5]
    persona = Persona(HERO, HERS[1:], "扮演", "来。", starters, ())
    result = run(truth.text, val_share=0.9, persona=persona)
    held_out = {row["input"] for line in result.val() for row in json.loads(line)["conversation"]}
    assert held_out
    assert not held_out & set(starters)


def test_identity_exchanges_have_their_share_and_are_trained_on(tmp_path: Path) -> None:
    card = tmp_path / "persona.toml"
    card.write_text("", "utf-8")
    questions = tuple(f"你是{each}？" for each in "谁何人也哪位")
    persona = Persona(HERO, HERS[1:], "扮演", "来。", ("来？",), (Identity(questions, ("我是阿沅。",)),))
    result = run(write_script(7).text, persona=persona, card=card, identity_share=0.05, val_share=0.2, system="扮演")
    total = result.report.counts["exchanges"]
    assert abs(result.report.counts["identity"] / total - 0.05) < 0.01
    assert not any("我是阿沅。" in line for line in result.val())
    assert sum("我是阿沅。" in line for line in result.train()) == result.report.counts["identity"]


def test_a_play_without_scenes_is_held_out_by_parts() -> None:
    text = "".join(f"皇帝：第{n}问{_HAN[n % 40]}？\n{HERO}：第{n}答{_HAN[n % 40]}。\n" for n in range(400))
    result = run(text, val_share=0.2)
    assert list(result.val())
    assert len(exchanges(result)) == 400


def test_a_scene_cut_by_the_end_of_a_file_goes_on() -> None:
    conversion = Conversion(Options((HERO,), filters=KEEP_ALL, val_share=0))
    conversion.add(parse_text(f"第1幕\n皇帝：一。\n{HERO}：二。\n皇帝：三。", "1.txt", conversion.speakers))
    conversion.add(parse_text(f"第1幕（续）\n{HERO}：四。\n皇帝：五。\n{HERO}：六。", "2.txt", conversion.speakers))
    conversion.add(parse_text(f"第1幕\n{HERO}：七。\n皇帝：八。\n{HERO}：九。", "3.txt", conversion.speakers))
    result = conversion.finish()
    assert exchanges(result) == [("一。", "二。"), ("三。", "四。"), ("五。", "六。"), ("八。", "九。")]
    assert [json.loads(line)["source"] for line in result.train()][1] == {"file": "2.txt", "lines": [2, 4]}
    assert {(item.file, item.line, item.reason) for item in result.report.skipped} == {("3.txt", 2, "no_prompt")}


def test_near_aliases_are_reported_and_not_merged() -> None:
    text = (
        write_script(8).text
        + "第1幕\n皇帝：来者何人？\n阿 沅：正是。\n阿沅：见过皇上。\n皇帝：退下？\n阿元：是了。\n阿沅：告退。\n"
    )
    result = run(text)
    said = {each for pair in exchanges(result) for each in pair}
    assert not {"正是。", "是了。", "见过皇上。", "告退。"} & said
    listed = {item.text: item.reason for item in result.report.skipped}
    assert listed["阿 沅：正是。"] == listed["阿元：是了。"] == "near_alias"
    assert listed["见过皇上。"] == listed["告退。"] == "unknown_prompt"
    assert [warning.split("（")[0] for warning in result.report.warnings] == ["阿 沅", "阿元"]
    near = {speaker.name: speaker.look_alikes for speaker in result.report.speakers if speaker.look_alikes}
    assert HERO in near["阿元"]
    assert HERO in near["阿 沅"]


def test_somebody_of_a_similar_name_who_speaks_often_is_somebody() -> None:
    text = "第1幕\n" + "".join(f"阿父：第{n}问？\n{HERO}：第{n}答。\n" for n in range(6)) * 3
    assert len(exchanges(run(text))) == 18


@pytest.mark.parametrize("format", ["xtuner", "openai", "sharegpt", "alpaca"])
def test_what_is_written_in_any_format_is_read_back(tmp_path: Path, format: str) -> None:
    first = run(write_script(2).text, format=format, system="扮演")
    (tmp_path / "a.jsonl").write_text("".join(line + "\n" for line in first.train()), "utf-8")
    options = Options((), filters=KEEP_ALL, val_share=0, system=None)
    second = convert([tmp_path / "a.jsonl"], options)
    plain = run(write_script(2).text, system="扮演")
    assert [json.loads(line) for line in second.train()] == [json.loads(line) for line in plain.train()]


_PIECES = st.sampled_from(
    [
        HERO,
        "沅儿",
        "皇帝",
        "皇后",
        "：",
        "；",
        "（",
        "）",
        "【",
        "】",
        "“",
        "”",
        "\n",
        "\n\n",
        "第1幕",
        "第1幕（续）",
        "第二集",
        "好",
        "嗯",
        "……",
        "道",
        "、",
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(_PIECES, max_size=50).map("".join), min_size=1, max_size=3),
    st.builds(
        CutOptions,
        context=st.integers(1, 3),
        names=st.booleans(),
        context_chars=st.integers(1, 30),
        budget=st.integers(1, 60),
        openers=st.sampled_from(["drop", "direction"]),
        keep_directions=st.booleans(),
        single_turn=st.booleans(),
    ),
    st.floats(0, 0.9),
)
def test_any_script_gives_records_or_an_error(texts: list[str], cut: CutOptions, share: float) -> None:
    conversion = Conversion(Options(HERS, cut=cut, val_share=share))
    for number, text in enumerate(texts):
        conversion.add(parse_text(text, f"{number}.txt", conversion.speakers))
    try:
        result = conversion.finish()
    except UserError as error:
        assert len(error.problems) == 1
        return
    found = [json.loads(line) for line in (*result.train(), *result.val())]
    assert found
    assert Report.from_json(result.report.to_json()).counts["records"] == len(found)
    for record in found:
        source = record["source"]
        assert 1 <= source["lines"][0] <= source["lines"][1] <= texts[int(source["file"][0])].count("\n") + 1
        assert all(row["input"].strip() and row["output"].strip() for row in record["conversation"])
        assert len(record["conversation"]) == 1 or not cut.single_turn


def test_every_unreadable_file_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text(write_script(1, 5).text, "utf-8")
    (tmp_path / "2.txt").write_bytes(b"\x00\x01" * 40)
    (tmp_path / "3.docx").write_bytes(b"no")
    with pytest.raises(UserError) as error:
        convert([tmp_path], Options(HERS))
    assert [line.split(": ")[0] for line in error.value.problems] == [
        f"{tmp_path.name}/2.txt",
        f"{tmp_path.name}/3.docx",
    ]
