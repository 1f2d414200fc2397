"""Whether a recipe runs on a machine, how long it takes, and what runs there if it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.errors import UserError
from huanhuan.paths import CONFIGS
from huanhuan.training.base import local_base
from huanhuan.training.machine import Machine
from huanhuan.training.memory import GIB, SHAPES, Base, Memory, Optimiser, Run, Shape, memory_of
from huanhuan.training.plan_data import Data, count_data
from huanhuan.training.recipe import load_recipe
from huanhuan.training.speed import CORE_FLOPS, Speed, speed_of, weights_in_products

# What the driver, its libraries and the allocator's gaps take beside what is allocated.
CONTEXT, GAPS = 0.6 * GIB, 1.03
# Transformers' generate, a 7B model, one reply at a time, on an H200.
REPLY_TOKENS_PER_SECOND = 24
# Without a GPU the answer to "does it run" is a matter of patience.
PATIENCE = 3 * 86_400
DEMO_BASE = "tiny-internlm2"
OPTIMISERS: dict[str, Optimiser] = {
    "AdamW": "adamw",
    "Adam": "adamw",
    "AdamW8bit": "adamw8bit",
    "PagedAdamW8bit": "paged_adamw8bit",
    "CompensatedAdamW8bit": "compensated_adamw8bit",
}


@dataclass(frozen=True)
class Recipe:
    """A recipe's plain values and what the plan reads from them."""

    path: Path
    values: Mapping[str, Any]
    base: str
    overrides: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe without importing what it names.

        Raises: UserError if it cannot be read or names no base.
        """
        return cls.of(path, load_recipe(path, overrides), overrides)

    @classmethod
    def of(cls, path: Path, config: Any, overrides: Sequence[str] = ()) -> Recipe:
        """The same of a recipe that is loaded already."""
        values = config.to_dict(keep_imported=True)
        base = values.get("pretrained_model_name_or_path") or _llm(values).get("pretrained_model_name_or_path")
        if not isinstance(base, str):
            raise UserError(f"{path}: [pretrained_model_name_or_path] 没有写底模 / names no base: add it to the recipe")
        return cls(path, values, base, tuple(overrides))

    @property
    def pack_length(self) -> int | None:
        """Tokens of a pack, None if dialogues are not packed."""
        return self._loader("train_dataloader").get("pack_length")

    @property
    def max_length(self) -> int:
        """Tokens that a dialogue may have."""
        return int(self._loader("train_dataloader").get("max_length") or 2048)

    @property
    def batch_size(self) -> int:
        """Packs, or dialogues, of one forward pass."""
        own = (self.values.get("train_dataloader") or {}).get("batch_size")
        return int(self.trainer.get("per_device_train_batch_size") or own or 1)

    @property
    def trainer(self) -> Mapping[str, Any]:
        """Settings of Transformers' Trainer; empty if XTuner's own loop trains."""
        return (self.values.get("training_args") or {}) if self.values.get("framework") == "huggingface" else {}

    @property
    def accumulation(self) -> int:
        """Packs per optimiser step and GPU."""
        own = (self.values.get("optim_wrapper") or {}).get("accumulative_counts")
        return int(self.trainer.get("gradient_accumulation_steps") or own or 1)

    @property
    def passes(self) -> Mapping[str, Any]:
        """``max_iters`` or ``max_epochs``, and how many ``validations``."""
        if not self.trainer:
            return self.values.get("train_cfg") or {}
        steps, epochs = int(self.trainer.get("max_steps") or -1), self.trainer.get("num_train_epochs", 3)
        return {"max_iters": steps * self.accumulation if steps > 0 else None, "max_epochs": epochs}

    def data_file(self, loader: str = "train_dataloader") -> str | None:
        """The training file, or that of ``val_dataloader``."""
        return self._loader(loader).get("path")

    def _loader(self, name: str) -> Mapping[str, Any]:
        return (self.values.get(name) or {}).get("dataset") or {}

    def hook(self, name: str) -> Mapping[str, Any]:
        """The settings of the custom hook whose class is ``name``; empty if the recipe runs none."""
        hooks = [] if self.trainer else self.values.get("custom_hooks") or []
        return next((each for each in hooks if str(each.get("type", "")).endswith(name)), {})


def _llm(values: Mapping[str, Any]) -> Mapping[str, Any]:
    model = values.get("model") or {}
    return model.get("llm") or model


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


def run_of(
    recipe: Recipe, shape: Shape, *, gpus: int = 1, deepspeed: str | None = None, data: Data | None = None
) -> Run:
    """The switches of ``recipe`` that decide about memory."""
    values = recipe.values
    model, llm = values.get("model") or {}, _llm(values)
    lora = model.get("lora") or values.get("lora") or {}
    quantisation = llm.get("quantization_config") or {}
    base: Base = "nf4" if quantisation.get("load_in_4bit") else "fp8" if model.get("fp8_base") else "plain"
    wrapper = values.get("optim_wrapper") or {}
    optimiser = str((wrapper.get("optimizer") or {}).get("type", "AdamW")).rpartition(".")[2]
    if optimiser not in OPTIMISERS:
        raise UserError(
            f"{recipe.path.name}: [optim_wrapper.optimizer.type] {optimiser}: 不知道它占多少内存 / its memory is not known: "
            f"用其中之一 / use one of {', '.join(OPTIMISERS)}"
        )
    dtype = _bytes_of(llm.get("torch_dtype"))
    pack = recipe.pack_length
    if pack is None:
        longest = sorted(data.lengths, reverse=True)[: recipe.batch_size] if data else [recipe.max_length]
        tokens = sum(longest) if data else recipe.max_length * recipe.batch_size
    else:
        tokens = pack * recipe.batch_size
    stage, offload = _deepspeed(deepspeed)
    replies = recipe.hook("SampleRepliesHook")
    return Run(
        shape=shape,
        base=base,
        dtype_bytes=dtype,
        double_quant=bool(quantisation.get("bnb_4bit_use_double_quant")),
        rank=int(lora.get("r") or 8) if lora else 0,
        targets=tuple(lora.get("target_modules") or ("wqkv", "wo", "w1", "w2", "w3")) if lora else (),
        adapter_bytes=_bytes_of(model.get("adapter_dtype", "float32")),
        optimiser=OPTIMISERS[optimiser],
        checkpointing=bool(model.get("use_activation_checkpointing")),
        budget=float(model.get("activation_budget", 1.0)) if model.get("kernels") == "compile" else 1.0,
        tokens=tokens,
        supervised=data.share if data else 0.4,
        accumulation=recipe.accumulation,
        gpus=gpus,
        zero=stage,
        offload_optimiser=offload,
        offload_weights=offload and stage == 3,
        reply_tokens=int(replies.get("max_new_tokens", 96)) + 160 if replies else 0,
    )


def _bytes_of(dtype: Any) -> int:
    """Bytes of a torch dtype by its name; what a recipe leaves out loads in float32."""
    return 2 if "16" in str(dtype) else 4


def _deepspeed(name: str | None) -> tuple[int, bool]:
    """Stage and offloading of a DeepSpeed configuration: a JSON file, or one of XTuner's by name."""
    if name is None:
        return 0, False
    if Path(name).is_file():
        try:
            zero = json.loads(Path(name).read_text("utf-8")).get("zero_optimization") or {}
        except ValueError as error:
            raise UserError(f"{name}: 不是 JSON / is not JSON ({error}): 改正它 / correct it") from error
        return int(zero.get("stage", 0)), "offload_optimizer" in zero
    stage = re.search(r"zero(\d)", name)
    if stage is None:
        raise UserError(
            f"{name}: 没有这个 DeepSpeed 配置 / no such DeepSpeed configuration: use deepspeed_zero2, deepspeed_zero3, "
            "their _offload, or a JSON file"
        )
    return int(stage.group(1)), "offload" in name


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
    if memory.host > machine.host:
        yield (
            f"内存不足 / host memory: 卸载需要 {memory.host / GIB:.0f} GiB，可用 {machine.host / GIB:.0f} GiB / offloading needs "
            f"{memory.host / GIB:.0f} GiB, {machine.host / GIB:.0f} GiB are free"
        )
    if run.base == "fp8" and machine.card is not None and not machine.card.has_fp8:
        yield f"{machine.name}: 不支持 FP8 / has no FP8"
    yield from unsupported(run)
    if not on_gpu and speed is not None and positions / speed.tokens > PATIENCE:
        wait = duration(positions / speed.tokens)
        yield f"没有 GPU，需要 {wait} / it would take {wait} without a GPU: 用有 GPU 的机器 / use a machine with one"


