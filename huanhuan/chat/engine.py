"""What answers in the chat: one interface for every engine, and the sampling it is asked for.

``Engine.reply(messages, sampling)`` returns at once with a :class:`huanhuan.chat.reply.Reply`, which the engine
fills in the background.

Nothing here imports torch, LMDeploy or a client library.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huanhuan.chat.reply import EngineError as EngineError
from huanhuan.chat.reply import Finish as Finish
from huanhuan.chat.reply import Reply as Reply
from huanhuan.chat.reply import Timeouts as Timeouts
from huanhuan.errors import UserError
from huanhuan.template import Message, clean

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
