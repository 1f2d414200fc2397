"""Any OpenAI-compatible server, for example LMDeploy's ``api_server`` on another machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import openai

from huanhuan.chat.engine import EngineError, Finish, Reply, Sampling
from huanhuan.chat.runners import LoopEngine, LoopThread
from huanhuan.errors import UserError
from huanhuan.template import Message


def estimated_tokens(text: str) -> int:
    """A number of tokens that Chinese or English text does not exceed with InternLM2's tokenizer.

    A Chinese character takes at most about one token, rare ones three bytes each; English takes about a
    token for four letters.

    >>> estimated_tokens("你好 hello")
    5
    """
    wide = sum(1 for character in text if ord(character) > 127)
    return wide + (len(text) - wide + 1) // 2


class OpenAIEngine(LoopEngine):
    """Replies of a server, through the official client. A stop closes the connection, which frees the slot."""

    kind = "openai"
    slots = 8

    def __init__(self, url: str, key: str | None = None, model: str | None = None) -> None:
        """Connect to ``url`` (ending in ``/v1``); ``model`` None takes the first one the server offers.

        ``HUANHUAN_CONTEXT`` (tokens, default 4096) and ``HUANHUAN_SLOTS`` (replies at a time, default 8) say
        what the server can take.

        Raises: EngineError if the server does not answer.
        """
        super().__init__()
        self.url = url
        self.context_tokens = _positive("HUANHUAN_CONTEXT", 4096)
        self.slots = _positive("HUANHUAN_SLOTS", 8)
        self._client = openai.AsyncOpenAI(
            base_url=url,
            # The client refuses an empty key even for a server that asks for none.
            api_key=key or "none",
            timeout=openai.Timeout(self.timeouts.total, connect=10, read=self.timeouts.first),
            max_retries=0,
        )
        self._thread = LoopThread("openai-loop")
        self.loop = self._thread.loop
        self.model = model or self._first_model()
        self.label = "OpenAI API"

    async def _offered(self, timeout: float) -> list[str]:
        page = await self._client.models.list(timeout=timeout)
        return [each.id for each in page.data]

    def _first_model(self) -> str:
        try:
            offered = self._thread.call(self._offered(10), 15)
        except Exception as error:
            self.close()
            raise self.explain(error) from error
        if not offered:
            self.close()
            raise EngineError("模型服务器没有提供任何模型", "the model server offers no model")
        return offered[0]

    def count(self, messages: Sequence[Message]) -> int:
        """An upper estimate: the server's tokenizer is not here."""
        return sum(estimated_tokens(each["content"]) + 8 for each in messages) + 8

    def request(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """The request of one reply. Parameters outside OpenAI's own go in ``extra_body``."""
        extra: dict[str, Any] = {"repetition_penalty": sampling.repetition_penalty}
        if sampling.top_k and not sampling.greedy:
            extra["top_k"] = sampling.top_k
        if sampling.greedy:
            # LMDeploy's server always samples; the single likeliest token is greedy.
            extra["top_k"] = 1
        request: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": extra,
        }
        if sampling.seed is not None:
            request["seed"] = sampling.seed
        return request

    async def _write(self, reply: Reply, messages: list[Message], sampling: Sampling) -> Finish:
        reply.begin()
        finish: Finish | None = None
        pieces = 0
        async with await self._client.chat.completions.create(**self.request(messages, sampling)) as stream:
            async for chunk in stream:
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
        elif isinstance(error, openai.APIConnectionError) or not isinstance(error, openai.OpenAIError):
            # What breaks in the middle of a stream arrives as an exception of the HTTP library.
            zh, en = "连不上模型服务器，请稍后重试", "the model server cannot be reached: try again later"
        elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            zh, en = (
                "模型服务器拒绝了密钥，请检查 HUANHUAN_API_KEY",
                "the server refused the key: check HUANHUAN_API_KEY",
            )
        elif isinstance(error, openai.NotFoundError):
            zh, en = "模型服务器上没有这个模型或地址", "the server has no such model or address"
        elif isinstance(error, openai.RateLimitError):
            zh, en = "模型服务器正忙，请稍后重试", "the model server is busy: try again later"
        elif isinstance(error, openai.BadRequestError):
            zh, en = "模型服务器不接受这个请求", "the model server refused the request"
        return EngineError(zh, en, error)

    def healthy(self) -> bool:
        """Whether the server lists its models within five seconds."""
        try:
            self._thread.call(self._offered(5), 6)
        except Exception:
            return False
        return True

    def close(self) -> None:
        """End what runs and close the connections."""
        if not self.loop.is_closed():
            self._thread.call(self._client.close(), 10)
        self._thread.close()


def _finish(reason: str) -> Finish:
    """How the server says it ended, in the engine's words. Raises: EngineError for LMDeploy's "error"."""
    if reason == "error":
        raise EngineError("模型服务器内部出错了，请重试", "the model server had an internal error: try again")
    if reason in ("abort", "cancel"):
        return "stopped"
    return "length" if reason == "length" else "stop"


def _positive(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name}={text}: 需要正整数 / must be a whole number over 0: correct it or unset it")
    return int(text)
