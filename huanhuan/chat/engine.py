"""What answers in the chat: one interface for every engine, and the reply that is being written.

``Engine.reply(messages, sampling)`` returns at once with a :class:`Reply`. The engine fills it in the
background; any number of readers may iterate over it, look at what is there so far, or stop it. A page
that is interrupted by a click therefore loses nothing: it reads on from the same object.

Nothing here imports torch, LMDeploy or a client library.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from huanhuan.errors import UserError
from huanhuan.template import Message, clean

logger = logging.getLogger("huanhuan.chat")

Finish = Literal["stop", "length", "stopped", "cut"]

# Seeds are below this number, which every engine and server can read.
SEEDS = 2**63


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    ``temperature`` 0 means greedy; ``top_p`` in (0, 1]; ``top_k`` 0 means all tokens; ``max_new_tokens`` is
    the longest reply; ``repetition_penalty`` 1 means none; ``seed`` None means a new one for each reply.
    """

    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 40
    max_new_tokens: int = 512
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError naming every setting that is out of range."""
        bad = [
            f"{name} {value}: {rule}"
            for name, value, rule, good in (
                ("temperature", self.temperature, "0 to 2", 0 <= self.temperature <= 2),
                ("top_p", self.top_p, "over 0, at most 1", 0 < self.top_p <= 1),
                ("top_k", self.top_k, "0 or more", self.top_k >= 0),
                ("max_new_tokens", self.max_new_tokens, "1 or more", self.max_new_tokens >= 1),
                ("repetition_penalty", self.repetition_penalty, "0.5 to 2", 0.5 <= self.repetition_penalty <= 2),
                ("seed", self.seed, "0 to 2^63 - 1", self.seed is None or 0 <= self.seed < SEEDS),
            )
            if not good
        ]
        if bad:
            raise ValueError("; ".join(bad))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0, top_p=1, top_k=0)


@dataclass(frozen=True)
class Timeouts:
    """Seconds: ``first`` until the first piece, ``between`` two pieces, ``total`` for the whole reply.

    They count from the moment an engine takes the reply; waiting in a queue is not counted.
    """

    first: float = 120
    between: float = 60
    total: float = 600

    @classmethod
    def from_environment(cls) -> Timeouts:
        """The defaults, with ``HUANHUAN_TIMEOUT`` (seconds) as the total if it is set."""
        text = os.environ.get("HUANHUAN_TIMEOUT", "").strip()
        if not text:
            return cls()
        try:
            total = float(text)
        except ValueError:
            total = 0.0
        if not 0 < total < math.inf:
            raise UserError(f"HUANHUAN_TIMEOUT={text}: 需要正的秒数 / must be seconds, over 0: correct it or unset it")
        return cls(min(cls.first, total), min(cls.between, total), total)


def whole_setting(name: str, default: int, environ: Mapping[str, str] = os.environ) -> int:
    """The whole number over 0 that the variable ``name`` holds, ``default`` if it is not set.

    Raises: UserError for anything else.
    """
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise UserError(f"{name}={text}: 需要正整数 / must be a whole number over 0: correct it or unset it")
    return int(text)


class EngineError(UserError):
    """One sentence for the visitor in two languages, and an id that finds the details in the log."""

    def __init__(self, zh: str, en: str, cause: BaseException | None = None) -> None:
        self.zh, self.en = zh, en
        self.id = secrets.token_hex(4)
        super().__init__(f"{zh} / {en} [{self.id}]")
        self.__cause__ = cause
        logger.error("[%s] %s", self.id, en, exc_info=cause)


class Reply:
    """A reply being written: filled by one engine in the background, read by anybody.

    ``text`` is what was said so far and stays when the reply is stopped or fails; ``tokens`` counts what the
    engine generated; ``finish`` is None until it ends, then "stop" (the character ended it), "length" (the
    longest reply was reached), "stopped" (a person ended it) or "cut" (the guard did: it went in circles);
    ``error`` is set instead when the engine failed.
    """

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self.timeouts = timeouts or Timeouts()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._on_stop: list[Callable[[], object]] = []
        self._on_release: list[Callable[[], object]] = []
        self._released = False
        self._text = ""
        self.tokens = 0
        self.finish: Finish | None = None
        self.error: EngineError | None = None
        self.dropped = 0
        self.ahead: int | None = None
        self.restarts = 0
        self.asked_at = time.monotonic()
        self.admitted_at: float | None = None
        self.started_at: float | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.read_at = self.asked_at

    # What readers use.

    @property
    def text(self) -> str:
        """What was said so far."""
        return self._text

    @property
    def done(self) -> bool:
        """Whether nothing more will be said."""
        return self.finish is not None or self.error is not None

    @property
    def released(self) -> bool:
        """Whether the engine has given the slot of this reply back."""
        return self._released

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked the engine to end this reply."""
        return self._stop.is_set()

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from the start of generation to the first piece; None before it."""
        return None if self.first_at is None or self.started_at is None else self.first_at - self.started_at

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first piece per second; None while there are too few to tell."""
        if self.first_at is None or self.last_at is None or self.tokens < 2 or self.last_at <= self.first_at:
            return None
        return (self.tokens - 1) / (self.last_at - self.first_at)

    def stop(self) -> None:
        """Ask the engine to end the reply and to free its slot; returns at once, what was said stays."""
        with self._changed:
            self._stop.set()
            callbacks, self._on_stop = self._on_stop, []
            self._changed.notify_all()
        for callback in callbacks:
            callback()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the reply is done, at most ``timeout`` seconds; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.done, timeout)

    def ticks(self, seen: int = 0, every: float = 0.25) -> Iterator[str]:
        """New text after the first ``seen`` characters as it arrives, or "" after ``every`` seconds without any.

        The empty ones let a page look at what its visitor clicks while the engine says nothing. A reply that
        is begun anew (``restarts``) is yielded from its new beginning.

        Raises: EngineError if the engine failed or did not answer in time; what was said stays in ``text``.
        """
        restarts = self.restarts
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda start=seen, old=restarts: len(self._text) > start or self.done or self.restarts != old, every
                )
                text, done = self._text, self.done
                if self.restarts != restarts:
                    restarts, seen = self.restarts, 0
            self.read_at = time.monotonic()
            if len(text) > seen:
                yield text[seen:]
                seen = len(text)
            elif done:
                if self.error:
                    raise self.error
                return
            else:
                self.check_time()
                yield ""

    def pieces(self, seen: int = 0) -> Iterator[str]:
        """New text after the first ``seen`` characters, as it arrives. Raises: as :meth:`ticks` does."""
        return (piece for piece in self.ticks(seen) if piece)

    def __iter__(self) -> Iterator[str]:
        return self.pieces()

    def result(self) -> str:
        """The whole reply; waits for it. Raises: EngineError as :meth:`pieces` does."""
        for _ in self:
            pass
        return self.text

    @property
    def overdue(self) -> bool:
        """Whether the engine has had the reply for longer than the timeouts allow, or said nothing for too long."""
        if self.admitted_at is None:
            return False
        now, last = time.monotonic(), self.last_at
        since = last or self.started_at or self.admitted_at
        allowed = self.timeouts.first if last is None else self.timeouts.between
        return now - since > allowed or now - self.admitted_at > self.timeouts.total

    def check_time(self) -> None:
        """Fail and stop the reply if it is overdue; called by whoever watches it."""
        if self.done or not self.overdue:
            return
        held = time.monotonic() - (self.admitted_at or self.asked_at)
        self.fail(
            EngineError(
                "模型太久没有回应，请稍后重试",
                "the model did not answer in time: try again later",
                TimeoutError(f"{held:.0f} s, {self.tokens} tokens"),
            )
        )
        self.stop()

    # What engines use.

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once when somebody stops the reply; at once if that has happened."""
        with self._changed:
            if not self._stop.is_set():
                self._on_stop.append(callback)
                return
        callback()

    def on_release(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once when the engine has given the slot back; at once if it has."""
        with self._changed:
            if not self._released:
                self._on_release.append(callback)
                return
        callback()

    def release(self) -> None:
        """The engine has nothing more to do with this reply."""
        with self._changed:
            self._released = True
            callbacks, self._on_release = self._on_release, []
        for callback in callbacks:
            callback()

    def admit(self) -> None:
        """An engine has taken the reply: from here it has to answer in time, whether it begins or not."""
        self.ahead = None
        if self.admitted_at is None:
            self.admitted_at = time.monotonic()

    def begin(self, at: float | None = None) -> None:
        """Generation starts now, or did ``at`` that time: the time to the first token counts from here."""
        self.started_at = time.monotonic() if at is None else at

    def add(self, piece: str, tokens: int | None = None) -> None:
        """Append text; ``tokens`` is the number generated so far. Ignored once the reply is done."""
        with self._changed:
            if self.done:
                return
            if tokens is not None:
                self.tokens = tokens
            self.last_at = time.monotonic()
            if piece:
                if self.first_at is None:
                    self.first_at = self.last_at
                self._text += piece
                self._changed.notify_all()

    def end(self, finish: Finish) -> None:
        """The engine is finished. A reply that somebody stopped ends as "stopped" however it ended."""
        with self._changed:
            if not self.done:
                self.finish = "stopped" if self._stop.is_set() else finish
            self._changed.notify_all()

    def fail(self, error: EngineError) -> None:
        """The engine failed; what was said stays."""
        with self._changed:
            if not self.done:
                self.error = error
            self._changed.notify_all()

    def restart(self) -> None:
        """Forget what was said so that the reply can be written anew."""
        with self._changed:
            self.restarts += 1
            self._text = ""
            self.tokens = 0
            self.first_at = self.last_at = None
            self.started_at = time.monotonic()


