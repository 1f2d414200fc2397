"""Any OpenAI-compatible server, for example LMDeploy's ``api_server`` on another machine."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import openai

from huanhuan.chat.engine import EngineError, Finish, Reply, Sampling, whole_setting
from huanhuan.chat.runners import LoopEngine, LoopThread
from huanhuan.template import Message

logger = logging.getLogger("huanhuan.chat")

# Seconds for which the answer of a health probe is good, so that probes put no load on the server.
PROBE_EVERY = 5.0
# Beside the text of a message: its role, its start, its end and two line ends.
FRAME = 8
# The characters of everyday Chinese, GB2312's first level, and its punctuation: each a token of its own.
_COMMON = frozenset("，。！？：；、（）“”‘’《》…—·～").union(
    bytes((row, cell)).decode("gb2312", "ignore") for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)
)
_PARTS = re.compile(r" ?[a-z]+|.", re.DOTALL)


def estimated_tokens(text: str) -> int:
    """A number of tokens that Chinese or English text does not exceed with InternLM2's tokenizer.

    A common Chinese character is one token at most. One that the vocabulary may lack, an emoji for example, can
    take a token for each of its bytes in UTF-8. English words take a token for about four letters, two here;
    digits, capitals and signs one each.

    >>> estimated_tokens("你好 hello"), estimated_tokens("嬛🌸"), estimated_tokens("2024!")
    (5, 7, 5)
    """
    return sum(map(_tokens, _PARTS.findall(text)))


def _tokens(part: str) -> int:
    if part in _COMMON:
        return 1
    return (len(part) + 1) // 2 if part[-1].islower() and part.isascii() else len(part.encode("utf-8", "surrogatepass"))


class OpenAIEngine(LoopEngine):
    """Replies of a server, through the official client. A stop closes the connection, which frees the slot.

    ``model`` is what the server says that answers, which need not be the name it is asked for.
    """

    kind = "openai"
    slots = 8

    def __init__(self, url: str, key: str | None = None, model: str | None = None) -> None:
        """Connect to ``url`` (ending in ``/v1``); ``model`` None takes the first one the server offers.

        ``HUANHUAN_CONTEXT`` (tokens, default 4096) and ``HUANHUAN_SLOTS`` (replies at a time, default 8) say
        what the server can take.

        Raises: EngineError if the server does not answer and no ``model`` is named; UserError for a wrong setting.
        """
        super().__init__()
        self.url = url
        self.context_tokens = whole_setting("HUANHUAN_CONTEXT", 4096)
        self.slots = whole_setting("HUANHUAN_SLOTS", 8)
        self._client = openai.AsyncOpenAI(
            base_url=url,
            # The client refuses an empty key even for a server that asks for none.
            api_key=key or "none",
            timeout=openai.Timeout(self.timeouts.total, connect=10, read=self.timeouts.first),
            max_retries=0,
        )
        self._thread = LoopThread("openai-loop")
        self.loop = self._thread.loop
        self._named = bool(model)
        # What is known of the server: whether it is LMDeploy's, and whether it takes parameters beyond OpenAI's.
        self._lmdeploy: bool | None = None
        self._extras = True
        self._probing = threading.Lock()
        self._probed_at, self._well = float("-inf"), False
        self._asked_for = model or self._first_model()
        self.model = self._asked_for
        self.label = "OpenAI API"

    async def _offered(self, timeout: float) -> list[str]:
        page = await self._client.models.list(timeout=timeout)
        self._lmdeploy = any(getattr(each, "owned_by", None) == "lmdeploy" for each in page.data)
        return [each.id for each in page.data]

    def _first_model(self) -> str:
        try:
            offered = self._thread.call(lambda: self._offered(10), 15)
        except Exception as error:
            self.close()
            if isinstance(error, openai.APIStatusError) and not isinstance(error, openai.NotFoundError):
                raise self.explain(error) from error
            # Nothing has answered there as it should yet, so the address is the first thing to look at.
            raise EngineError(
                "连不上模型服务器，请检查它是否已启动，HUANHUAN_API_BASE 是否正确、以 /v1 结尾",
                "the model server does not answer: check that it runs, and that HUANHUAN_API_BASE is right and ends in /v1",
                error,
            ) from error
        if not offered:
            self.close()
            raise EngineError(
                "模型服务器还没有模型，请确认它已加载完、代理后面有服务",
                "the model server offers no model yet: check that it has loaded, or that the proxy has a server behind it",
            )
        return offered[0]

    def count(self, messages: Sequence[Message]) -> int:
        """An upper estimate: the server's tokenizer is not here."""
        return sum(map(self.size, messages)) + FRAME

    def size(self, message: Message) -> int:
        """An upper estimate."""
        return estimated_tokens(message["content"]) + FRAME

    def request(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """The request of one reply. Parameters outside OpenAI's own go in ``extra_body``, and only if they say
        anything: a strict server refuses names it does not know."""
        extra: dict[str, Any] = {}
        if sampling.repetition_penalty != 1:
            extra["repetition_penalty"] = sampling.repetition_penalty
        if sampling.greedy:
            # LMDeploy's server always samples; the single likeliest token is greedy.
            extra["top_k"] = 1
        elif sampling.top_k or self._lmdeploy:
            # LMDeploy takes the 40 likeliest if it is told nothing.
            extra["top_k"] = sampling.top_k
        request: dict[str, Any] = {
            "model": self._asked_for,
            "messages": list(messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if extra and self._extras:
            request["extra_body"] = extra
        if sampling.seed is not None:
            request["seed"] = sampling.seed
        return request

    async def _open(self, messages: Sequence[Message], sampling: Sampling) -> Any:
        """The stream of one reply. What the server refuses or no longer has is left out or replaced, once."""
        if self._lmdeploy is None and not sampling.top_k:
            with contextlib.suppress(openai.OpenAIError):
                await self._offered(5)
        request = self.request(messages, sampling)
        create = self._client.chat.completions.create
        try:
            return await create(**request)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            extra = request.pop("extra_body", None)
            if extra is None:
                raise
            stream = await create(**request)
            self._extras = False
            logger.warning("%s: refuses %s, left out from now on: %s", self.url, ", ".join(extra), error)
            return stream
        except openai.NotFoundError as error:
            if self._named:
                raise
            offered = await self._offered(10)
            if not offered:
                # A proxy whose servers are gone, for example.
                raise EngineError(
                    "模型服务器现在没有模型，请稍后重试", "the model server has no model now: try again later", error
                ) from error
            if self._asked_for in offered:
                raise
            logger.warning("%s: %s is gone, %s answers now", self.url, self._asked_for, offered[0])
            self._asked_for = request["model"] = offered[0]
            return await create(**request)

    async def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        reply.begin()
        finish: Finish | None = None
        pieces = 0
        async with await self._open(messages, sampling) as stream:
            async for chunk in stream:
                self.model = getattr(chunk, "model", None) or self.model
                usage = getattr(chunk, "usage", None)
                if usage and usage.completion_tokens:
                    reply.add("", usage.completion_tokens)
                if not chunk.choices:
                    continue
                choice = chunk.choices[0]
                if choice.delta.content:
                    pieces += 1
                    reply.add(choice.delta.content, max(pieces, reply.tokens))
                if choice.finish_reason:
                    finish = _finish(choice.finish_reason)
        if finish is None:
            raise EngineError("模型服务器中途断开了，请重试", "the model server broke off: try again")
        return finish

    def explain(self, error: BaseException) -> EngineError:
        """Which of the ways a server can fail this was."""
        zh, en = "模型服务器出错了，请重试", "the model server failed: try again"
        if isinstance(error, openai.APITimeoutError):
            zh, en = "模型服务器太久没有回应，请稍后重试", "the model server did not answer in time: try again later"
        elif isinstance(error, ValueError | AttributeError | TypeError | LookupError):
            # It answered, but with something that neither its client nor this engine can read.
            zh, en = (
                "模型服务器的回答看不懂，请检查 HUANHUAN_API_BASE 后面是不是 OpenAI 兼容的服务",
                "the model server's answer makes no sense: check that HUANHUAN_API_BASE is an OpenAI-compatible server",
            )
        elif isinstance(error, openai.APIConnectionError) or not isinstance(error, openai.OpenAIError):
            # What breaks in the middle of a stream arrives as an exception of the HTTP library.
            zh, en = "连不上模型服务器，请稍后重试", "the model server cannot be reached: try again later"
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            zh, en = (
                "模型服务器拒绝了密钥，请检查 HUANHUAN_API_KEY",
                "the server refused the key: check HUANHUAN_API_KEY",
            )
        elif isinstance(error, openai.NotFoundError):
            zh, en = (
                "模型服务器上没有这个模型或地址，请检查 HUANHUAN_API_MODEL 与 HUANHUAN_API_BASE",
                "the server has no such model or address: check HUANHUAN_API_MODEL and HUANHUAN_API_BASE",
            )
        elif isinstance(error, openai.RateLimitError):
            zh, en = "模型服务器正忙，请稍后重试", "the model server is busy: try again later"
        elif isinstance(error, openai.BadRequestError):
            zh, en = "模型服务器不接受这个请求", "the model server refused the request"
        return EngineError(zh, en, error)

    def healthy(self) -> bool:
        """Whether the server lists its models within five seconds; asked at most every :data:`PROBE_EVERY`."""
        with self._probing:
            if time.monotonic() - self._probed_at > PROBE_EVERY:
                try:
                    self._thread.call(lambda: self._offered(5), 6)
                    self._well = True
                except Exception:
                    self._well = False
                self._probed_at = time.monotonic()
            return self._well

    def close(self) -> None:
        """End what runs and close the connections."""
        if self.loop.is_closed():
            return
        try:
            self._thread.call(self._client.close, 10)
        except Exception as error:
            # The thread may hang or be gone; there is nothing left to close then.
            logger.warning("closing the connections: %r", error)
        self._thread.close()


def _finish(reason: str) -> Finish:
    """How the server says it ended, in the engine's words. Raises: EngineError for LMDeploy's "error"."""
    if reason == "error":
        raise EngineError("模型服务器内部出错了，请重试", "the model server had an internal error: try again")
    if reason in ("abort", "cancel"):
        return "stopped"
    return "length" if reason == "length" else "stop"
