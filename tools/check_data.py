"""检查训练数据 / check training data before training.

python tools/check_data.py data/huanhuan/train.jsonl data/huanhuan/val.jsonl
python tools/check_data.py data/huanhuan/train.jsonl --show 3
"""

from __future__ import annotations

from pathlib import Path

import _checkout  # noqa: F401
import click

from huanhuan.cli import tool
from huanhuan.dataset.check import check_files, summary
from huanhuan.dataset.inspect_tokens import show_records
from huanhuan.errors import UserError
from huanhuan.persona import load_persona


@tool()
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--show",
    metavar="N",
    multiple=True,
    type=click.IntRange(min=1),
    help="逐个 token 打印第 N 条，可重复 / print record N token by token; may be repeated.",
)
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="分词器所在的模型目录，默认取 models/ 里的 / model folder of the tokenizer; by default one in models/.",
)
@click.option(
    "--max-length",
    metavar="TOKENS",
    type=click.IntRange(min=1),
    help="训练的长度上限：说明第 N 条放得下几个来回 / the recipe's limit: say how much of record N fits.",
)
@click.option(
    "--persona",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="角色卡：系统提示必须与它相同 / persona card whose system prompt every record must have.",
)
def main(
    files: tuple[Path, ...], show: tuple[int, ...], tokenizer: Path | None, max_length: int | None, persona: Path | None
) -> None:
    """检查训练文件：每个错误带行号，一次列全；--show 打印模型看到的 token。

    Check training files (XTuner, or another format that the converter reads): every error with its line, all in
    one pass. --show prints what the model sees of a record, the supervised tokens marked.
    """
    if show and len(files) > 1:
        raise UserError("--show: 一次只看一个文件 / works on one file: 只给一个文件 / give one FILE")
    if not show and (tokenizer or max_length):
        raise UserError("--tokenizer、--max-length 只和 --show 一起用 / need --show: 加 --show N / add --show N")
    checked = check_files(files, system=load_persona(persona).system if persona else None)
    for each in checked:
        for line in summary(each):
            click.echo(line)
        for warning in each.validation.warnings:
            click.secho(f"提醒 / warning: {warning}", fg="yellow", err=True)
    if errors := [error for each in checked for error in each.validation.errors]:
        raise UserError(errors)
    if show:
        for line in show_records(checked[0], show, tokenizer, max_length):
            click.echo(line)


if __name__ == "__main__":
    main()