class Engine(ABC):
    """Something that answers.

    ``kind`` names the engine and ``label`` says what really runs; ``model`` is what is loaded;
    ``context_tokens`` bounds prompt and reply together; ``slots`` replies can be written at a time.
    ``fallback`` is why this is not the engine that was asked for, if it is not.
    """

    kind: str
    label: str
    model: str
    context_tokens: int = 4096
    slots: int = 1
    fallback: str | None = None

    def __init__(self) -> None:
        self.timeouts = Timeouts.from_environment()

    def reply(self, messages: Sequence[Message], sampling: Sampling | None = None, into: Reply | None = None) -> Reply:
        """Start answering ``messages``; if the last one is the assistant's, the reply goes on from there.

        Control tokens are removed from every text. Of a conversation too long for the context the oldest
        exchanges are dropped, never the system prompt (``Reply.dropped`` counts the messages). ``into`` is a
        reply to fill instead of a new one.

        Raises: EngineError if even the last message alone does not fit.
        """
        sampling = sampling or Sampling()
        reply = into or Reply(self.timeouts)
        kept = self.fit(messages, sampling)
        reply.dropped = len(messages) - len(kept)
        reply.admit()
        self._start(reply, kept, sampling)
        return reply

    def fit(self, messages: Sequence[Message], sampling: Sampling) -> list[Message]:
        """``messages`` cleaned, the oldest exchanges dropped until prompt and reply fit the context.

        A message that lost all its text to the cleaning is dropped too. Counted backwards from the newest, each
        message once and none that cannot be kept: what is imported may be far longer than the context.
        """
        cleaned: list[Message] = [{"role": each["role"], "content": clean(each["content"])} for each in messages]
        ends_well = bool(cleaned and cleaned[-1]["content"])
        cleaned = [each for each in cleaned if each["content"]]
        if not ends_well or not any(each["role"] == "user" for each in cleaned):
            raise EngineError("请先说一句话", "say something first")
        system = cleaned[:1] if cleaned[0]["role"] == "system" else []
        rest = cleaned[len(system) :]
        room = self.context_tokens - sampling.max_new_tokens
        if room <= 0 or (system and self.size(system[0]) > room):
            raise EngineError(
                f"回复长度 {sampling.max_new_tokens} 加上人设已占满上下文 {self.context_tokens}，请减小回复长度",
                f"the system prompt and replies of up to {sampling.max_new_tokens} tokens fill the context of "
                f"{self.context_tokens}: lower the reply length",
            )
        place, used = len(rest) - 1, self.count([*system, rest[-1]])
        first: int | None = None
        while used <= room:
            if place == 0 or rest[place]["role"] == "user":
                first = place
            if place == 0:
                break
            place -= 1
            used += self.size(rest[place])
        # The sum of the parts decides nothing that the whole does not confirm.
        while first is not None and self.count([*system, *rest[first:]]) > room:
            first = next((i for i in range(first + 1, len(rest)) if rest[i]["role"] == "user"), None)
        if first is None:
            raise EngineError(
                "这句话连同人设太长了，请缩短，或减小回复长度",
                "this message with the system prompt is too long: shorten one, or lower the reply length",
            )
        return [*system, *rest[first:]]

    @abstractmethod
    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of the prompt that ``messages`` make, or a number not below it."""

    def size(self, message: Message) -> int:
        """Tokens that one message more makes a prompt longer by, or a number not below it."""
        return self.count([message])

    @abstractmethod
    def _start(self, reply: Reply, messages: list[Message], sampling: Sampling) -> None:
        """Begin to fill ``reply`` in the background and return; every path ends in ``end`` or ``fail``."""

    def explain(self, error: BaseException) -> EngineError:
        """One sentence for an unexpected error."""
        return EngineError("模型出错了，请重试", "the model failed: try again", error)

    def healthy(self) -> bool:
        """Whether a reply can be expected now. Cheap: no token is generated."""
        return True

    def close(self) -> None:  # noqa: B027 — an engine that holds nothing need not override it
        """Give back what the engine holds; no reply may be started afterwards."""
