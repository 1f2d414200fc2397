"""Serving on a CUDA host: what the page adds to LMDeploy, on one pipeline in one run.

Three ways to the same model, taking turns: LMDeploy called directly, the page's engine, and all that stands
between a visitor and it, the guard and the desk. Every reply has the same prompt, the same sampling and exactly
as many tokens, so the guard judges each but has none said again. Speeds are of long replies. LMDeploy's PyTorch engine
hands out its first tokens in clumps, sooner or later by tens of milliseconds, so the first token is a mean over many
short replies, each asked for while the engine rests. The last line is the verdict; the exit code is 0 only if the
page's ways are within the tolerance of LMDeploy itself.

HUANHUAN_LMDEPLOY_BACKEND=pytorch python bench/serve.py models/huanhuan
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from huanhuan.chat.desk import Desk, Limits
from huanhuan.chat.engine import Reply, Sampling
from huanhuan.chat.guard import GuardedEngine
from huanhuan.cli import tool
from huanhuan.errors import UserError
from huanhuan.template import Message, render

ASKED: list[Message] = [
    {"role": "system", "content": "现在你要扮演皇帝身边的女人--甄嬛"},
    {"role": "user", "content": "今日园子里的花开得好，你给我讲讲这些花的来历吧。"},
]


class Timing(NamedTuple):
    """One reply: seconds to the first piece of text, tokens in all, seconds in all.

    A token that is half of a character is no text yet, in any of the ways.
    """

    first: float
    tokens: int
    seconds: float


class Change(NamedTuple):
    """How much later the first text comes and how much faster the words do, as shares."""

    first: float
    speed: float


Way = Callable[[Sampling], Timing]
Timings = Mapping[str, Sequence[Timing]]
# Tokens of the short replies, and seconds of rest before each.
SHORT, REST = 8, 0.03
COUNT = click.IntRange(min=1)


def directly(engine: Any, sampling: Sampling) -> Timing:
    """One reply through LMDeploy's own ``stream_infer``."""
    config = engine.generation_config(sampling)
    started = time.perf_counter()
    first, tokens = 0.0, 0
    for out in engine._pipeline.stream_infer([render(ASKED)], gen_config=config, do_preprocess=False):
        if out.text:
            first = first or time.perf_counter() - started
        tokens = out.generate_token_len
    return Timing(first, tokens, time.perf_counter() - started)


def through(ask: Callable[[Sampling], Reply], sampling: Sampling) -> Timing:
    """One reply as a page reads it."""
    started = time.perf_counter()
    reply = ask(sampling)
    first = 0.0
    for _ in reply:
        first = first or time.perf_counter() - started
    return Timing(first, reply.tokens, time.perf_counter() - started)


def endless(engine: Any) -> None:
    """Have every reply of ``engine`` written to its last token, whatever the model would say."""
    plain = engine.generation_config

    def config(sampling: Sampling) -> Any:
        made = plain(sampling)
        made.ignore_eos = True
        made.stop_token_ids = None
        return made

    engine.generation_config = config


def measure(ways: Mapping[str, Way], tokens: int, repeats: int, rest: float = 0.0) -> dict[str, list[Timing]]:
    """Every way ``repeats`` times after one try that does not count, in an order that is another each time.

    What drifts on the card then drifts for all. ``rest`` seconds before each reply nothing is asked for.

    Raises: UserError if a reply has another number of tokens.
    """
    names = list(ways)
    chance = random.Random(0)
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    for number in range(-1, repeats):
        # The same seed for every way, so all of them write the same words.
        sampling = Sampling(temperature=1, top_p=1, top_k=50, max_new_tokens=tokens, seed=number + 1)
        for name in chance.sample(names, len(names)):
            time.sleep(rest)
            timing = ways[name](sampling)
            if timing.tokens != tokens:
                raise UserError(f"{name}: {timing.tokens} tokens instead of {tokens}: nothing can be compared")
            if number >= 0:
                timings[name].append(timing)
    return timings


def first_and_speed(firsts: Sequence[Timing], longs: Sequence[Timing]) -> tuple[float, float]:
    """Mean seconds to the first text of ``firsts``, without a tenth at either end; median tokens/s of ``longs``."""
    seconds = sorted(each.first for each in firsts)
    aside = len(seconds) // 10
    return (
        statistics.fmean(seconds[aside : len(seconds) - aside]),
        statistics.median(each.tokens / each.seconds for each in longs),
    )


def changes(firsts: Timings, longs: Timings) -> dict[str, Change]:
    """Each way beside the first one, by its short replies and its long ones.

    >>> times = {"a": [Timing(0.1, 100, 1.0)], "b": [Timing(0.11, 100, 1.25)]}
    >>> changes(times, times)["b"]
    Change(first=0.1, speed=-0.2)
    """
    found = {name: first_and_speed(firsts[name], longs[name]) for name in firsts}
    first, speed = next(iter(found.values()))
    return {name: Change(round(own / first - 1, 6), round(rate / speed - 1, 6)) for name, (own, rate) in found.items()}


