"""Who is answered next: a bounded queue before the engine, first come first served.

Every visitor has one reply at a time and a number of them per hour; a reply that nobody reads any more, or
that is overdue, is stopped, so that its slot goes to the next.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huanhuan.chat.engine import Engine, EngineError, Reply, Sampling, whole_setting
from huanhuan.chat.hourly import Hourly
from huanhuan.errors import Problems, UserError
from huanhuan.template import Message

logger = logging.getLogger("huanhuan.chat")


@dataclass(frozen=True)
class Limits:
    """``queue`` replies may wait; ``hourly`` per visitor; unread for ``unread`` seconds, a reply is stopped.

    A slot not given back ``lost`` seconds after its reply was stopped or ended counts as lost. With every slot
    lost, the engine is ill and nobody is left waiting for it.
    """

    queue: int = 32
    hourly: int = 120
    unread: float = 20.0
    lost: float = 60.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Limits:
        """``HUANHUAN_QUEUE``, ``HUANHUAN_HOURLY`` and ``HUANHUAN_UNREAD`` (seconds) where they are set.

        Raises: UserError with every one that is no number.
        """
        values: dict[str, int] = {}
        problems = Problems()
        for name, field in (
            ("HUANHUAN_QUEUE", "queue"),
            ("HUANHUAN_HOURLY", "hourly"),
            ("HUANHUAN_UNREAD", "unread"),
        ):
            try:
                values[field] = whole_setting(name, getattr(cls, field), environ)
            except UserError as error:
                problems.extend(error.problems)
        problems.raise_if_any()
        return cls(**values)  # type: ignore[arg-type]


class Refused(EngineError):
    """The desk takes no message now; the sentence says why."""


@dataclass
class _Job:
    visitor: str
    reply: Reply
    messages: list[Message]
    sampling: Sampling


class Desk:
    """Admits replies to ``engine``, as many at a time as it has slots."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self.engine = engine
        self.limits = limits or Limits()
        self._lock = threading.RLock()
        self._waiting: deque[_Job] = deque()
        self._running: dict[Reply, _Job] = {}
        self._asked = Hourly()
        # Since when a reply that still holds its slot has needed it no more.
        self._over_at: dict[Reply, float] = {}
        self._closed = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="desk-keeper", daemon=True)
        self._keeper.start()

    def ask(self, visitor: str, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Queue a reply for ``visitor``; it may begin at once. An earlier one of theirs is stopped.

        Raises: Refused if the queue is full, the visitor has used up the hour or every slot is lost.
        """
        with self._lock:
            if self._closed.is_set():
                raise Refused("服务正在关闭", "the service is shutting down")
            if self.lost >= self.engine.slots:
                raise _no_answer()
            for job in [*self._waiting, *self._running.values()]:
                if job.visitor == visitor:
                    job.reply.stop()
            if minutes := self._asked.minutes_left(visitor, self.limits.hourly):
                raise Refused(
                    f"您这一小时说得够多了，请 {minutes} 分钟后再来",
                    f"you have reached the hourly limit: come back in {minutes} minutes",
                )
            if len(self._waiting) >= self.limits.queue:
                raise Refused("排队的人太多了，请稍后再试", "too many people are waiting: try again later")
            self._asked.count(visitor)
            reply = Reply(self.engine.timeouts)
            self._waiting.append(_Job(visitor, reply, list(messages), sampling))
            reply.on_stop(lambda: self._stopped(reply))
        self._admit()
        return reply

    def _stopped(self, reply: Reply) -> None:
        """A person stopped ``reply``: out of the queue at once, or noted until the engine lets go."""
        with self._lock:
            for job in self._waiting:
                if job.reply is reply:
                    self._waiting.remove(job)
                    reply.end("stopped")
                    reply.release()
                    break
            else:
                if reply in self._running:
                    self._over_at.setdefault(reply, time.monotonic())
        self._admit()

    def _admit(self) -> None:
        """Start what may start, and tell the others how many come before them."""
        starting: list[_Job] = []
        with self._lock:
            while self._waiting and len(self._running) < self.engine.slots and not self._closed.is_set():
                job = self._waiting.popleft()
                self._running[job.reply] = job
                starting.append(job)
            for ahead, job in enumerate(self._waiting):
                job.reply.ahead = ahead
        for job in starting:
            try:
                self.engine.reply(job.messages, job.sampling, into=job.reply)
            except EngineError as error:
                job.reply.fail(error)
                self._released(job.reply)
            except Exception as error:
                job.reply.fail(self.engine.explain(error))
                self._released(job.reply)
            else:
                job.reply.on_release(lambda reply=job.reply: self._released(reply))

    def _released(self, reply: Reply) -> None:
        with self._lock:
            self._running.pop(reply, None)
            self._over_at.pop(reply, None)
        self._admit()

    def _keep(self) -> None:
        """Look after the replies until the desk closes."""
        while not self._closed.wait(0.25):
            try:
                self._look()
            except Exception:
                logger.exception("looking after the replies")

    def _look(self) -> None:
        """Stop what is overdue or unread, and send everybody away if no slot will come back."""
        now = time.monotonic()
        with self._lock:
            jobs = [*self._waiting, *self._running.values()]
            for reply in self._running:
                if reply.done:
                    self._over_at.setdefault(reply, now)
        for job in jobs:
            job.reply.check_time()
            if now - job.reply.read_at > self.limits.unread and not job.reply.stop_requested:
                logger.info("nobody reads a reply any more: stopped")
                job.reply.stop()
        with self._lock:
            in_vain = list(self._waiting) if self.lost >= self.engine.slots else []
            for job in in_vain:
                self._waiting.remove(job)
        for job in in_vain:
            job.reply.fail(_no_answer())
            job.reply.release()

    @property
    def waiting(self) -> int:
        """How many replies wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many replies hold a slot."""
        return len(self._running)

    @property
    def lost(self) -> int:
        """Slots that the engine has not given back long after their replies were over."""
        now = time.monotonic()
        with self._lock:
            return sum(1 for over in self._over_at.values() if now - over > self.limits.lost)

    def healthy(self) -> bool:
        """Whether the engine is well and has a slot that is not lost."""
        return self.lost < self.engine.slots and self.engine.healthy()

    def close(self, patience: float = 5.0) -> None:
        """Take no more, stop every reply and wait for the slots, at most ``patience`` seconds."""
        self._closed.set()
        with self._lock:
            jobs = [*self._waiting, *self._running.values()]
        for job in jobs:
            job.reply.stop()
        end = time.monotonic() + patience
        while self._running and time.monotonic() < end:
            time.sleep(0.02)
        self._keeper.join(2)


def _no_answer() -> Refused:
    return Refused("模型没有反应，请稍后再试", "the model does not respond: try again later")
