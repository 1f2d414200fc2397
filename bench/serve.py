"""Serving on a CUDA host: the page's LMDeploy engine against LMDeploy called directly, on one pipeline in one run.

HUANHUAN_LMDEPLOY_BACKEND=pytorch python bench/serve.py models/huanhuan
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from huanhuan.cli import tool
from huanhuan.errors import UserError
from huanhuan.template import Message, render

ASKED: list[Message] = [
    {"role": "system", "content": "现在你要扮演皇帝身边的女人--甄嬛"},
    {"role": "user", "content": "今日园子里的花开得好，你给我讲讲这些花的来历吧。"},
]
# Seconds to the first token that is a text, tokens in all, seconds in all. A token that is half of a character is
# no text yet, for neither of the two.
Timing = tuple[float, int, float]


def ours(engine: Any, sampling: Any) -> Timing:
    """One reply through the page's engine."""
    started = time.perf_counter()
    reply = engine.reply(ASKED, sampling)
    first = 0.0
    for _ in reply:
        first = first or time.perf_counter() - started
    return first, reply.tokens, time.perf_counter() - started


def direct(engine: Any, config: Any) -> Timing:
    """One reply through LMDeploy's own ``stream_infer``."""
    started = time.perf_counter()
    first, tokens = 0.0, 0
    for out in engine._pipeline.stream_infer([render(ASKED)], gen_config=config, do_preprocess=False):
        if out.text:
            first = first or time.perf_counter() - started
        tokens = out.generate_token_len
    return first, tokens, time.perf_counter() - started


def measure(run: Callable[[], Timing], other: Callable[[], Timing], repeats: int) -> list[list[Timing]]:
    """Both, taking turns so that what drifts on the card drifts for both."""
    run()
    other()
    pairs = [(run(), other()) for _ in range(repeats)]
    return [[pair[i] for pair in pairs] for i in range(2)]


def stop_frees_the_slot(engine: Any, sampling: Any) -> tuple[float, float]:
    """Fill every slot, stop all; seconds until the engine is idle, and until a new reply's first piece."""
    replies = [engine.reply(ASKED, sampling) for _ in range(engine.slots)]
    begun = sum(bool(next(iter(reply), "")) for reply in replies)
    held = engine.running()
    if begun != engine.slots or held != engine.slots:
        raise UserError(
            f"{begun} of {engine.slots} replies began, {held} hold a slot: a reply ended early, use a longer --tokens"
        )
    started = time.perf_counter()
    for reply in replies:
        reply.stop()
    if not all(reply.wait(10) for reply in replies) or engine.running():
        raise UserError(f"stop: {engine.running()} slots are still held after 10 s")
    idle = time.perf_counter() - started
    started = time.perf_counter()
    reply = engine.reply(ASKED, sampling)
    next(iter(reply), "")
    again = time.perf_counter() - started
    reply.stop()
    reply.wait(10)
    return idle, again


@tool()
@click.argument("model", type=click.Path())
@click.option("--tokens", default=512, show_default=True, help="每次生成的词数 / tokens per reply.")
@click.option("--repeats", default=8, show_default=True, help="每种方式的次数 / replies each way.")
@click.option("--tolerance", default=0.05, show_default=True, help="允许的差距 / allowed difference.")
def main(model: str, tokens: int, repeats: int, tolerance: float) -> None:
    """比较页面引擎与直接调用 LMDeploy / compare the page's engine with LMDeploy called directly."""
    from huanhuan.chat.engine import Sampling
    from huanhuan.chat.lmdeploy_engine import LMDeployEngine
    from huanhuan.chat.model_folder import model_folder

    started = time.perf_counter()
    engine = LMDeployEngine(model_folder(model))
    click.echo(f"{engine.label}, {engine.slots} slots, loaded in {time.perf_counter() - started:.1f} s")
    sampling = Sampling(temperature=0, max_new_tokens=tokens)
    # Both write exactly as many tokens, whatever the model would say.
    plain = engine.generation_config

    def endless(wanted: Sampling) -> Any:
        config = plain(wanted)
        config.ignore_eos = True
        config.stop_token_ids = None
        return config

    engine.generation_config = endless  # type: ignore[method-assign]
    try:
        pairs = measure(lambda: ours(engine, sampling), lambda: direct(engine, endless(sampling)), repeats)
        click.echo("| | first token, ms | tokens/s |\n|---|---|---|")
        medians = []
        for name, timings in zip(("page engine", "LMDeploy directly"), pairs, strict=True):
            first = statistics.median(each[0] for each in timings)
            speed = statistics.median(each[1] / each[2] for each in timings)
            medians.append((first, speed))
            click.echo(f"| {name} | {first * 1000:.1f} | {speed:.1f} |")
        slower = medians[0][0] / medians[1][0] - 1, 1 - medians[0][1] / medians[1][1]
        click.echo(f"first token {slower[0]:+.1%}, speed {-slower[1]:+.1%}")
        idle, again = stop_frees_the_slot(engine, sampling)
        click.echo(
            f"stop: {engine.slots} slots free after {idle * 1000:.0f} ms; next first token {again * 1000:.0f} ms"
        )
        reply = engine.reply(ASKED, Sampling(max_new_tokens=48, seed=1))
        click.echo("streamed: " + "|".join(reply))
    finally:
        engine.close()
    if max(slower) > tolerance:
        raise UserError(f"the page's engine is slower than LMDeploy by more than {tolerance:.0%}")


if __name__ == "__main__":
    main()
