"""The chat in a terminal."""

from __future__ import annotations

import logging

import click

from huanhuan.chat.engine import GREEDY, Engine, EngineError, Reply, Sampling
from huanhuan.chat.guard import guard_wanted, guarded
from huanhuan.chat.select import build
from huanhuan.errors import UserError
from huanhuan.persona import Persona, load_persona
from huanhuan.template import Message


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
    engine = guarded(build(model, report=_report if say is None else _silent))
    try:
        if say is not None:
            return _say_once(engine, card, say, sampling)
        return _talk(engine, card, sampling)
    finally:
        engine.close()


def _report(doing: str, share: float | None) -> None:
    """One line for each step; a download counts up in its own."""
    click.echo(f"\r{doing}" if share is not None else doing, err=True, nl=share is None)


def _silent(doing: str, share: float | None) -> None:
    """Standard output and error are for the reply alone."""


def _say_once(engine: Engine, card: Persona, text: str, sampling: Sampling) -> int:
    messages: list[Message] = [{"role": "system", "content": card.system}, {"role": "user", "content": text}]
    reply = engine.reply(messages, sampling)
    _print(reply)
    return 130 if reply.finish == "stopped" else 0


def _print(reply: Reply) -> None:
    """Print the reply as it arrives; Ctrl-C stops it and keeps what was said. Said anew, it starts on a new line."""
    restarts = 0
    try:
        for piece in reply.ticks():
            if reply.restarts != restarts:
                restarts = reply.restarts
                click.echo("\n（重说 / once more）", err=True)
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        reply.stop()
        reply.wait(10)
    finally:
        click.echo()


def _talk(engine: Engine, card: Persona, sampling: Sampling) -> int:
    click.echo(f"{engine.label} · {engine.model}    /reset 重新开始 / start over    /quit 退出 / leave", err=True)
    click.echo(f"{card.name}: {card.greeting}")
    history: list[Message] = []
    while True:
        try:
            text = click.prompt("你", prompt_suffix=": ").strip()
        except (EOFError, KeyboardInterrupt, click.Abort):
            click.echo()
            return 0
        if text == "/quit":
            return 0
        if text == "/reset":
            history = []
            click.echo(f"{card.name}: {card.greeting}")
            continue
        history.append({"role": "user", "content": text})
        click.echo(f"{card.name}: ", nl=False)
        try:
            reply = engine.reply([{"role": "system", "content": card.system}, *history], sampling)
            _print(reply)
        except EngineError as error:
            click.echo(f"{error}", err=True)
            history.pop()
            continue
        if reply.text:
            history.append({"role": "assistant", "content": reply.text})
        else:
            history.pop()
