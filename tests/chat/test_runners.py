"""Event loops that are blocked, dead or closed: a reply given to one ends all the same."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from huanhuan.chat.desk import Desk, Limits, Refused
from huanhuan.chat.engine import EngineError, Finish, Reply, Sampling, Timeouts
from huanhuan.chat.guard import guarded
from huanhuan.chat.runners import LoopEngine, LoopThread, ThreadedEngine, call_on
from huanhuan.template import Message

ASKED: list[Message] = [{"role": "user", "content": "你是谁？"}]


class Looping(LoopEngine):
    """Says one sentence on its loop, which a test can block."""

    kind = label = model = "looping"

    def __init__(self) -> None:
        super().__init__()
        self.timeouts = Timeouts(0.3, 0.3, 5)
        self.thread = LoopThread("looping")
        self.loop = self.thread.loop
        self.go_on = threading.Event()

    def block(self) -> None:
        self.loop.call_soon_threadsafe(self.go_on.wait, 30)

    def count(self, messages: Sequence[Message]) -> int:
        return len(messages)

    async def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        reply.begin()
        reply.add("我是种花的人。", 6)
        return "stop"


@pytest.fixture
def engine() -> Iterator[Looping]:
    built = Looping()
    yield built
    built.go_on.set()
    built.thread.close()


@pytest.mark.parametrize("guard", ["on", "off"])
def test_a_blocked_loop_is_given_up_and_comes_back(engine: Looping, guard: str) -> None:
    desk = Desk(guarded(engine, {"HUANHUAN_GUARD": guard}), Limits(lost=0.5))
    try:
        assert desk.ask("v", ASKED, Sampling()).result()
        engine.block()
        taken, waiting = (desk.ask(visitor, ASKED, Sampling()) for visitor in "ab")
        with pytest.raises(EngineError, match="did not answer in time"):
            taken.result()
        with pytest.raises(Refused, match="does not respond"):
            waiting.result()
        assert not desk.healthy()
        engine.go_on.set()
        end = time.monotonic() + 5
        while desk.running and time.monotonic() < end:
            time.sleep(0.01)
        assert desk.healthy() and desk.ask("c", ASKED, Sampling()).result() == "我是种花的人。"
    finally:
        engine.go_on.set()
        desk.close()


def test_a_loop_that_has_ended_is_given_up_too_and_left_with_nothing(
    engine: Looping, recwarn: pytest.WarningsRecorder
) -> None:
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine.thread._thread.join(5)
    with pytest.raises(EngineError, match="did not answer in time"):
        engine.reply(ASKED).result()
    with pytest.raises(TimeoutError):
        call_on(engine.loop, lambda: asyncio.sleep(0), 0.05)
    engine.thread.close(0.05)
    engine.loop.close()
    gc.collect()
    assert not [str(each.message) for each in recwarn if "never awaited" in str(each.message)]


def test_a_call_that_took_too_long_is_cancelled_and_one_that_had_not_begun_never_begins(engine: Looping) -> None:
    seen: list[str] = []

    async def call() -> None:
        seen.append("begun")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(TimeoutError):
        engine.thread.call(call, 0.05)
    engine.thread.call(lambda: asyncio.sleep(0), 2)
    assert seen == ["begun", "cancelled"]
    engine.block()
    with pytest.raises(TimeoutError):
        engine.thread.call(call, 0.05)
    engine.go_on.set()
    engine.thread.call(lambda: asyncio.sleep(0.01), 2)
    assert seen == ["begun", "cancelled"]


def test_a_reply_cancelled_before_its_first_step_ends_too(engine: Looping) -> None:
    engine.block()
    reply = engine.reply(ASKED)
    engine.loop.call_soon_threadsafe(lambda: [task.cancel() for task in engine._tasks])
    engine.go_on.set()
    assert reply.wait(2) and reply.finish == "stopped" and reply.released


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_closed_loop_is_an_error_at_once(engine: Looping) -> None:
    engine.thread.close()
    engine.thread.close()
    reply = engine.reply(ASKED)
    with pytest.raises(EngineError, match="the model failed"):
        reply.result()
    assert reply.released
    with pytest.raises(RuntimeError):
        call_on(engine.loop, lambda: asyncio.sleep(0), 1)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_can_be_closed_by_several_at_once(engine: Looping) -> None:
    closing = [threading.Thread(target=engine.thread.close) for _ in range(8)]
    for each in closing:
        each.start()
    for each in closing:
        each.join(15)
        assert not each.is_alive()
    assert engine.loop.is_closed()


def test_closing_a_blocked_loop_ends(engine: Looping) -> None:
    engine.block()
    started = time.monotonic()
    engine.thread.close(0.3)
    assert time.monotonic() - started < 2 and not engine.loop.is_closed()


def test_a_library_that_ends_the_process_ends_one_reply() -> None:
    class Leaving(ThreadedEngine):
        kind = label = model = "leaving"

        def count(self, messages: Sequence[Message]) -> int:
            return 1

        def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
            raise SystemExit(1)

    reply = Leaving().reply(ASKED)
    with pytest.raises(EngineError, match="the model failed"):
        reply.result()
    assert reply.wait(1)
