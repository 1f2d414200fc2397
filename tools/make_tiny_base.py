"""Make the demo's base: a small InternLM2 that has read the training scenes of a script."""

from __future__ import annotations

from pathlib import Path

import _checkout  # noqa: F401
import click

from huanhuan.cli import tool


@tool(epilog="例 / example: python tools/make_tiny_base.py --out models/tiny-internlm2")
@click.option(
    "--script",
    "scripts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="剧本文件或文件夹，可多次 / script, file or folder [data/huanhuan/script].",
)
@click.option("--persona", type=click.Path(path_type=Path), help="角色卡 / persona card [data/huanhuan/persona.toml].")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="由该剧本生成的 train.jsonl、val.jsonl 所在 / folder of the training files made of it [data/huanhuan].",
)
@click.option("--out", type=click.Path(path_type=Path), help="输出目录 / folder to write [models/tiny-internlm2].")
@click.option("--steps", type=click.IntRange(1), help="预训练步数 / pretraining steps.")
@click.option("--seed", type=int, default=0, show_default=True, help="随机种子 / random seed.")
@click.option(
    "--overwrite", is_flag=True, help="替换不是由相同输入做成的目录 / replace a folder made from other inputs."
)
def main(
    scripts: tuple[Path, ...],
    persona: Path | None,
    data: Path | None,
    out: Path | None,
    steps: int | None,
    seed: int,
    overwrite: bool,
) -> None:
    """做演示用的小底模，两核约一分钟 / make the demo's small base, about a minute on two cores.

    架构是真正的 InternLM2，只读过训练用的场次，且不含角色自己的话 / InternLM2's own architecture; it reads the training
    scenes only, without the character's lines. 已用相同输入做好的不再重做 / one made from the same inputs is kept.
    """
    from dataclasses import replace

    from huanhuan.paths import DATA, MODELS
    from huanhuan.training.demo_base import DemoBaseSettings, make_demo_base

    settings = DemoBaseSettings()
    pretrain = replace(settings.pretrain, seed=seed, steps=steps or settings.pretrain.steps)
    base = make_demo_base(
        scripts or (DATA / "huanhuan/script",),
        persona or DATA / "huanhuan/persona.toml",
        data or DATA / "huanhuan",
        out or MODELS / "tiny-internlm2",
        replace(settings, pretrain=pretrain),
        overwrite=overwrite,
        progress=True,
    )
    state = "已是最新 / up to date" if base.kept else "完成 / made"
    click.echo(f"{base.folder}: {state}, loss {base.loss:.2f}")


if __name__ == "__main__":
    main()