def table(firsts: Timings, longs: Timings) -> str:
    """Both as Markdown, each way beside the first.

    >>> times = {"a": [Timing(0.1, 100, 1.0)], "b": [Timing(0.11, 100, 1.25)]}
    >>> print(table(times, times))
    | | first token, ms | tokens/s |
    |---|---|---|
    | a | 100.0 | 100.0 |
    | b | 110.0 (+10.0%) | 80.0 (-20.0%) |
    """
    rows = ["| | first token, ms | tokens/s |", "|---|---|---|"]
    for place, (name, change) in enumerate(changes(firsts, longs).items()):
        first, speed = first_and_speed(firsts[name], longs[name])
        beside = (f" ({change.first:+.1%})", f" ({change.speed:+.1%})") if place else ("", "")
        rows.append(f"| {name} | {first * 1000:.1f}{beside[0]} | {speed:.1f}{beside[1]} |")
    return "\n".join(rows)


def stop_all(desk: Desk, engine: Any, tokens: int) -> tuple[float, float]:
    """Fill every slot, stop all; seconds until engine and desk hold none, and until a new reply's first text.

    Raises: UserError if the slots were not full or do not come back.
    """
    sampling = Sampling(temperature=1, top_p=1, top_k=50, max_new_tokens=tokens, seed=1)
    replies = [desk.ask(f"visitor {number}", ASKED, sampling) for number in range(engine.slots)]
    begun = sum(bool(next(iter(reply), "")) for reply in replies)
    held = engine.running()
    if begun != engine.slots or held != engine.slots:
        raise UserError(f"{begun} of {engine.slots} replies began, {held} hold a slot: one ended early")
    started = time.perf_counter()
    for reply in replies:
        reply.stop()
    while engine.running() or desk.running:
        if time.perf_counter() - started > 10:
            raise UserError(f"stop: {engine.running()} slots are still held after 10 s")
        time.sleep(0.0005)
    free = time.perf_counter() - started
    started = time.perf_counter()
    reply = desk.ask("next", ASKED, sampling)
    next(iter(reply), "")
    again = time.perf_counter() - started
    reply.stop()
    reply.wait(10)
    return free, again


class Judging(GuardedEngine):
    """The guard at its work, which finds nothing: a model that may not end its reply talks on, and says it only once."""

    def judge(self, text: str, before: str, *, finished: bool = True) -> None:
        """Judge as ever, and keep it to oneself."""
        super().judge(text, before, finished=finished)


def page_path(engine: Any) -> Desk:
    """``engine`` as the page has it: guarded, behind a desk. The limits on visitors are out of the way."""
    return Desk(Judging(engine), Limits(queue=engine.slots, hourly=1_000_000, unread=600))


def verdict(firsts: Timings, longs: Timings, tolerance: float) -> str:
    """One line if each way is as quick as the first, within ``tolerance``. Raises: UserError if one is not.

    >>> times = {"a": [Timing(0.1, 100, 1.0)], "b": [Timing(0.102, 100, 1.03)]}
    >>> verdict(times, times, 0.05)
    'within 5%: first token at most +2.0%, tokens/s at least -2.9%'
    """
    found = list(changes(firsts, longs).values())[1:]
    late, slow = max(change.first for change in found), min(change.speed for change in found)
    said = f"first token at most {late:+.1%}, tokens/s at least {slow:+.1%}"
    if max(late, -slow) > tolerance:
        raise UserError(f"not within {tolerance:.0%}: {said}: see the table, and whether something else used the GPU")
    return f"within {tolerance:.0%}: {said}"


@tool()
@click.argument("model", type=click.Path())
@click.option("--tokens", type=COUNT, default=512, show_default=True, help="每次生成的词数 / tokens per reply.")
@click.option("--repeats", type=COUNT, default=5, show_default=True, help="每种方式的长回复 / long replies each way.")
@click.option("--firsts", type=COUNT, default=300, show_default=True, help="每种方式的短回复 / short replies each way.")
@click.option("--tolerance", default=0.05, show_default=True, help="允许的差距 / allowed difference.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="每次的用时写到这里的 serve.json / every timing goes to its serve.json.",
)
def main(model: str, tokens: int, repeats: int, firsts: int, tolerance: float, out: Path | None) -> None:
    """比较页面与直接调用 LMDeploy / compare the page with LMDeploy called directly."""
    from huanhuan.chat.lmdeploy_engine import LMDeployEngine
    from huanhuan.chat.model_folder import model_folder

    started = time.perf_counter()
    engine = LMDeployEngine(model_folder(model))
    click.echo(f"{engine.label}, {engine.slots} slots, loaded in {time.perf_counter() - started:.1f} s\n")
    endless(engine)
    desk = page_path(engine)
    try:
        ways: dict[str, Way] = {
            "LMDeploy directly": lambda sampling: directly(engine, sampling),
            "page's engine": lambda sampling: through(lambda wanted: engine.reply(ASKED, wanted), sampling),
            "page's engine, guard and desk": lambda sampling: through(
                lambda wanted: desk.ask("visitor", ASKED, wanted), sampling
            ),
        }
        short = measure(ways, SHORT, firsts, REST)
        long = measure(ways, tokens, repeats)
        click.echo(table(short, long))
        if out:
            out.mkdir(parents=True, exist_ok=True)
            (out / "serve.json").write_text(json.dumps({"short": short, "long": long}))
        free, again = stop_all(desk, engine, engine.context_tokens // 2)
        click.echo(
            f"\nstop: {engine.slots} replies, all slots free after {free * 1000:.0f} ms; "
            f"next first token {again * 1000:.0f} ms"
        )
        reply = engine.reply(ASKED, Sampling(max_new_tokens=48, seed=1))
        click.echo("streamed: " + "|".join(reply))
    finally:
        desk.close()
        engine.close()
    click.echo(f"\n{verdict(short, long, tolerance)}")


if __name__ == "__main__":
    main()
