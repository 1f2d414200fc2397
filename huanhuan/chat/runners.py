"""The two ways an engine writes replies in the background: a thread for each, or tasks of one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from huanhuan.chat.engine import Engine, EngineError, Finish, Reply, Sampling
from huanhuan.template import Message

logger = logging.getLogger("huanhuan.chat")


class ThreadedEngine(Engine):
    """An engine whose replies are each written by a thread of their own, which ends with the reply."""

    def _start(self, reply: Reply, messages: list[Message], sampling: Sampling) -> None:
        threading.Thread(
            target=self._run, args=(reply, messages, sampling), name=f"{self.kind}-reply", daemon=True
        ).start()

    def _run(self, reply: Reply, messages: list[Message], sampling: Sampling) -> None:
        try:
            reply.end(self._write(reply, messages, sampling))
        except EngineError as error:
            reply.fail(error)
        except BaseException as error:
            # A library's SystemExit ends this thread only; the reply must not stay open.
            reply.fail(self.explain(error))
        finally:
            reply.release()

    @abstractmethod
    def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        """Write the reply, looking at ``reply.stop_requested`` between tokens; how it ended."""


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        # Two at once would cancel each other.
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, make: Callable[[], Coroutine[Any, Any, Any]], timeout: float) -> Any:
        """Run what ``make`` returns on the loop, as :func:`call_on` does."""
        return call_on(self.loop, make, timeout)

    def close(self, patience: float = 10.0) -> None:
        """Cancel what runs, stop the loop and wait for the thread; a loop that does not turn is left behind."""
        with self._closing:
            self._close(patience)

    def _close(self, patience: float) -> None:
        if self.loop.is_closed():
            return
        try:
            # An earlier attempt that was left behind cancels this one too.
            with contextlib.suppress(CancelledError):
                self.call(_cancel_all, patience)
        except (TimeoutError, RuntimeError):
            logger.warning("%s does not end: left behind", self._thread.name)
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(patience)
        if not self._thread.is_alive():
            self.loop.close()


def call_on(loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, Any]], timeout: float) -> Any:
    """Run the coroutine that ``make`` returns on a loop of another thread and wait for its result.

    It is made there, so that a loop which never turns again is not left with one that nobody awaits.

    Raises: what it raises, TimeoutError after ``timeout`` seconds, RuntimeError if the loop is closed.
    """
    future: Future[Any] = Future()
    tasks: list[asyncio.Task[Any]] = []

    def begin() -> None:
        if future.set_running_or_notify_cancel():
            tasks.append(loop.create_task(make()))
            tasks[0].add_done_callback(finish)

    def finish(task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            future.set_exception(CancelledError())
        elif error := task.exception():
            future.set_exception(error)
        else:
            future.set_result(task.result())

    loop.call_soon_threadsafe(begin)
    try:
        return future.result(timeout)
    except FutureTimeoutError as error:
        if not future.cancel():
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        # Python 3.10 has a class of its own for it.
        raise TimeoutError(f"{timeout} s") from error


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class LoopEngine(Engine):
    """An engine whose replies are tasks of one event loop; a stop reaches a task wherever it waits.

    A loop that is blocked or has ended runs no task; then the reply is overdue in the end, like any other that
    the engine has taken, and its slot does not come back before the loop turns again.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        # A loop itself holds its tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    def _start(self, reply: Reply, messages: list[Message], sampling: Sampling) -> None:
        def begin() -> None:
            task = self.loop.create_task(self._run(reply, messages, sampling))
            self._tasks.add(task)
            task.add_done_callback(finish)

        def finish(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            # One that was cancelled before its first step has said nothing of it.
            reply.end("stopped")
            reply.release()

        try:
            # The task is made on the loop: one for a loop that never turns again would be awaited by nobody.
            self.loop.call_soon_threadsafe(begin)
        except RuntimeError as error:
            # The loop is closed, so the engine is.
            reply.fail(self.explain(error))
            reply.release()

    async def _run(self, reply: Reply, messages: list[Message], sampling: Sampling) -> None:
        writing = asyncio.ensure_future(self._write(reply, messages, sampling))
        loop = asyncio.get_running_loop()

        def stop() -> None:
            # The loop may be closing with the process; then its tasks are cancelled anyway.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._stop, writing, reply)

        reply.on_stop(stop)
        try:
            reply.end(await writing)
        except asyncio.CancelledError:
            reply.end("stopped")
        except EngineError as error:
            reply.fail(error)
        except Exception as error:
            reply.fail(self.explain(error))
        finally:
            reply.release()

    def _stop(self, writing: asyncio.Future[Finish], reply: Reply) -> None:
        """Called on the loop when the reply is to end."""
        writing.cancel()

    @abstractmethod
    async def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        """Write the reply; how it ended. Cancelled when somebody stops the reply."""
