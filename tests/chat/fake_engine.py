"""An engine without a model, for tests of everything around one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from huanhuan.chat.engine import EngineError, Finish, Reply, Sampling
from huanhuan.chat.runners import ThreadedEngine
from huanhuan.template import Message


def echo(messages: Sequence[Message]) -> str:
    """The default reply: it names what was said, so that crossed replies show."""
    return f"回「{messages[-1]['content']}」第{sum(each['role'] == 'user' for each in messages)}句"


class FakeEngine(ThreadedEngine):
    """Says ``answer(messages)`` one character at a time, ``delay`` seconds each.

    ``seen`` keeps the messages and sampling of every request; ``busy`` counts running replies and
    ``most_busy`` the most at once. ``fault``: "raise", "mid" (raise after three characters), "hang".
    """

    kind = "fake"
    label = "Fake"
    model = "fake-model"

    def __init__(
        self,
        answer: Callable[[Sequence[Message]], Iterable[str]] = echo,
        *,
        delay: float = 0.0,
        slots: int = 1,
        context_tokens: int = 4096,
    ) -> None:
        super().__init__()
        self.answer, self.delay, self.slots, self.context_tokens = answer, delay, slots, context_tokens
        self.fault: str | None = None
        self.seen: list[tuple[list[Message], Sampling]] = []
        self.busy = self.most_busy = 0
        self.alive = True
        self._lock = threading.Lock()

    def count(self, messages: Sequence[Message]) -> int:
        return sum(len(each["content"]) for each in messages)

    def healthy(self) -> bool:
        return self.alive

    def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        with self._lock:
            self.seen.append((messages, sampling))
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            reply.begin()
            if self.fault == "raise":
                raise RuntimeError("secret detail of the fake engine")
            if self.fault == "refuse":
                raise EngineError("模型服务器拒绝了", "the server refused")
            for number, character in enumerate(self.answer(messages)):
                if self.fault == "hang":
                    while not (reply.stop_requested or reply.done):
                        time.sleep(0.01)
                if self.fault == "mid" and number == 3:
                    raise RuntimeError("secret detail of the fake engine")
                if reply.stop_requested or reply.done:
                    return "stopped"
                if number >= sampling.max_new_tokens:
                    return "length"
                reply.add(character, number + 1)
                time.sleep(self.delay)
            return "stop"
        finally:
            with self._lock:
                self.busy -= 1
