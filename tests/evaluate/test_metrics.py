"""chrF against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from huanhuan.evaluate.metrics import chrf

WORDS = st.text("春夏秋冬风花雪月，。", min_size=1, max_size=12)


def test_two_characters_of_three() -> None:
    # Orders 1, 2 and 3 exist. Precision and recall are equal, so F is their mean: (2/3 + 1/2 + 0) / 3.
    assert chrf("春夏秋", "春夏冬") == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_recall_weighs_twice_as_much() -> None:
    # One of two characters is said: precision 1, recall 1/2, F2 = 5 · 1/2 / (4 + 1/2).
    assert chrf("春", "春夏") == pytest.approx(100 * 5 * 0.5 / 4.5)


@given(WORDS)
def test_equal_texts_are_100_and_white_space_does_not_count(text: str) -> None:
    assert chrf(text, text) == pytest.approx(100)
    assert chrf(" ".join(text), text) == pytest.approx(100)


@given(WORDS, WORDS)
def test_range_and_strangers(one: str, two: str) -> None:
    assert 0 <= chrf(one, two) <= 100
    assert chrf(one, "abcdef") == 0


@pytest.mark.parametrize(("candidate", "reference"), [("", "春"), ("春", ""), (" \n", "春")])
def test_nothing_matches_nothing_only(candidate: str, reference: str) -> None:
    assert chrf(candidate, reference) == 0
    assert chrf("", " ") == 100
