"""Draw a training run's curves: loss, held-out loss and perplexity, learning rate, speed."""

from __future__ import annotations

from pathlib import Path

import _checkout  # noqa: F401
import click

from huanhuan.cli import tool


@tool(
    epilog="""\b
例 / Examples:
  python tools/plot_training.py work_dirs/huanhuan_qlora
  python tools/plot_training.py work_dirs/huanhuan_qlora --out loss.svg
"""
)
@click.argument("work_dir", type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="图片，.png、.svg 或 .pdf，默认 WORK_DIR/curves.png / the picture, by default WORK_DIR/curves.png.",
)
def main(work_dir: Path, out: Path | None) -> None:
    """画出 WORK_DIR 的训练曲线；中断后续训的各次运行接成一条。

    Draw the curves of WORK_DIR to a picture; runs that were resumed are joined.
    """
    from huanhuan.training.curves import plot

    out = out or work_dir / "curves.png"
    curves = plot(work_dir, out)
    steps, _ = curves.series("loss")
    held_out, losses = curves.series("held_out/loss")
    click.echo(f"{out}: {curves.runs} 次运行 / runs，到第 {steps[-1]} 步 / up to step {steps[-1]}")
    if losses:
        best = min(range(len(losses)), key=losses.__getitem__)
        click.echo(
            f"最好的留出损失 / best held-out loss: {losses[best]:.4f}，第 {held_out[best]} 步 / at step {held_out[best]}"
        )


if __name__ == "__main__":
    main()
