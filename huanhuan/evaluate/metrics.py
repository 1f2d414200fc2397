"""Scores of a reply against a reference: pure functions of text, importing nothing else of this project."""

from __future__ import annotations


def chrf(candidate: str, reference: str) -> float:
    """Character n-gram F-score of two texts, 0 to 100: 100 for equal texts, white space aside.

    It needs no word segmentation, which makes it fit for Chinese. The orders are sacrebleu's defaults,
    characters 1 to 6, recall weighing twice as much as precision.

    >>> chrf("臣妾明白了。", "臣妾明白了。")
    100.0
    >>> chrf("", "臣妾明白了。")
    0.0
    """
    from sacrebleu.metrics.chrf import CHRF

    if not candidate.strip() or not reference.strip():
        return 100.0 if candidate.split() == reference.split() else 0.0
    return CHRF().sentence_score(candidate, [reference]).score
