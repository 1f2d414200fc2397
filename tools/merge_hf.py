"""Merge a training checkpoint into its base: a Hugging Face folder that Transformers and LMDeploy load."""

import _checkout  # noqa: F401
import click

from huanhuan.cli import tool


@tool()
@click.argument("recipe", type=click.Path(path_type=str))
@click.option("--out", required=True, type=click.Path(path_type=str), help="输出目录 / folder to write.")
@click.option(
    "--checkpoint",
    metavar="PTH",
    help="检查点；默认最新的，best 为最好的 / checkpoint; the newest by default, `best` for the best one.",
)
@click.option("--work-dir", help="训练目录，默认取自配方 / where training wrote; from the recipe by default.")
@click.option("--base", help="底模目录，默认按配方寻找 / folder of the base; found as the recipe says by default.")
@click.option("--adapter-only", is_flag=True, help="只导出 PEFT 适配器，不需要底模 / only the adapter; needs no base.")
@click.option("--overwrite", is_flag=True, help="替换已有的输出目录 / replace an existing folder.")
@click.option(
    "--max-shard-size", metavar="SIZE", help="如 2GB；默认沿用底模的分片 / e.g. 2GB; the base's shards by default."
)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "bf16", "fp16", "fp32"]),
    default="keep",
    show_default=True,
    help="权重类型 / type of the weights; keep: the base's.",
)
@click.option("--cfg-options", multiple=True, metavar="KEY=VALUE", help="训练时用过的同名选项 / as given to training.")
def main(
    recipe: str,
    out: str,
    checkpoint: str | None,
    work_dir: str | None,
    base: str | None,
    adapter_only: bool,
    overwrite: bool,
    max_shard_size: str | None,
    dtype: str,
    cfg_options: tuple[str, ...],
) -> None:
    """RECIPE 的检查点 → 合并好的模型 / from a recipe's checkpoint to a merged model.

    \b
    python tools/merge_hf.py configs/huanhuan_qlora.py --out models/huanhuan
    """
    from pathlib import Path

    from huanhuan.export.run import export

    exported = export(
        Path(recipe),
        Path(out),
        checkpoint=checkpoint,
        work_dir=Path(work_dir) if work_dir else None,
        base=Path(base) if base else None,
        adapter_only=adapter_only,
        overwrite=overwrite,
        max_shard_size=max_shard_size,
        dtype=dtype,
        options=cfg_options,
    )
    kind = "适配器 / adapter" if adapter_only else "模型 / model"
    click.echo(
        f"{exported.folder}: {kind}, {exported.weight_bytes / 2**20:,.1f} MiB, "
        f"{exported.checkpoint.name} → {exported.base}"
    )


if __name__ == "__main__":
    main()
