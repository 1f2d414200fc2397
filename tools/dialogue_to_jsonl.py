"""剧本 → 训练数据 / from scripts to training data: see --help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import _checkout  # noqa: F401
import click

from huanhuan.cli import tool


@tool(
    epilog="例 / example: python tools/dialogue_to_jsonl.py data/huanhuan/script "
    "--persona data/huanhuan/persona.toml --out data/huanhuan"
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--persona", type=click.Path(path_type=Path), help="角色卡 / persona card (TOML): names, system prompt.")
@click.option("--character", metavar="NAME", help="角色名，没有角色卡时用 / the character, without a persona card.")
@click.option("--alias", "aliases", metavar="NAME", multiple=True, help="角色的别名，可多次 / another name of hers.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="文件夹，或 .jsonl 文件 / folder or .jsonl file."
)
@click.option("--system", help="系统提示词 / system prompt, without a persona card.")
@click.option("--single-turn", is_flag=True, help="每轮对话一条记录 / one record for each exchange.")
@click.option("--encoding", help="源文件编码，默认自动 / encoding of the sources [auto].")
@click.option("--layout", help="版式，默认自动 / layout: colon, tab, bracket, name-line, fountain, quotes [auto].")
@click.option("--context", type=click.IntRange(1), help="提示词包含的话轮数 / turns in a prompt, with names [1].")
@click.option("--context-chars", type=click.IntRange(1), help="多轮提示词的字数上限 / cap of such a prompt [400].")
@click.option("--budget", type=click.IntRange(1), help="一条记录的字数上限 / characters in a record [1500].")
@click.option("--budget-tokens", type=click.IntRange(1), help="同上，按 token 计 / the same in tokens.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="模型文件夹，用来数 token / model folder to count with."
)
@click.option(
    "--openers", type=click.Choice(["drop", "direction"]), help="场次开头的台词 / a line that opens a scene [drop]."
)
@click.option("--keep-directions", is_flag=True, help="保留舞台提示（…） / keep stage directions.")
@click.option("--min-chars", type=click.IntRange(1), help="回复的最少字数 / characters in a reply [1].")
@click.option("--copies", type=click.IntRange(1), help="同一对话最多出现几次 / times the same exchange may occur [1].")
@click.option(
    "--similarity", type=click.FloatRange(0.5, 1), help="近似重复的阈值 / share that makes a near duplicate [0.9]."
)
@click.option("--interjections", metavar="CHARS", help="语气词 / characters that are mere interjection.")
@click.option(
    "--no-filter",
    "off",
    multiple=True,
    type=click.Choice(["short", "interjection", "duplicate", "near_duplicate"]),
    help="关掉一个过滤器，可多次 / switch a filter off.",
)
@click.option("--keep-all", is_flag=True, help="关掉全部过滤器 / switch all filters off.")
@click.option(
    "--identity-share", type=click.FloatRange(0, 0.5), help="身份问答的占比 / share of identity exchanges [0.03]."
)
@click.option(
    "--val-share", type=click.FloatRange(0, 0.9), help="留作验证的场次占比 / share of scenes held out [0.15]."
)
@click.option(
    "--format",
    type=click.Choice(["xtuner", "openai", "sharegpt", "alpaca"]),
    help="输出格式 / format of records [xtuner].",
)
@click.option("--html/--no-html", default=None, help="是否画 report.html / draw report.html [yes, in a folder].")
@click.option("--seed", type=int, default=0, show_default=True, help="划分与抽样的种子 / seed of the split.")
def main(sources: tuple[Path, ...], out: Path, **options: Any) -> None:
    """把剧本变成角色的对话数据。

    Turn scripts and novels (files or folders of .txt, .md, .docx, .fountain) into conversations of one character.
    Files of conversations (.jsonl, .json: XTuner, OpenAI, ShareGPT, Alpaca) can be given too. A folder --out gets
    train.jsonl, val.jsonl, report.json and report.html; a .jsonl file gets all records.
    """
    from huanhuan.dataset.command import run

    click.echo(run(sources, out, **options))


if __name__ == "__main__":
    main()
