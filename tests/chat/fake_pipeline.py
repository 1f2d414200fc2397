"""LMDeploy's pipeline without a GPU: the same interface over a list of token texts."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmdeploy import PytorchEngineConfig, Tokenizer

from huanhuan.chat.runners import LoopThread


class Pipeline:
    """LMDeploy's ``AsyncEngine`` as far as the engine uses it, over a list of token texts, ``delay`` seconds each."""

    def __init__(self, folder: Path, config: Any, slots: int = 1) -> None:
        self.tokenizer = Tokenizer(str(folder))
        self.backend = "pytorch" if isinstance(config, PytorchEngineConfig) else "turbomind"
        self.session_len, self.instance_num = config.session_len, slots
        self._thread = LoopThread("pipeline")
        self.internal_thread = SimpleNamespace(loop=self._thread.loop, thread=self._thread._thread)
        self._session_id = iter(range(1000))
        self.id2inst: dict[int, Any] = {}
        self.id2step: dict[int, int] = {}
        self.slot = asyncio.Semaphore(slots)
        self.stopped: set[int] = set()
        self.requests: list[dict[str, Any]] = []
        self.words = ["臣妾", "在", "此"]
        self.ending: str | None = "stop"
        self.endless = False
        self.delay = 0.005

    async def generate(self, messages: Any, **request: Any) -> AsyncIterator[Any]:
        assert messages is None
        session = request["session_id"]
        self.id2step[session] = 0
        async with self.slot:
            self.requests.append(request)
            self.id2inst[session] = object()
            try:
                number = 0
                while number < len(self.words) or self.endless:
                    await asyncio.sleep(self.delay)
                    if session in self.stopped:
                        yield SimpleNamespace(response="", generate_token_len=number, finish_reason="abort")
                        return
                    if number == request["gen_config"].max_new_tokens:
                        yield SimpleNamespace(response="", generate_token_len=number, finish_reason="length")
                        return
                    word = self.words[number % len(self.words)]
                    number += 1
                    yield SimpleNamespace(response=word, generate_token_len=number, finish_reason=None)
                if self.ending == "raise":
                    raise RuntimeError("secret detail")
                if self.ending:
                    text = "internal error happened, status code 7" if self.ending == "error" else ""
                    yield SimpleNamespace(response=text, generate_token_len=number, finish_reason=self.ending)
            finally:
                del self.id2inst[session]

    def stream_infer(self, prompts: list[str], gen_config: Any, do_preprocess: bool) -> Iterator[Any]:
        """As LMDeploy's own: from a thread that is not the loop's."""
        assert len(prompts) == 1 and not do_preprocess
        told: queue.Queue[Any] = queue.Queue()

        async def tell() -> None:
            ids = self.tokenizer.encode(prompts[0])
            async for out in self.generate(
                None, input_ids=ids, session_id=next(self._session_id), gen_config=gen_config
            ):
                told.put(SimpleNamespace(text=out.response, **vars(out)))
            told.put(None)

        asyncio.run_coroutine_threadsafe(tell(), self._thread.loop)
        return iter(told.get, None)

    async def stop_session(self, session: int) -> None:
        self.stopped.add(session)

    def close(self) -> None:
        self._thread.close()
