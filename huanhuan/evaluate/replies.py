"""What an engine answers to the prompts of a training file, beside what the character said there."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huanhuan.chat.engine import GREEDY, Engine, Finish, Reply, Sampling
from huanhuan.chat.guard import GuardedEngine, Problem, guarded
from huanhuan.dataset.formats import read_records
from huanhuan.evaluate.metrics import chrf
from huanhuan.files import write_text
from huanhuan.template import Message, record_messages

# How many prompts are answered, and of how many.
Progress = Callable[[int, int], None]
# What is asked, and the reply that stands in the file.
Prompt = tuple[tuple[Message, ...], str]


@dataclass(frozen=True)
class Answer:
    """One prompt, the engine's reply to it and what the character said; ``chrf`` compares the two.

    ``dropped`` counts the oldest messages of the prompt that the context had no room for.
    """

    prompt: tuple[Message, ...]
    reply: str
    reference: str
    finish: Finish
    dropped: int
    chrf: float


@dataclass
class Answers:
    """Every answer, in the order of the file; ``problems`` and ``kept`` are the guard's counts, if it was ``guarded``."""

    answers: list[Answer] = field(default_factory=list)
    problems: Counter[Problem] = field(default_factory=Counter)
    kept: int = 0
    guarded: bool = False

    @property
    def chrf(self) -> float:
        """Mean over the answers; 0 if there is none."""
        return sum(each.chrf for each in self.answers) / len(self.answers) if self.answers else 0.0

    def report(self, shown: int = 3) -> str:
        """The scores as text, and the ``shown`` answers furthest from what the character said."""
        ends = Counter(each.finish for each in self.answers)
        lines = [
            f"{len(self.answers)} 句回复 / replies, chrF {self.chrf:.1f}",
            "结束 / ended: " + ", ".join(f"{finish} {count}" for finish, count in ends.most_common()),
            "检查 / guard: " + (self._guard() if self.guarded else "off"),
        ]
        if forgotten := sum(each.dropped > 0 for each in self.answers):
            lines.append(f"上下文装不下、删去最早几句的 / shortened to fit the context: {forgotten}")
        for each in sorted(self.answers, key=lambda answer: answer.chrf)[:shown]:
            asked = each.prompt[-1]["content"]
            lines += ["", f"chrF {each.chrf:.1f}", f"  问 / asked: {asked}", f"  答 / reply: {each.reply}"]
            lines.append(f"  原文 / script: {each.reference}")
        return "\n".join(lines)

    def _guard(self) -> str:
        found = ", ".join(f"{problem} {count}" for problem, count in self.problems.most_common())
        return f"{found or 0}; 重说后仍如此 / no better the second time: {self.kept}"

    def save(self, path: Path) -> None:
        """Every answer as a line of JSON: ``messages``, ``reply``, ``reference``, ``finish``, ``dropped``, ``chrf``."""
        lines = (
            json.dumps(
                {
                    "messages": each.prompt,
                    "reply": each.reply,
                    "reference": each.reference,
                    "finish": each.finish,
                    "dropped": each.dropped,
                    "chrf": round(each.chrf, 2),
                },
                ensure_ascii=False,
            )
            for each in self.answers
        )
        write_text(path, "".join(f"{line}\n" for line in lines))


def prompts(path: Path | str) -> Iterator[Prompt]:
    """Every prompt of a training file with the reply that stands there.

    A record is cut before each reply; the earlier replies of a prompt are the file's own, whatever an engine
    would have said. Raises: UserError with every problem of the file.
    """
    for record in read_records(path):
        messages = record_messages(record.to_json())
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                yield tuple(messages[:place]), message["content"]


def answered(
    asked: Sequence[Prompt],
    engine: Engine,
    sampling: Sampling = GREEDY,
    *,
    progress: Progress = lambda done, of: None,
    environ: Mapping[str, str] = os.environ,
) -> Answers:
    """Let ``engine``, behind the guard, answer what :func:`prompts` found in a file.

    As many are asked at a time as the engine has slots. ``HUANHUAN_GUARD=off`` leaves the guard out.

    Raises: EngineError if the engine fails or a prompt is too long, with every reply that still runs stopped.
    """
    watched = guarded(engine, environ)
    result = Answers()
    for place, reply in enumerate(_replies((prompt for prompt, _ in asked), watched, sampling)):
        prompt, reference = asked[place]
        finish = reply.finish or "stop"
        result.answers.append(Answer(prompt, reply.text, reference, finish, reply.dropped, chrf(reply.text, reference)))
        progress(place + 1, len(asked))
    if isinstance(watched, GuardedEngine):
        result.guarded, result.problems, result.kept = True, Counter(watched.counts), watched.kept
    return result


def _replies(asked: Iterable[tuple[Message, ...]], engine: Engine, sampling: Sampling) -> Iterator[Reply]:
    """The finished replies in order, with the engine's slots filled all the time."""
    running: deque[Reply] = deque()
    try:
        for prompt in asked:
            if len(running) >= engine.slots:
                yield _finished(running)
            running.append(engine.reply(prompt, sampling))
        while running:
            yield _finished(running)
    finally:
        for reply in running:
            reply.stop()


def _finished(running: deque[Reply]) -> Reply:
    running[0].result()
    return running.popleft()
