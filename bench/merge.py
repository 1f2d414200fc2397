"""tools/merge_hf.py against `xtuner convert merge`, in one run on a 7B-shaped model with random weights.

    python bench/merge.py --layers 32 --work /some/disk       # 7.7 B parameters: 45 GB of disk, 20 GiB of memory
    python bench/merge.py --layers 4 --work /tmp/merge-bench  # 1.6 B parameters: 10 GB of disk, 6 GiB of memory

tools/merge_hf.py starts from the .pth; XTuner is given the finished adapter, so its own first step
(`xtuner convert pth_to_hf`, which builds the whole model) is not even counted. Two peaks are printed, each of the
largest process of a command: max RSS, which counts pages of mapped files, and anonymous memory, which no file backs
and the system cannot take back. The limit is on max RSS, the stricter of the two.

Exit code 1 if ours is slower than XTuner, exceeds the limit, shows no progress, or if the two merged models differ by
more than the types they are written in round.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch

from huanhuan.cli import tool
from huanhuan.errors import Problems, UserError
from huanhuan.export.weights import BLOCK_ELEMENTS, byte_size, read_weights, shard_names, write_index, write_safetensors
from huanhuan.paths import ROOT

# InternLM2-7B
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 4096, 14336, 32, 8, 92544
SHARD_BYTES = 2 * 10**9
LIMIT_GIB = 4
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

    def blocks(name: str) -> Iterator[torch.Tensor]:
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


@dataclass(frozen=True)
class Measured:
    """What a command took; the peaks in GiB, of its largest process."""

    seconds: float
    resident: float
    anonymous: float


def measure(command: list[str], log: Path) -> Measured:
    """Run ``command``, its output to ``log``. Raises: UserError if it failed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = time.perf_counter()
    anonymous = 0
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            anonymous = max([anonymous, *map(anonymous_bytes, family(process.pid))])
            time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{log}: {' '.join(command[:3])} …: exit {process.returncode}: see this log")
    return Measured(seconds, usage.ru_maxrss / 2**20, anonymous / 2**30)


def family(pid: int) -> Iterator[int]:
    """A process and all that it started, and those they started."""
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = file.read_text().split()
        except OSError:  # the thread has ended
            continue
        for child in children:
            yield from family(int(child))


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def warm_up(folder: Path) -> None:
    """Read the base once, so that neither program pays for the disk's first read."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as content:
            while content.read(2**26):
                pass


def compare(ours: Path, theirs: Path) -> tuple[float, float]:
    """The largest difference of a number of the two merged models, and of what rounding may make of it.

    Ours is rounded to bf16 once. XTuner's product and sum are rounded to fp16, whose error is relative to the
    largest numbers, for what is added may nearly cancel. Beyond 1.0 it is no rounding.

    Raises: UserError if they do not hold the same weights.
    """
    one, other = read_weights(ours).tensors, read_weights(theirs).tensors
    differing = sorted(
        {*one, *other} - {name for name in one if name in other and one[name].shape == other[name].shape}
    )
    if differing:
        raise UserError(
            f"{theirs}: 权重不同 / other weights than {ours}: {', '.join(differing[:5])}: look at both logs"
        )
    largest = share = 0.0
    for name in one:
        for (_, _, a), (_, _, b) in zip(one[name].blocks(), other[name].blocks(), strict=True):
            a, b = a.float(), b.float()
            size, difference = torch.maximum(a.abs(), b.abs()), (a - b).abs()
            allowed = torch.finfo(torch.bfloat16).eps * size + torch.finfo(torch.float16).eps * size.max()
            largest = max(largest, float(difference.max()))
            share = max(share, float((difference / allowed.clamp_min(1e-12)).nan_to_num(nan=math.inf).max()))
    return largest, share


@tool()
@click.option("--layers", default=32, show_default=True, help="32 是 7B / 32 makes 7B.")
@click.option("--rank", default=64, show_default=True, help="LoRA rank.")
@click.option("--work", required=True, help="工作目录，用后可删 / folder for everything; may be deleted afterwards.")
@click.option(
    "--base", "given", help="已有的同形状底模 / a base of that shape (bench/random_base.py) instead of a new one."
)
@click.option(
    "--device", default="cpu", show_default=True, help="xtuner convert merge 用的设备 / device XTuner merges on."
)
@click.option("--only", type=click.Choice(["ours", "xtuner"]), help="只测一个 / measure one of the two.")
def main(layers: int, rank: int, work: str, given: str | None, device: str, only: str | None) -> None:
    """比较两种合并的时间与内存峰值 / compare time and peak memory of the two ways to merge."""
    folder = Path(work)
    base = Path(given) if given else folder / "base"
    checkpoint, recipe = folder / "iter_1.pth", folder / "bench_lora.py"
    folder.mkdir(parents=True, exist_ok=True)
    if not given and not (base / "model.safetensors.index.json").is_file():
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
    results: dict[str, Measured] = {}
    if only != "xtuner":
        results["ours"] = measure([*merge, "--base", str(base), "--out", str(folder / "ours")], folder / "ours.log")
    if only != "ours":
        shutil.rmtree(folder / "xtuner", ignore_errors=True)
        convert = [str(Path(sys.executable).parent / "xtuner"), "convert", "merge", str(base), str(folder / "adapter")]
        results["xtuner"] = measure(
            [*convert, str(folder / "xtuner"), "--safe-serialization", "--device", device], folder / "xtuner.log"
        )
    for name, each in results.items():
        click.echo(
            f"{name:8} {each.seconds:8.1f} s {each.resident:8.2f} GiB max RSS {each.anonymous:8.2f} GiB anonymous"
        )
    problems = Problems()
    if ours := results.get("ours"):
        if ours.resident > LIMIT_GIB:
            problems.add(f"tools/merge_hf.py: {ours.resident:.2f} GiB max RSS > {LIMIT_GIB} GiB")
        if "100%" not in (folder / "ours.log").read_text("utf-8"):
            problems.add(f"{folder / 'ours.log'}: 没有进度条 / no progress bar")
    if len(results) == 2:
        ours, xtuner = results["ours"], results["xtuner"]
        ratio = ours.seconds / xtuner.seconds
        click.echo(
            f"ours / xtuner: time {ratio:.2f}, max RSS {ours.resident / xtuner.resident:.2f}, "
            f"anonymous {ours.anonymous / xtuner.anonymous:.2f}"
        )
        if ratio > 1:
            problems.add(f"tools/merge_hf.py: 比 XTuner 慢 / slower than XTuner: {ratio:.2f} ×")
        largest, share = compare(folder / "ours", folder / "xtuner")
        click.echo(
            f"largest difference (bf16 against XTuner's fp16): {largest:.1e}; {share:.2f} of what rounding may do"
        )
        if not share <= 1:
            problems.add(f"{folder / 'ours'}: 与 XTuner 的合并结果不同 / differs from XTuner's: {share:.2f} × rounding")
    problems.raise_if_any()


if __name__ == "__main__":
    main()
