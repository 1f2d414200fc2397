"""Which scenes are held out, and the identity exchanges."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from huanhuan.dataset.identity import identity_records
from huanhuan.dataset.split import choose_val, rank
from huanhuan.persona import Identity, Persona


@given(st.lists(st.tuples(st.integers(0, 2**64), st.booleans()), max_size=80), st.floats(0, 0.9))
def test_only_free_scenes_are_held_out_and_training_keeps_one(scenes: list[tuple[int, bool]], share: float) -> None:
    held_out = choose_val([order for order, _ in scenes], [free for _, free in scenes], share)
    assert all(scenes[index][1] for index in held_out)
    assert len(held_out) < max(1, len(scenes))
    if share == 0:
        assert not held_out


def test_the_share_is_met_and_small_scripts_hold_out_eight_or_a_quarter() -> None:
    for count, share, expected in (
        (200, 0.15, 30),
        (40, 0.15, 8),
        (52, 0.15, 8),
        (12, 0.15, 3),
        (3, 0.15, 0),
        (40, 0.5, 20),
    ):
        ranks = [rank(0, str(number)) for number in range(count)]
        assert len(choose_val(ranks, [True] * count, share)) == expected


def test_the_hash_is_the_same_on_every_machine() -> None:
    assert rank(0, "甄嬛") == 16326736175783776494
    assert rank(1, "甄嬛") != rank(0, "甄嬛")


def _persona(questions: tuple[str, ...], answers: tuple[str, ...]) -> Persona:
    return Persona("甄嬛", (), "扮演甄嬛", "来。", ("来？",), (Identity(questions, answers),))


def test_identity_exchanges_differ_and_name_their_lines(tmp_path: Path) -> None:
    card = tmp_path / "persona.toml"
    card.write_text('name = "甄嬛"\nq = ["你是谁？",\n"你叫什么？"]\na = ["我是甄嬛。"]\n', "utf-8")
    persona = _persona(("你是谁？", "你叫什么？"), ("我是甄嬛。",))
    found = identity_records(persona, card, 10, 0)
    questions = [record.exchanges[0].input for record in found]
    assert len(questions) == len(set(questions)) == 10
    assert set(questions[:2]) == {"你是谁？", "你叫什么？"}
    assert all(record.system == "扮演甄嬛" and record.exchanges[0].output == "我是甄嬛。" for record in found)
    lines = {(record.source.first, record.source.last) for record in found if record.source}
    assert lines == {(2, 4), (3, 4)}


def test_identity_exchanges_are_not_repeated_to_fill_a_share(tmp_path: Path) -> None:
    card = tmp_path / "persona.toml"
    card.write_text("", "utf-8")
    found = identity_records(_persona(("你是谁？",), ("我是甄嬛。", "甄嬛。")), card, 500, 0)
    questions = [record.exchanges[0].input for record in found]
    assert len(questions) == len(set(questions)) < 20
    assert {record.exchanges[0].output for record in found} == {"我是甄嬛。", "甄嬛。"}


def test_identity_exchanges_are_the_same_each_time(tmp_path: Path) -> None:
    card = tmp_path / "persona.toml"
    card.write_text("", "utf-8")
    persona = _persona(("你是谁？", "你叫什么？"), ("我是甄嬛。",))
    assert identity_records(persona, card, 7, 3) == identity_records(persona, card, 7, 3)
