"""Whether a recipe runs on a machine, how long it takes, and what runs there if it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huanhuan.errors import UserError
from huanhuan.training.base import local_base
from huanhuan.training.machine import Machine
from huanhuan.training.memory import GIB, SHAPES, Memory, Run, Shape, memory_of
from huanhuan.training.plan_data import Data, count_data
from huanhuan.training.plan_recipe import Length, Recipe, run_of
from huanhuan.training.speed import CORE_FLOPS, Speed, speed_of, weights_in_products

# What the driver, its libraries and the allocator's gaps take beside what is allocated.
CONTEXT, GAPS = 0.6 * GIB, 1.03
# Transformers' generate, a 7B model, one reply at a time, on an H200.
REPLY_TOKENS_PER_SECOND = 24
# Without a GPU the answer to "does it run" is a matter of patience.
PATIENCE = 3 * 86_400
DEMO_BASE = "tiny-internlm2"


def shape_of(base: str) -> Shape:
    """:func:`known_shape`, which must be known.

    Raises: UserError if it is not.
    """
    shape = known_shape(base)
    if shape is None:
        raise UserError(
            f"{base}: 不知道它的大小 / its size is not known: 下载后再试，或放到 models/ / fetch it first, or put it into models/"
        )
    return shape


def known_shape(base: str) -> Shape | None:
    """The sizes of a base: of its config.json if it is on this machine, else by its name; None if it is neither.

    Raises: UserError if the folder on this machine holds no InternLM2.
    """
    folder = local_base(base)
    if folder is not None:
        return shape_in(folder)
    if base == DEMO_BASE:
        return _demo_shape()
    size = re.search(r"internlm2\D*(?:5\D+)?(1[._]8|20|7)b", base.lower())
    return SHAPES[size.group(1).replace("_", ".") + "b"] if size else None


def _demo_shape() -> Shape:
    """The sizes that `make base` will give the demo's base."""
    from huanhuan.training.demo_base import DemoBaseSettings

    sizes = DemoBaseSettings()
    intermediate = -(-sizes.hidden * 8 // 3 // 64) * 64
    return Shape(sizes.hidden, sizes.layers, sizes.heads, sizes.kv_heads, intermediate, sizes.vocab_size)


def shape_in(folder: Path) -> Shape:
    """The sizes in the config.json of a model folder.

    Raises: UserError if it does not hold them.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        heads = int(config["num_attention_heads"])
        return Shape(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'}: 不是 InternLM2 的配置 / not the config of an InternLM2 ({type(error).__name__}: {error}): "
            "换一个底模 / use another base"
        ) from error


def needed(memory: Memory, *, gpu: bool = True) -> float:
    """Bytes that must be free for ``memory`` to be had."""
    return memory.peak * GAPS + (CONTEXT if gpu else GIB)


def obstacles(run: Run, machine: Machine, speed: Speed | None = None, positions: float = 0.0) -> Iterator[str]:
    """Why ``run`` does not run on ``machine``: one line each, nothing if it does."""
    memory, on_gpu = memory_of(run), machine.name != "CPU"
    short = needed(memory, gpu=on_gpu) * (1 if on_gpu else run.gpus)
    if short > machine.memory:
        yield (
            f"{machine.name}: 需要 {short / GIB:.1f} GiB，可用 {machine.memory / GIB:.1f} GiB / {short / GIB:.1f} GiB of memory "
            f"needed, {machine.memory / GIB:.1f} GiB free"
        )
    host = memory.host / machine.nodes
    if host > machine.host:
        yield (
            f"内存不足 / host memory: 卸载需要 {host / GIB:.0f} GiB，可用 {machine.host / GIB:.0f} GiB / offloading needs "
            f"{host / GIB:.0f} GiB, {machine.host / GIB:.0f} GiB are free"
        )
    if machine.card is not None and run.bfloat16 and not machine.card.has_bf16:
        yield f"{machine.name}: 不支持 bfloat16 / has no bfloat16: 用 Ampere 或更新的卡 / use an Ampere card or a newer one"
    if machine.card is not None and run.base in ("fp8", "nf4_fp8") and not machine.card.has_fp8:
        yield f"{machine.name}: 不支持 FP8 / has no FP8"
    yield from unsupported(run)
    if not on_gpu and speed is not None and positions / speed.tokens > PATIENCE:
        wait = duration(positions / speed.tokens)
        yield f"没有 GPU，需要 {wait} / it would take {wait} without a GPU: 用有 GPU 的机器 / use a machine with one"


def unsupported(run: Run) -> Iterator[str]:
    """Combinations that no machine runs, each with the way out."""
    if run.base != "plain" and not run.rank:
        yield "NF4 与 FP8 权重不能训练 / weights in NF4 or FP8 do not train: 加 LoRA / add model.lora"
    if run.zero and run.base in ("fp8", "nf4_fp8"):
        yield "DeepSpeed 会把 FP8 权重转成 16 位 / DeepSpeed casts the FP8 weights to 16 bits: 去掉 --deepspeed / drop --deepspeed"
    if run.zero == 3 and run.base in ("nf4", "nf4_fp8"):
        yield "ZeRO-3 不能切分 NF4 权重 / ZeRO-3 cannot divide NF4 weights: 用 deepspeed_zero2 / use deepspeed_zero2"


def duration(seconds: float) -> str:
    """A time for a reader.

    >>> duration(40), duration(4000), duration(200000)
    ('40 s', '67 min', '56 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


@dataclass(frozen=True)
class Plan:
    """The answer for one recipe on one machine."""

    recipe: Recipe
    deepspeed: str | None
    run: Run
    machine: Machine
    data: Data
    speed: Speed | None
    length: Length
    positions: float
    """Tokens that go through the model in training, padding included, on all GPUs."""
    validation_tokens: float
    reply_tokens: float
    obstacles: tuple[str, ...]

    @property
    def memory(self) -> Memory:
        """The memory of one GPU."""
        return memory_of(self.run)

    @property
    def fits(self) -> bool:
        """Whether the machine can run the recipe."""
        return not self.obstacles

    @property
    def times(self) -> dict[str, float]:
        """Seconds of training, of validation and of sampled replies; empty if the speed is not known."""
        if self.speed is None:
            return {}
        forward = 2 if self.run.rank else 3
        if self.machine.name == "CPU":
            replies = self.reply_tokens * 2 * weights_in_products(self.run.shape) / (self.machine.cores * CORE_FLOPS)
        else:
            replies = self.reply_tokens / REPLY_TOKENS_PER_SECOND * self.run.shape.layers / 32
        return {
            "训练 / training": self.positions / self.speed.tokens,
            "验证 / validation": self.validation_tokens / self.speed.tokens / forward,
            "试答 / sampled replies": replies,
        }


def make_plan(recipe: Recipe, machine: Machine, deepspeed: str | None = None) -> Plan:
    """Plan ``recipe`` on ``machine``.

    Raises: UserError for a data file or a base that cannot be read, and for settings that training would refuse.
    """
    shape = shape_of(recipe.base)
    tokenizer = _tokenizer_folder(recipe.base)
    file, pack = recipe.data_file, recipe.pack_length
    if file is None:
        raise UserError(f"{recipe.path.name}: [{recipe.dataset_key}.path] 没有写数据 / names no training file: add it")
    contradictions = list(recipe.contradictions())
    if contradictions:
        raise UserError(contradictions)
    data = count_data(file, recipe.max_length, tokenizer)
    if not data.lengths:
        raise UserError(f"{file}: 没有一条对话短于 {recipe.max_length} 个 token / no dialogue fits: raise max_length")
    run = run_of(recipe, shape, gpus=machine.gpus, deepspeed=deepspeed, data=data)
    packs = data.packs(pack)
    length = recipe.length(packs, run.gpus)
    positions = length.passes * run.gpus * max(recipe.batch_size * data.tokens / packs, recipe.padded_to)
    held_out = recipe.held_out_file
    held_out_tokens = count_data(held_out, recipe.max_length, tokenizer).tokens if held_out else 0
    replies = recipe.replies
    reply_tokens = (
        int(replies.get("starters", 3)) * int(replies.get("max_new_tokens", 96)) if replies is not None else 0
    )
    speed = speed_of(
        run,
        machine.card,
        cores=machine.cores if machine.name == "CPU" else 0,
        through_trainer=recipe.through_trainer,
    )
    return Plan(
        recipe=recipe,
        deepspeed=deepspeed,
        run=run,
        machine=machine,
        data=data,
        speed=speed,
        length=length,
        positions=positions,
        validation_tokens=float(held_out_tokens * length.validations),
        reply_tokens=float(reply_tokens * (length.validations + 1)),
        obstacles=tuple(obstacles(run, machine, speed, positions)),
    )


def _tokenizer_folder(base: str) -> Path | None:
    """The folder of the base on this machine, if its tokenizer is there."""
    folder = local_base(base)
    names = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
    return folder if folder is not None and any((folder / name).is_file() for name in names) else None