def unsupported(run: Run) -> Iterator[str]:
    """Combinations that no machine runs, each with the way out."""
    if run.zero and run.base == "fp8":
        yield "DeepSpeed 会把 FP8 权重转成 16 位 / DeepSpeed casts the FP8 weights to 16 bits: 去掉 --deepspeed / drop --deepspeed"
    if run.zero == 3 and run.base == "nf4":
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
    run: Run
    machine: Machine
    data: Data
    speed: Speed | None
    steps: int
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
            replies = self.reply_tokens * 2 * weights_in_products(self.run) / (self.machine.cores * CORE_FLOPS)
        else:
            replies = self.reply_tokens / REPLY_TOKENS_PER_SECOND * self.run.shape.layers / 32
        return {
            "训练 / training": self.positions / self.speed.tokens,
            "验证 / validation": self.validation_tokens / self.speed.tokens / forward,
            "试答 / sampled replies": replies,
        }


def make_plan(recipe: Recipe, machine: Machine, deepspeed: str | None = None) -> Plan:
    """Plan ``recipe`` on ``machine``.

    Raises: UserError for a data file or a base that cannot be read.
    """
    shape = shape_of(recipe.base)
    tokenizer = _tokenizer_folder(recipe.base)
    file = recipe.data_file()
    if file is None:
        raise UserError(
            f"{recipe.path.name}: [train_dataloader.dataset.path] 没有写数据 / names no training file: add it"
        )
    data = count_data(file, recipe.max_length, tokenizer)
    if not data.lengths:
        raise UserError(f"{file}: 没有一条对话短于 {recipe.max_length} 个 token / no dialogue fits: raise max_length")
    run = run_of(recipe, shape, gpus=machine.gpus, deepspeed=deepspeed, data=data)
    packs = data.packs(recipe.pack_length)
    per_pass = recipe.batch_size * run.gpus
    settings = recipe.passes
    # XTuner's loop: an epoch is the passes that one process makes.
    passes = settings.get("max_iters") or -(-packs // per_pass) * float(settings.get("max_epochs") or 1)
    width = recipe.pack_length or data.tokens / packs
    positions = float(passes) * per_pass * width
    validations = int(settings.get("validations") or 0)
    held_out = recipe.data_file("val_dataloader")
    held_out_tokens = count_data(held_out, recipe.max_length, tokenizer).tokens if held_out else 0
    replies = recipe.hook("SampleRepliesHook")
    reply_tokens = int(replies.get("starters", 3)) * int(replies.get("max_new_tokens", 96)) if replies else 0
    speed = speed_of(run, machine.card, cores=machine.cores if machine.name == "CPU" else 0)
    return Plan(
        recipe=recipe,
        run=run,
        machine=machine,
        data=data,
        speed=speed,
        steps=-(-int(passes) // run.accumulation),
        positions=positions,
        validation_tokens=float(held_out_tokens * validations),
        reply_tokens=float(reply_tokens * (validations + 1)),
        obstacles=tuple(obstacles(run, machine, speed, positions)),
    )


def _tokenizer_folder(base: str) -> Path | None:
    """The folder of the base on this machine, if its tokenizer is there."""
    folder = local_base(base)
    names = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
    return folder if folder is not None and any((folder / name).is_file() for name in names) else None


def all_recipes(folder: Path = CONFIGS) -> list[Recipe]:
    """Every recipe of configs/ that the plan can read."""
    found = []
    for path in sorted(folder.glob("*.py")):
        try:
            found.append(Recipe.read(path))
        except UserError:
            continue
    return found
