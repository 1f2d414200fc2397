"""Say whether this machine can run a recipe, before anything is downloaded."""

from __future__ import annotations

import sys

import _checkout  # noqa: F401
import click

from huanhuan.cli import tool


@tool(
    epilog="""\b
例 / Examples:
  python tools/plan.py huanhuan_qlora
  python tools/plan.py huanhuan_lora --card "RTX 4090"
  python tools/plan.py huanhuan_full --gpu-memory 80 --gpus 8 --deepspeed deepspeed_zero3
  python tools/plan.py huanhuan_qlora model.use_activation_checkpointing=False
"""
)
@click.argument("recipe")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--gpu-memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GiB",
    help="按这么大显存的卡计划 / plan for a card with this much memory.",
)
@click.option("--card", metavar="NAME", help="按这种卡计划，如 A100、RTX 4090 / plan for this kind of card.")
@click.option(
    "--gpus",
    type=click.IntRange(1),
    envvar="NPROC_PER_NODE",
    default=1,
    show_default=True,
    help="每台机器的 GPU 数 / GPUs of each machine: --nproc of tools/train.py.",
)
@click.option("--deepspeed", help="DeepSpeed 配置名或 JSON / a DeepSpeed configuration of XTuner or a JSON file.")
def main(
    recipe: str,
    overrides: tuple[str, ...],
    gpu_memory: float | None,
    card: str | None,
    gpus: int,
    deepspeed: str | None,
) -> None:
    """下载之前先看本机能否运行 RECIPE：显存、时间；跑不了时给出能跑的配方。

    Whether this machine can run RECIPE, told before anything is downloaded: memory, time, and what fits if it
    does not. The exit code is 0 if it runs and 1 if it does not.
    """
    bad = [each for each in overrides if "=" not in each]
    if bad:
        raise click.UsageError(f"{', '.join(bad)}: 不是 KEY=VALUE / is not KEY=VALUE")
    from huanhuan.training.alternatives import alternatives
    from huanhuan.training.machine import node_count, this_machine
    from huanhuan.training.plan import make_plan
    from huanhuan.training.plan_recipe import Recipe, all_recipes
    from huanhuan.training.plan_report import report
    from huanhuan.training.recipe import find_recipe

    machine = this_machine(gpu_memory, gpus * node_count(), card)
    plan = make_plan(Recipe.read(find_recipe(recipe), overrides), machine, deepspeed)
    others = [] if plan.fits else alternatives(plan, all_recipes())
    for line in report(plan, others):
        click.echo(line)
    sys.exit(0 if plan.fits else 1)


if __name__ == "__main__":
    main()
