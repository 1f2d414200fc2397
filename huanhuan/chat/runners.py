"""The two ways an engine writes replies in the background: a thread for each, or tasks of one event loop."""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Coroutine
from typing import Any

from huanhuan.chat.engine import Engine, EngineError, Finish, Reply, Sampling
from huanhuan.template import Message


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
        except Exception as error:
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
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Any], timeout: float) -> Any:
        """Run ``coroutine`` on the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def close(self) -> None:
        """Cancel what runs, stop the loop and wait for the thread."""
        if self.loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class LoopEngine(Engine):
    """An engine whose replies are tasks of one event loop; a stop reaches a task wherever it waits."""

    loop: asyncio.AbstractEventLoop

    def _start(self, reply: Reply, messages: list[Message], sampling: Sampling) -> None:
        asyncio.run_coroutine_threadsafe(self._run(reply, messages, sampling), self.loop)

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
