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

from huanhuan.chat.engine import SEEDS, Engine, EngineError, Finish, Reply, Sampling
from huanhuan.chat.runners import ThreadedEngine
from huanhuan.errors import UserError
from huanhuan.template import Message

logger = logging.getLogger("huanhuan.chat")

Problem = Literal["loop", "empty", "role"]

# Letters between two looks at a reply that is being written.
STRIDE = 24
# Letters of an earlier text that what is said now is judged with.
REACH = 1000
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


def loops(text: str, before: str = "") -> bool:
    """Whether ``text`` ends in a unit said over and over, or holds one sentence four times.

    The shorter the unit, the more repetitions it takes: laughing and sighing are no loops. If ``text`` goes on
    from ``before``, the repetitions may begin there, but half of them must be new.

    >>> loops("好" * 30), loops("哈哈哈哈！"), loops("臣妾告退。" * 5), loops("臣妾告退。臣妾告退。")
    (True, False, True, False)
    >>> loops("好了，说正事。", "好" * 30), loops("好" * 12, "好" * 12)
    (False, True)
    """
    whole = before + text
    stripped = whole.rstrip()
    new = len(stripped) - len(before)
    for size in range(1, min(_LONGEST_UNIT, len(stripped) // 3) + 1):
        times = 3 if size >= 20 else max(4, -(-24 // size))
        if len(stripped) >= size * times <= 2 * new and stripped.endswith(stripped[-size:] * times):
            return True
    sentences = [(found.group(), found.end() > len(before)) for found in _SENTENCE.finditer(whole)]
    fresh = Counter(sentence for sentence, ends_in_text in sentences if ends_in_text)
    return any(
        fresh[sentence] >= 2 and count >= 4 for sentence, count in Counter(each for each, _ in sentences).items()
    )


def breaks_role(text: str, before: str = "", *, finished: bool = True) -> bool:
    """Whether the character speaks as a language model in ``text``, which may go on from ``before``.

    While it is unfinished, the last words do not count yet: what follows may make them a question.

    >>> breaks_role("作为一个AI语言模型，我没有感情。"), breaks_role("本宫不知什么是人工智能。")
    (True, False)
    """
    whole = before + text
    last = len(whole) if finished else len(whole) - 1
    return any(len(before) < found.end() <= last for found in _ROLE.finditer(whole))


def problem(text: str, before: str = "", *, finished: bool = True) -> Problem | None:
    """What is wrong with a reply, or None; an unfinished one may still be empty.

    If it goes on from an earlier text, ``before``, only what is new is judged: that text was kept.
    """
    before = before[-REACH:]
    if finished and not re.search(r"\w", before + text):
        return "empty"
    if loops(text, before):
        return "loop"
    return "role" if breaks_role(text, before, finished=finished) else None


def adjusted(sampling: Sampling, found: Problem) -> Sampling:
    """Sampling for the second try: never greedy, never the same seed, and against loops a penalty."""
    seed = None if sampling.seed is None else (sampling.seed + 1) % SEEDS
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
        self.kind, self.timeouts = engine.kind, engine.timeouts
        self.counts: Counter[Problem] = Counter()
        self.kept = 0

    @property
    def label(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the engine inside says."""
        return self.inner.label

    @property
    def model(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What answers now; a server may change it."""
        return self.inner.model

    @property
    def fallback(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the engine inside says."""
        return self.inner.fallback

    @property
    def context_tokens(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the engine inside bounds it."""
        return self.inner.context_tokens

    @property
    def slots(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As many as the engine inside has."""
        return self.inner.slots

    def count(self, messages: Sequence[Message]) -> int:
        """As the engine inside counts."""
        return self.inner.count(messages)

    def size(self, message: Message) -> int:
        """As the engine inside counts."""
        return self.inner.size(message)

    def healthy(self) -> bool:
        """As the engine inside is."""
        return self.inner.healthy()

    def close(self) -> None:
        """Close the engine inside."""
        self.inner.close()

    def judge(self, text: str, before: str, *, finished: bool = True) -> Problem | None:
        """As :func:`problem` does."""
        return problem(text, before, finished=finished)

    def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        finish, found = self._try(reply, messages, sampling)
        if found is None:
            return finish
        self.counts[found] += 1
        logger.warning("guard: %s, said once more (%s so far)", found, dict(self.counts))
        reply.restart()
        finish, again = self._try(reply, messages, adjusted(sampling, found), last=True)
        if again:
            self.kept += 1
            logger.warning("guard: %s again, kept (%d so far)", again, self.kept)
        return finish

    def _try(
        self, reply: Reply, messages: list[Message], sampling: Sampling, *, last: bool = False
    ) -> tuple[Finish, Problem | None]:
        """Pass one reply of the engine inside on to ``reply``; how it ended and what was wrong with it.

        The ``last`` try is kept whatever it says, so only a loop is cut there, which would have no end.
        """
        before = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        inner = self.inner.reply(messages, sampling)
        reply.on_stop(inner.stop)
        found: Problem | None = None
        said, unseen = "", 0
        try:
            for piece in inner.ticks():
                if reply.started_at is None and inner.started_at is not None:
                    reply.begin(inner.started_at)
                # An engine that is far ahead hands over much at once: what is wrong is cut there all the same.
                for part in (piece[at : at + STRIDE] for at in range(0, max(len(piece), 1), STRIDE)):
                    reply.add(part, inner.tokens)
                    said += part
                    unseen += len(part)
                    if unseen >= STRIDE:
                        unseen = 0
                        found = self.judge(said, before, finished=False)
                        if last and found != "loop":
                            found = None
                    if found:
                        break
                if reply.done or found:
                    inner.stop()
                if found:
                    break
        except EngineError as error:
            # Told at once: the slot of an engine that failed may come back later or never.
            reply.fail(error)
            raise
        finally:
            _wait_for_release(inner)
            # A server may count its tokens after the last piece.
            reply.tokens = inner.tokens
        if reply.stop_requested:
            return "stopped", None
        return "cut" if found else inner.finish or "stop", found or self.judge(said, before)


def _wait_for_release(reply: Reply) -> None:
    """Until the engine has given the slot back, however long that takes.

    A slot that is given back outside while the engine inside still holds it would be given to somebody who
    then waits in vain; a reply that is not released is seen, and counted as lost in the end.
    """
    released = threading.Event()
    reply.on_release(released.set)
    released.wait()


def guard_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``HUANHUAN_GUARD`` is ``on``, as it is if it is not set, or ``off``. Raises: UserError for anything else."""
    text = environ.get("HUANHUAN_GUARD", "").strip()
    if text.lower() in ("", "on", "1", "yes", "true"):
        return True
    if text.lower() in ("off", "0", "no", "false"):
        return False
    raise UserError(f"HUANHUAN_GUARD={text}: 只能是 on 或 off / must be on or off: correct it or unset it")


def guarded(engine: Engine, environ: Mapping[str, str] = os.environ) -> Engine:
    """``engine`` with the guard around it, unless ``HUANHUAN_GUARD`` is ``off``. Raises: as :func:`guard_wanted` does."""
    return GuardedEngine(engine) if guard_wanted(environ) else engine
