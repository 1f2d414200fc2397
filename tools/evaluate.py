"""让模型回答留出的对话，与原文比较 / have the model answer held-out lines and compare them with the script."""

import sys
from pathlib import Path

import _checkout  # noqa: F401
import click

from huanhuan.chat.guard import guard_wanted
from huanhuan.chat.select import build
from huanhuan.chat.terminal import log_to_standard_error, sampling_from
from huanhuan.cli import tool
from huanhuan.evaluate.replies import answered, prompts
from huanhuan.paths import DATA


@tool()
@click.argument("file", type=click.Path(), default=str(DATA / "huanhuan/val.jsonl"))
@click.option("--model", help="同 tools/chat.py / as for tools/chat.py.")
@click.option("--most", type=click.IntRange(1), help="只问前几句 / only the first prompts.")
@click.option("--out", type=click.Path(path_type=Path), help="每句回复写进 JSONL / write every reply as JSON lines.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 为最可能的词 / 0 is greedy.")
@click.option("--max-new-tokens", type=int, default=512, show_default=True, help="回复上限 / longest reply, in tokens.")
@click.option("--seed", type=int, default=0, show_default=True, help="随机数种子 / seed of the sampling.")
@click.option("--verbose", is_flag=True, help="日志写到标准错误 / write the log to standard error.")
def main(
    file: str,
    model: str | None,
    most: int | None,
    out: Path | None,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    verbose: bool,
) -> None:
    """让模型回答 FILE 里的每一句，与原文比较 / have the model answer every line of FILE and compare with the script.

    回复检查照常工作，次数一并报告 / the reply guard works as in the chat and its counts are reported;
    HUANHUAN_GUARD=off 关掉它 / switches it off.

    \b
    python tools/evaluate.py data/huanhuan/val.jsonl --out work/replies.jsonl
    """
    sampling = sampling_from(temperature, 0.8, 40, max_new_tokens, 1.0, seed, greedy=temperature == 0)
    guard_wanted()
    log_to_standard_error(verbose)
    # What is wrong with the file is told before a model has been loaded for it.
    asked = list(prompts(file))[:most]
    engine = build(model)
    try:
        click.echo(f"{engine.label} · {engine.model}")
        with click.progressbar(length=len(asked), label=file, file=sys.stderr) as bar:
            result = answered(asked, engine, sampling, progress=lambda done, of: bar.update(1))
    finally:
        engine.close()
    if out:
        result.save(out)
    click.echo(result.report())


if __name__ == "__main__":
    main()
