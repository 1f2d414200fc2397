"""Train a recipe: `xtuner train` with a check before, a resume that works and an exit code that tells the truth."""

from __future__ import annotations

from pathlib import Path

import _checkout  # noqa: F401
import click

from huanhuan.cli import tool


@tool(
    epilog="""\b
例 / Examples:
  python tools/train.py configs/huanhuan_qlora.py
  python tools/train.py configs/huanhuan_qlora.py --resume
  python tools/train.py configs/huanhuan_full.py --nproc 8 --deepspeed deepspeed_zero3
  python tools/train.py configs/huanhuan_qlora.py --cfg-options train_cfg.max_epochs=5 optim_wrapper.optimizer.lr=1e-4
"""
)
@click.argument("recipe")
@click.argument("more_options", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--work-dir", help="日志与检查点的目录，默认 work_dirs/<recipe> / folder of logs and checkpoints.")
@click.option("--deepspeed", help="DeepSpeed 配置名或 JSON / a DeepSpeed configuration of XTuner or a JSON file.")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    help="从检查点继续，不写路径则取最新的 / continue from a checkpoint, the newest if none is named.",
)
@click.option("--seed", type=int, help="随机种子 / random seed.")
@click.option("--cfg-options", multiple=True, metavar="KEY=VALUE", help="改写配方中的值，可写多个 / override values.")
@click.option("--launcher", type=click.Choice(["none", "pytorch", "slurm", "mpi"]), default="none", show_default=True)
@click.option(
    "--nproc", type=click.IntRange(1), envvar="NPROC_PER_NODE", default=1, show_default=True, help="GPU 数 / GPUs."
)
@click.option("--check-only", is_flag=True, help="只检查，不训练 / check everything, train nothing.")
@click.option("--skip-check", is_flag=True, help="跳过检查 / train without checking first.")
def main(recipe: str, more_options: tuple[str, ...], cfg_options: tuple[str, ...], **options: object) -> None:
    """训练一个配方 / Train a RECIPE of configs/.

    参数与 `xtuner train` 相同 / The arguments are those of `xtuner train`; values of --cfg-options may follow it.
    多机与 XTuner 相同 / Several nodes as with XTuner: NNODES, NODE_RANK, ADDR and PORT in the environment.
    """
    from huanhuan.training.launch import Launch, train

    overrides = (*cfg_options, *more_options)
    resume = str(options["resume"] or "")
    if "=" in resume and not Path(resume).exists():
        # A bare --resume takes what stands behind it for its own.
        options["resume"], overrides = "latest", (resume, *overrides)
    bad = [each for each in overrides if "=" not in each]
    if bad:
        raise click.UsageError(f"{', '.join(bad)}: 不是 KEY=VALUE / is not KEY=VALUE")
    debug = bool(click.get_current_context().params["debug"])
    checkpoint = train(Launch(recipe=recipe, overrides=overrides, debug=debug, **options))  # pyright: ignore[reportArgumentType]
    if checkpoint is not None:
        click.echo(f"检查点 / checkpoint: {checkpoint}")


if __name__ == "__main__":
    main()
