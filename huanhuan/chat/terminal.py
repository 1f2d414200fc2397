"""The chat in a terminal."""

from __future__ import annotations

import contextlib
import logging
import re
import sys

import click

from huanhuan.chat.arrival import silent
from huanhuan.chat.engine import GREEDY, Engine, EngineError, Finish, Reply, Sampling
from huanhuan.chat.guard import guard_wanted, guarded
from huanhuan.chat.select import build
from huanhuan.errors import UserError
from huanhuan.persona import Persona, load_persona
from huanhuan.template import Message, clean

with contextlib.suppress(ImportError):
    # Being imported is all it takes: the prompt can then be edited, whole characters at a time.
    import readline  # noqa: F401

COMMANDS = "/reset 重新开始 / start over    /quit 退出 / leave"
# How a reply may end that is not the character's own end.
NOTES: dict[Finish | None, str] = {
    "length": "（到了回复上限，见 --max-new-tokens / the longest reply was reached）",
    "cut": "（一直在重复，已截断 / it went in circles and was cut）",
}


def sampling_from(
    temperature: float,
    top_p: float,
    top_k: int,
    max_new_tokens: int,
    repetition_penalty: float,
    seed: int | None,
    greedy: bool,
) -> Sampling:
    """Sampling settings from options. Raises: UserError if one is out of range."""
    try:
        if greedy:
            return Sampling(0, GREEDY.top_p, GREEDY.top_k, max_new_tokens, repetition_penalty)
        return Sampling(temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed)
    except ValueError as error:
        raise UserError(f"采样参数不对 / wrong sampling option: {error}") from None


def log_to_standard_error(wanted: bool) -> None:
    """Show this project's log, from what the guard did to the details of an error, or nothing of it.

    Without it, what goes wrong is one line where it happens.
    """
    log = logging.getLogger("huanhuan")
    handler = logging.StreamHandler() if wanted else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def chat(*, persona: str, model: str | None, say: str | None, verbose: bool = False, **options: object) -> int:
    """Say one thing or talk until /quit; the exit code. Raises: UserError as loading the card and the engine do."""
    sampling = sampling_from(**options)  # type: ignore[arg-type]
    card = load_persona(persona)
    guard_wanted()
    log_to_standard_error(verbose)
    # A line for a script: standard output and error are for the reply alone.
    engine = guarded(build(model, report=show_progress if say is None else silent))
    try:
        if say is not None:
            return _say_once(engine, card, say, sampling)
        return _talk(engine, card, sampling)
    finally:
        engine.close()


def show_progress(doing: str, share: float | None) -> None:
    """One line for each step; how far a download is shows in the bars of the hub's own client."""
    if share is None:
        click.echo(doing, err=True)


def _say_once(engine: Engine, card: Persona, text: str, sampling: Sampling) -> int:
    messages: list[Message] = [{"role": "system", "content": card.system}, {"role": "user", "content": text}]
    reply = engine.reply(messages, sampling)
    _print(reply)
    return 130 if reply.finish == "stopped" else 0


def _print(reply: Reply) -> None:
    """Print the reply as it arrives; Ctrl-C stops it and keeps what was said. Said anew, it starts on a new line.

    A file or a program gets it at the end, so that what the guard threw away is not in it.
    """
    live = sys.stdout.isatty()
    restarts = 0
    try:
        for piece in reply.ticks():
            if live and reply.restarts != restarts:
                restarts = reply.restarts
                click.echo("\n（重说 / once more）", err=True)
            if live:
                click.echo(piece, nl=False)
    except KeyboardInterrupt:
        reply.stop()
        reply.wait(10)
    finally:
        click.echo("" if live else reply.text)


def _talk(engine: Engine, card: Persona, sampling: Sampling) -> int:
    click.echo(f"{engine.label} · {engine.model}    {COMMANDS}", err=True)
    click.echo(f"{card.name}: {card.greeting}")
    history: list[Message] = []
    while True:
        try:
            text = clean(click.prompt("你", prompt_suffix=": ", default="", show_default=False))
        except (EOFError, KeyboardInterrupt, click.Abort):
            click.echo()
            return 0
        if text == "/quit":
            return 0
        if text == "/reset":
            history = []
            click.echo(f"{card.name}: {card.greeting}")
        elif re.fullmatch(r"/\w*", text):
            click.echo(f"没有 {text} / no such command    {COMMANDS}", err=True)
        elif text:
            _turn(engine, card, sampling, history, text)


def _turn(engine: Engine, card: Persona, sampling: Sampling, history: list[Message], text: str) -> None:
    """One exchange; ``history`` grows by it if something was said."""
    asked: list[Message] = [*history, {"role": "user", "content": text}]
    try:
        reply = engine.reply([{"role": "system", "content": card.system}, *asked], sampling)
        click.echo(f"{card.name}: ", nl=False)
        _print(reply)
    except EngineError as error:
        click.echo(f"{error}", err=True)
        return
    if reply.finish in NOTES:
        click.echo(NOTES[reply.finish], err=True)
    if reply.text:
        # What the context had no room for this time has none next time either.
        history[:] = [*asked[reply.dropped :], {"role": "assistant", "content": reply.text}]
    if reply.dropped:
        click.echo(f"（最早的 {reply.dropped} 句忘了 / the {reply.dropped} oldest messages are forgotten）", err=True)
