"""Load on any OpenAI-compatible server: tokens per second and waiting times at several numbers of users.

HUANHUAN_API_KEY=… python bench/load.py http://127.0.0.1:8000/v1 --users 1 --users 16 --users 64
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from huanhuan.cli import tool
from huanhuan.errors import UserError

PROMPTS = (
    "你是谁？",
    "今日园子里的花开得好，你给我讲讲这些花的来历吧。",
    "外头落雪了，你可觉得冷？",
    "若有人误会了你，你会如何自处？",
    "给我讲一件你小时候的事。",
)
SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛"


@dataclass
class Result:
    """One reply: seconds to its first token, seconds in all, its tokens, or what went wrong."""

    first: float = 0.0
    total: float = 0.0
    tokens: int = 0
    error: str = ""


async def ask(client: Any, model: str, number: int, tokens: int) -> Result:
    """One streamed reply. The number makes each prompt new, so that no cache answers it."""
    started = time.perf_counter()
    result = Result()
    try:
        stream = await client.chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"（{number}）{PROMPTS[number % len(PROMPTS)]}"},
            ],
            max_tokens=tokens,
            temperature=0.8,
            top_p=0.8,
            stream=True,
            stream_options={"include_usage": True},
        )
        pieces = 0
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                pieces += 1
                result.first = result.first or time.perf_counter() - started
            if chunk.usage:
                result.tokens = chunk.usage.completion_tokens
        result.tokens = result.tokens or pieces
        result.total = time.perf_counter() - started
        if not pieces:
            result.error = "empty"
    except Exception as error:
        result.error = type(error).__name__
    return result


async def load(client: Any, model: str, users: int, requests: int, tokens: int) -> tuple[list[Result], float]:
    """``requests`` replies for ``users`` at a time; the results and the seconds they took together."""
    numbers = iter(range(requests))

    async def user() -> list[Result]:
        return [await ask(client, model, users * 100_000 + number, tokens) for number in numbers]

    started = time.perf_counter()
    done = await asyncio.gather(*(user() for _ in range(users)))
    return [result for each in done for result in each], time.perf_counter() - started


def line(users: int, results: list[Result], seconds: float) -> str:
    """A row of the table.

    >>> line(1, [Result(0.1, 1.1, 50), Result(error="empty")], 2.0)
    '| 1 | 25 | 100 | 100 | 1.1 | 1 / 2 |'
    """
    good = [result for result in results if not result.error]
    if not good:
        return f"| {users} | – | – | – | – | {len(results)} / {len(results)} |"
    first = sorted(result.first * 1000 for result in good)
    late = first[min(int(len(first) * 0.95), len(first) - 1)]
    speed = sum(result.tokens for result in good) / seconds
    whole = statistics.median(result.total for result in good)
    failed = len(results) - len(good)
    return f"| {users} | {speed:.0f} | {statistics.median(first):.0f} | {late:.0f} | {whole:.1f} | {failed} / {len(results)} |"


async def run(url: str, key: str, model: str | None, users: tuple[int, ...], each: int, tokens: int) -> Counter[str]:
    """Measure every number of users; how many replies failed in which way."""
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=600) as client:
        if model is None:
            try:
                offered = (await client.models.list()).data
            except openai.OpenAIError as error:
                raise UserError(
                    f"{url}: 连不上或被拒绝（{type(error).__name__}）/ no answer or refused: check the URL and HUANHUAN_API_KEY"
                ) from None
            if not offered:
                raise UserError(f"{url}: 没有提供模型 / offers no model: is the server still loading?")
            model = offered[0].id
        await ask(client, model, 0, 8)
        click.echo(f"{model}, {tokens} tokens at most\n")
        click.echo("| users | tokens/s | first token, ms | 95 % | reply, s | failed |\n|---|---|---|---|---|---|")
        failed: Counter[str] = Counter()
        for count in users:
            results, seconds = await load(client, model, count, count * each, tokens)
            failed.update(result.error for result in results if result.error)
            click.echo(line(count, results, seconds))
        return failed


@tool()
@click.argument("url")
@click.option(
    "--users", multiple=True, type=click.IntRange(1), default=(1, 8, 32), show_default=True, help="并发数 / at a time."
)
@click.option("--each", type=click.IntRange(1), default=4, show_default=True, help="每人几句 / replies for each user.")
@click.option(
    "--tokens", type=click.IntRange(1), default=128, show_default=True, help="每句上限 / tokens a reply at most."
)
@click.option("--model", help="模型名；默认取第一个 / the server's first by default.")
@click.option("--key", envvar="HUANHUAN_API_KEY", default="", help="密钥 / key.")
def main(url: str, users: tuple[int, ...], each: int, tokens: int, model: str | None, key: str) -> None:
    """给任何 OpenAI 兼容的服务加压 / put load on any OpenAI-compatible server. URL ends in /v1."""
    failed = asyncio.run(run(url, key, model, users, each, tokens))
    if failed:
        kinds = ", ".join(f"{kind} × {count}" for kind, count in failed.most_common())
        raise UserError(f"{failed.total()} 个回复失败 / replies failed ({kinds}): see the server's log")


if __name__ == "__main__":
    main()
