"""Scenes to exchanges to records."""

from __future__ import annotations

import pytest

from huanhuan.dataset.conversations import CutOptions, Turn, conversations_of, pairs_of, single_turns, turns_of
from huanhuan.dataset.records import Conversation, Exchange
from huanhuan.text.labels import Speakers, name_key
from huanhuan.text.reader import parse_text

KEYS = frozenset(map(name_key, ("甄嬛", "嬛嬛")))


def turns(text: str, *, keep: bool = False) -> list[Turn]:
    (scene,) = parse_text(f"第1幕\n{text}", "a.txt", Speakers(("甄嬛", "嬛嬛"))).scenes
    return turns_of(scene, "a.txt", KEYS, keep_directions=keep)


def pairs(text: str, **options: object) -> list[tuple[str, str]]:
    cut = CutOptions(**options)  # type: ignore[arg-type]
    found = pairs_of(turns(text, keep=cut.keep_directions), cut)
    return [(pair.input, pair.output) for pair in found.pairs]


def left_out(text: str, **options: object) -> list[tuple[str, int, int]]:
    found = pairs_of(turns(text), CutOptions(**options))  # type: ignore[arg-type]
    return [(item.reason, item.line, item.last) for item in found.skipped]


def test_lines_of_one_speaker_are_one_turn() -> None:
    text = "皇帝：来。\n皇帝：坐。\n甄嬛：是。\n（风起）\n嬛嬛：谢皇上。\n皇帝：好。"
    assert [(turn.hers, turn.text, turn.first, turn.last) for turn in turns(text)] == [
        (False, "来。坐。", 2, 3),
        (True, "是。谢皇上。", 4, 6),
        (False, "好。", 7, 7),
    ]


def test_the_prompt_is_the_turn_right_before_hers() -> None:
    assert pairs("皇帝：来。\n皇后：慢着。\n甄嬛：是。\n甄嬛：臣妾在。\n皇帝：坐。\n甄嬛：谢。") == [
        ("慢着。", "是。臣妾在。"),
        ("坐。", "谢。"),
    ]
    assert left_out("皇帝：来。\n皇后：慢着。\n甄嬛：是。\n皇帝：走。") == [("not_prompt", 2, 2)]


def test_a_turn_with_others_is_hers() -> None:
    assert pairs("皇帝：来。\n甄嬛、皇后：是。\n皇帝：坐。\n皇后：谢。\n甄嬛：谢。") == [
        ("来。", "是。"),
        ("谢。", "谢。"),
    ]


def test_a_line_that_opens_a_scene_is_dropped_or_answers_the_direction() -> None:
    text = "（夜，雪。皇帝推门而入）\n甄嬛：皇上怎么来了？\n皇帝：看你。\n甄嬛：谢皇上。"
    assert pairs(text) == [("看你。", "谢皇上。")]
    assert left_out(text) == [("no_prompt", 3, 3)]
    assert pairs(text, openers="direction")[0] == ("（夜，雪。皇帝推门而入）", "皇上怎么来了？")
    assert left_out(text, openers="direction") == []
    assert left_out("甄嬛：来人。\n皇帝：何事？\n甄嬛：无事。", openers="direction") == [("no_prompt", 2, 2)]


def test_context_carries_names_and_has_a_cap() -> None:
    text = "甄嬛：来人。\n皇帝：一二三。\n皇后：四五六。\n太后：七八九。\n甄嬛：是。\n皇帝：走。\n甄嬛：好。"
    assert pairs(text, context=2, names=True) == [("皇后：四五六。\n太后：七八九。", "是。"), ("皇帝：走。", "好。")]
    assert pairs(text, context=9, names=True)[0][0] == "皇帝：一二三。\n皇后：四五六。\n太后：七八九。"
    assert pairs(text, context=9, names=True, context_chars=15)[0][0] == "皇后：四五六。\n太后：七八九。"
    assert pairs(text, context=9, names=True, context_chars=1)[0][0] == "太后：七八九。"


def test_directions_are_dropped_or_kept() -> None:
    text = "皇帝（喜）：来（招手）。\n（甄嬛起身）\n甄嬛：（行礼）是。"
    assert pairs(text) == [("来。", "是。")]
    assert pairs(text, keep_directions=True) == [("（喜）来（招手）。（甄嬛起身）", "（行礼）是。")]


def records(text: str, system: str | None = None, **options: object) -> list[Conversation]:
    cut = CutOptions(**options)  # type: ignore[arg-type]
    return conversations_of(pairs_of(turns(text), cut).pairs, "a.txt", cut, system)


TALK = "".join(f"皇帝：问{n}{'问' * 7}。\n甄嬛：答{n}{'答' * 7}。\n" for n in "一二三四")


def test_a_scene_is_one_record_until_the_budget_is_reached() -> None:
    assert [len(record.exchanges) for record in records(TALK)] == [4]
    assert [len(record.exchanges) for record in records(TALK, budget=45)] == [2, 2]
    assert [len(record.exchanges) for record in records(TALK, budget=45, system="统" * 20)] == [1, 1, 1, 1]
    assert [len(record.exchanges) for record in records(TALK, single_turn=True)] == [1, 1, 1, 1]


def test_an_exchange_over_the_budget_is_kept_whole() -> None:
    found = records(TALK, budget=5)
    assert [record.exchanges[0].output for record in found] == [f"答{n}答答答答答答答。" for n in "一二三四"]


def test_every_record_names_its_lines() -> None:
    source = [record.source for record in records(TALK, budget=45)]
    assert [(each.file, each.first, each.last) for each in source if each] == [("a.txt", 2, 5), ("a.txt", 6, 9)]


def test_the_budget_can_be_measured_in_anything() -> None:
    cut = CutOptions(budget_tokens=60)
    found = conversations_of(pairs_of(turns(TALK), cut).pairs, "a.txt", cut, None, lambda text: 5)
    # Five for the prompt, five for the reply and twelve of the template: two exchanges fit into sixty.
    assert [len(record.exchanges) for record in found] == [2, 2]


def test_records_become_single_turns() -> None:
    whole = Conversation((Exchange("乙", "丙"), Exchange("丁", "戊")), "甲")
    assert single_turns(whole) == [Conversation((pair,), "甲") for pair in whole.exchanges]


@pytest.mark.parametrize("text", ["甄嬛：是。", "皇帝：来。", "（风起）", ""])
def test_scenes_without_an_exchange(text: str) -> None:
    found = parse_text(f"第1幕\n{text}\n皇帝；", "a.txt", Speakers(("甄嬛",)), layout="colon").scenes
    for scene in found:
        assert pairs_of(turns_of(scene, "a.txt", KEYS), CutOptions()).pairs == []
