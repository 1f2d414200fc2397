"""Who are you? Exchanges about the character's identity, phrased in many ways."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huanhuan.dataset.records import Conversation, Exchange, Source
from huanhuan.dataset.split import rank
from huanhuan.persona import Persona

_CHINESE = ("{}", "请问，{}", "你好，{}", "敢问{}", "我想知道，{}", "能告诉我吗？{}", "冒昧问一句，{}", "对了，{}")
_ENGLISH = ("{}", "Hello. {}", "Excuse me, {}", "I wonder: {}", "May I ask: {}", "Tell me, {}")


def identity_records(persona: Persona, card: Path, wanted: int, seed: int) -> list[Conversation]:
    """Up to ``wanted`` records of one exchange each, no two with the same question in the same words.

    Fewer come back where the card has too few questions for so many different ones.
    """
    lines = card.read_text("utf-8-sig").splitlines()
    rows = sorted(_phrasings(persona), key=lambda row: (row[0], rank(seed, f"{row[1]}\n{row[2]}")))
    found: list[Conversation] = []
    for _, question, answer, asked in rows[:wanted]:
        at = sorted((_line_of(lines, asked), _line_of(lines, answer)))
        source = Source(card.name, at[0], at[1])
        found.append(Conversation((Exchange(question, answer),), persona.system, source))
    return found


def _phrasings(persona: Persona) -> Iterator[tuple[int, str, str, str]]:
    """(round, question as phrased, answer, question of the card); plain questions are of the first round.

    The answers take turns, so that none is said far more often than another.
    """
    seen: set[str] = set()
    for entry in persona.identity:
        for number, asked in enumerate(entry.questions):
            frames = _ENGLISH if asked.isascii() else _CHINESE
            for at, frame in enumerate(frames):
                question = frame.format(asked.strip())
                if question not in seen:
                    seen.add(question)
                    yield at, question, entry.answers[(number + at) % len(entry.answers)].strip(), asked


def _line_of(lines: list[str], text: str) -> int:
    """The 1-based line of the card where ``text`` stands; 1 if it is written in several lines."""
    start = text.strip().splitlines()[0]
    return next((number for number, line in enumerate(lines, 1) if start in line), 1)
