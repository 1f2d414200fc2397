"""Notices a reply that loops, is empty or breaks out of role, and has it said once more.

The judging functions are pure; :class:`GuardedEngine` puts them around any engine, so the page, the terminal
and the evaluation share one guard. ``HUANHUAN_GUARD=off`` switches it off.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from huanhuan.chat.engine import Engine, Finish, Reply, Sampling
from huanhuan.chat.runners import ThreadedEngine
from huanhuan.template import Message

logger = logging.getLogger("huanhuan.chat")

Problem = Literal["loop", "empty", "role"]

# Letters between two looks at a reply that is being written.
STRIDE = 24
_LONGEST_UNIT = 80

_ROLE = re.compile(
    r"作为(?:一个|一名|一款|一种)?(?:AI|人工智能|大?语言模型|智能助手|聊天机器人)"
    r"|我(?:只)?是(?:一个|一名|一款)?(?:由[^，。！？\n]{1,24}的)?(?:大型?)?(?:AI|人工智能|语言模型|智能助手|聊天机器人)(?!吗|么|？)"
    r"|我(?:是|叫)书生[·・]?浦语|上海人工智能实验室"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|\bI(?:'m| am) (?:just |only )?an? (?:AI|artificial intelligence|(?:large )?language model|chatbot)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^。！？!?.\n]{6,}[。！？!?.\n]")


def loops(text: str) -> bool:
    """Whether ``text`` ends in a unit said over and over, or holds one sentence four times.

    The shorter the unit, the more repetitions it takes: laughing and sighing are no loops.

    >>> loops("好" * 30), loops("哈哈哈哈！"), loops("臣妾告退。" * 5), loops("臣妾告退。臣妾告退。")
    (True, False, True, False)
    """
    stripped = text.rstrip()
    for size in range(1, min(_LONGEST_UNIT, len(stripped) // 3) + 1):
        times = 3 if size >= 20 else max(4, -(-24 // size))
        if len(stripped) >= size * times and stripped.endswith(stripped[-size:] * times):
            return True
    return any(count >= 4 for count in Counter(_SENTENCE.findall(text)).values())


def breaks_role(text: str) -> bool:
    """Whether the character speaks as a language model.

    >>> breaks_role("作为一个AI语言模型，我没有感情。"), breaks_role("本宫不知什么是人工智能。")
    (True, False)
    """
    return bool(_ROLE.search(text))


def problem(text: str, *, finished: bool = True) -> Problem | None:
    """What is wrong with a reply, or None; an unfinished one may still be empty."""
    if finished and not re.search(r"\w", text):
        return "empty"
    if breaks_role(text):
        return "role"
    return "loop" if loops(text) else None


def adjusted(sampling: Sampling, found: Problem) -> Sampling:
    """Sampling for the second try: never greedy, never the same seed, and against loops a penalty."""
    seed = None if sampling.seed is None else sampling.seed + 1
    warmer = min(max(sampling.temperature + 0.2, 0.7), 1.2)
    penalty = max(sampling.repetition_penalty, 1.15) if found == "loop" else sampling.repetition_penalty
    top_p = max(sampling.top_p, 0.9) if sampling.greedy or found != "role" else sampling.top_p
    return replace(sampling, temperature=warmer, top_p=top_p, repetition_penalty=penalty, seed=seed)


class GuardedEngine(ThreadedEngine):
    """Another engine, each reply of which is watched and at most once begun anew.

    ``counts`` holds how often each problem was found, ``kept`` how often the second try was no better.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.inner = engine
        self.kind, self.label, self.model = engine.kind, engine.label, engine.model
        self.context_tokens, self.slots, self.timeouts = engine.context_tokens, engine.slots, engine.timeouts
        self.fallback = engine.fallback
        self.counts: Counter[Problem] = Counter()
        self.kept = 0

    def count(self, messages: Sequence[Message]) -> int:
        """As the engine inside counts."""
        return self.inner.count(messages)

    def healthy(self) -> bool:
        """As the engine inside is."""
        return self.inner.healthy()

    def close(self) -> None:
        """Close the engine inside."""
        self.inner.close()

    def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        finish, found = self._try(reply, messages, sampling)
        if found is None:
            return finish
        self.counts[found] += 1
        logger.warning("guard: %s, said once more (%s so far)", found, dict(self.counts))
        reply.restart()
        finish, again = self._try(reply, messages, adjusted(sampling, found))
        if again:
            self.kept += 1
            logger.warning("guard: %s again, kept (%d so far)", again, self.kept)
        # A second loop was cut here, not by the visitor.
        return "length" if again and finish == "stopped" and not reply.stop_requested else finish

    def _try(self, reply: Reply, messages: list[Message], sampling: Sampling) -> tuple[Finish, Problem | None]:
        """Pass one reply of the engine inside on to ``reply``; what was wrong with it."""
        # A reply that goes on from an earlier text is judged together with it.
        before = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        inner = self.inner.reply(messages, sampling)
        reply.on_stop(inner.stop)
        found: Problem | None = None
        said, unseen = before, 0
        try:
            for piece in inner.ticks():
                if reply.started_at is None and inner.started_at is not None:
                    reply.begin()
                # An engine that is far ahead hands over much at once: what is wrong is cut there all the same.
                for part in (piece[at : at + STRIDE] for at in range(0, max(len(piece), 1), STRIDE)):
                    reply.add(part, inner.tokens)
                    said += part
                    unseen += len(part)
                    if unseen >= STRIDE:
                        unseen = 0
                        found = problem(said, finished=False)
                    if found:
                        break
                if reply.done or found:
                    inner.stop()
                if found:
                    break
        finally:
            _wait_for_release(inner)
        if reply.stop_requested:
            return "stopped", None
        return inner.finish or "stop", found or problem(before + inner.text)


def _wait_for_release(reply: Reply, patience: float = 30.0) -> None:
    """Until the engine has given the slot back, so that the slots counted outside are those really held."""
    released = threading.Event()
    reply.on_release(released.set)
    released.wait(patience)


def guarded(engine: Engine, environ: Mapping[str, str] = os.environ) -> Engine:
    """``engine`` with the guard around it, unless ``HUANHUAN_GUARD`` is ``off``."""
    if environ.get("HUANHUAN_GUARD", "").strip().lower() in ("off", "0", "no", "false"):
        return engine
    return GuardedEngine(engine)
