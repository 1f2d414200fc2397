"""The reply that is being written: filled by an engine, read by anybody, with its clock and its errors.

Any number of readers may iterate over a :class:`Reply`, look at what is there so far, or stop it. A page that is
interrupted by a click therefore loses nothing: it reads on from the same object.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from huanhuan.errors import UserError

logger = logging.getLogger("huanhuan.chat")

Finish = Literal["stop", "length", "stopped", "cut"]


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
