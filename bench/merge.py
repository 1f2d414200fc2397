"""tools/merge_hf.py against `xtuner convert merge`, in one run on a 7B-shaped model with random weights.

    python bench/merge.py --layers 32 --work /some/disk       # 7.7 B parameters: 45 GB of disk, 20 GiB of memory
    python bench/merge.py --layers 4 --work /tmp/merge-bench  # 1.6 B parameters: 10 GB of disk, 6 GiB of memory

tools/merge_hf.py starts from the .pth; XTuner is given the finished adapter, so its own first step
(`xtuner convert pth_to_hf`, which builds the whole model) is not even counted. Peak memory is the largest
resident set of the process and its children, pages of mapped files included.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch

from huanhuan.cli import tool
from huanhuan.errors import UserError
from huanhuan.export.weights import BLOCK_ELEMENTS, byte_size, read_weights, shard_names, write_index, write_safetensors
from huanhuan.paths import ROOT

# InternLM2-7B
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 4096, 14336, 32, 8, 92544
SHARD_BYTES = 2 * 10**9
TARGETS = ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")

RECIPE = """
from peft import LoraConfig
from xtuner.model import SupervisedFinetune
pretrained_model_name_or_path = 'bench/internlm2-7b-shaped'
model = dict(
    type=SupervisedFinetune,
    lora=dict(type=LoraConfig, r={rank}, lora_alpha={alpha}, target_modules=['wqkv', 'wo', 'w1', 'w2', 'w3']),
)
"""


def model_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of an InternLM2-7B cut to ``layers``."""
    head = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (VOCAB, HIDDEN)}
    for number in range(layers):
        layer = f"model.layers.{number}."
        shapes[layer + "attention.wqkv.weight"] = ((HEADS + 2 * KV_HEADS) * head, HIDDEN)
        shapes[layer + "attention.wo.weight"] = (HIDDEN, HIDDEN)
        shapes[layer + "feed_forward.w1.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[layer + "feed_forward.w3.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[layer + "feed_forward.w2.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[layer + "attention_norm.weight"] = (HIDDEN,)
        shapes[layer + "ffn_norm.weight"] = (HIDDEN,)
    return {**shapes, "model.norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN)}


def build_base(folder: Path, layers: int) -> int:
    """Write a 7B-shaped bf16 base, its values a pool of random numbers repeated; the bytes of its weights."""
    from huanhuan.training.tiny_base import build_random_base

    build_random_base(folder, ["春风吹过长长的宫墙，院子里的海棠开了一半。" * 4])
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCAB,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    shapes = model_shapes(layers)
    pool = (torch.randn(BLOCK_ELEMENTS) * 0.02).to(torch.bfloat16)

    def blocks(name: str):
        count = byte_size(shapes[name], torch.bfloat16) // 2
        for start in range(0, count, BLOCK_ELEMENTS):
            yield pool[: min(BLOCK_ELEMENTS, count - start)]

    groups: list[list[str]] = [[]]
    for name, shape in shapes.items():
        used = sum(byte_size(shapes[each], torch.bfloat16) for each in groups[-1])
        if groups[-1] and used + byte_size(shape, torch.bfloat16) > SHARD_BYTES:
            groups.append([])
        groups[-1].append(name)
    files = shard_names(len(groups))
    for file, names in zip(files, groups, strict=True):
        write_safetensors(folder / file, {name: (shapes[name], torch.bfloat16) for name in names}, blocks)
    total = sum(byte_size(shape, torch.bfloat16) for shape in shapes.values())
    write_index(folder, dict(zip(files, groups, strict=True)), total)
    return total


def build_checkpoint(path: Path, layers: int, rank: int) -> None:
    """Write a LoRA checkpoint as XTuner names it, in fp32 as the recipes train it."""
    shapes = model_shapes(layers)
    state = {}
    for number in range(layers):
        for target in TARGETS:
            module = f"model.layers.{number}.{target}"
            out, inside = shapes[f"{module}.weight"]
            prefix = f"llm.base_model.model.{module}"
            state[f"{prefix}.lora_A.default.weight"] = torch.randn(rank, inside) * 0.02
            state[f"{prefix}.lora_B.default.weight"] = torch.randn(out, rank) * 0.02
    torch.save({"state_dict": state, "meta": {}}, path)


def measure(command: list[str], log: Path) -> tuple[float, float]:
    """Run ``command``; seconds it took and GiB of its largest resident set. Raises: UserError if it failed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{log}: {' '.join(command[:3])} …: exit {process.returncode}: see this log")
    return seconds, usage.ru_maxrss / 2**20


def warm_up(folder: Path) -> None:
    """Read the base once, so that neither program pays for the disk's first read."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as content:
            while content.read(2**26):
                pass


def largest_difference(ours: Path, theirs: Path, layers: int) -> float:
    """Largest difference between the two merged models in one adapted weight of the first and the last layer."""
    ours_tensors, theirs_tensors = read_weights(ours).tensors, read_weights(theirs).tensors
    found = 0.0
    for layer in {0, layers - 1}:
        name = f"model.layers.{layer}.attention.wqkv.weight"
        found = max(found, float((ours_tensors[name].load().float() - theirs_tensors[name].load().float()).abs().max()))
    return found


@tool()
@click.option("--layers", default=32, show_default=True, help="32 是 7B / 32 makes 7B.")
@click.option("--rank", default=64, show_default=True, help="LoRA rank.")
@click.option("--work", required=True, help="工作目录，用后可删 / folder for everything; may be deleted afterwards.")
@click.option(
    "--device", default="cpu", show_default=True, help="xtuner convert merge 用的设备 / device XTuner merges on."
)
@click.option("--only", type=click.Choice(["ours", "xtuner"]), help="只测一个 / measure one of the two.")
def main(layers: int, rank: int, work: str, device: str, only: str | None) -> None:
    """比较两种合并的时间与内存峰值 / compare time and peak memory of the two ways to merge."""
    folder = Path(work)
    base, checkpoint, recipe = folder / "base", folder / "iter_1.pth", folder / "bench_lora.py"
    folder.mkdir(parents=True, exist_ok=True)
    if not (base / "model.safetensors.index.json").is_file():
        shutil.rmtree(base, ignore_errors=True)
        build_base(base, layers)
        build_checkpoint(checkpoint, layers, rank)
        recipe.write_text(RECIPE.format(rank=rank, alpha=2 * rank), "utf-8")
    weights = sum(byte_size(each.shape, each.dtype) for each in read_weights(base).tensors.values())
    click.echo(f"{layers} layers, {weights / 2e9:.2f} B parameters, {weights / 2**30:.1f} GiB, LoRA rank {rank}")
    merge = [
        sys.executable,
        str(ROOT / "tools/merge_hf.py"),
        str(recipe),
        "--checkpoint",
        str(checkpoint),
        "--overwrite",
    ]
    measure([*merge, "--adapter-only", "--out", str(folder / "adapter")], folder / "adapter.log")
    warm_up(base)
    results: dict[str, tuple[float, float]] = {}
    if only != "xtuner":
        results["ours"] = measure([*merge, "--base", str(base), "--out", str(folder / "ours")], folder / "ours.log")
    if only != "ours":
        shutil.rmtree(folder / "xtuner", ignore_errors=True)
        convert = [str(Path(sys.executable).parent / "xtuner"), "convert", "merge", str(base), str(folder / "adapter")]
        results["xtuner"] = measure(
            [*convert, str(folder / "xtuner"), "--safe-serialization", "--device", device], folder / "xtuner.log"
        )
    for name, (seconds, gib) in results.items():
        click.echo(f"{name:8} {seconds:8.1f} s {gib:8.2f} GiB peak")
    if len(results) == 2:
        ratio = results["ours"][0] / results["xtuner"][0]
        click.echo(
            f"time ours / xtuner: {ratio:.2f}, memory ours / xtuner: {results['ours'][1] / results['xtuner'][1]:.2f}"
        )
        difference = largest_difference(folder / "ours", folder / "xtuner", layers)
        click.echo(f"largest difference of a weight (bf16 against XTuner's fp16): {difference:.1e}")


if __name__ == "__main__":
    main()
