"""What a recipe says about memory and time, read without importing what it names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huanhuan.errors import UserError
from huanhuan.paths import CONFIGS
from huanhuan.training.memory import Base, Optimiser, Run, Shape
from huanhuan.training.plan_data import Data
from huanhuan.training.recipe import load_recipe
from huanhuan.training.steps import loop_passes, loop_validations, packs_per_step, trainer_passes

# By the name of the class, and by what Transformers' Trainer calls it.
OPTIMISERS: dict[str, Optimiser] = {
    "AdamW": "adamw",
    "Adam": "adamw",
    "AdamW8bit": "adamw8bit",
    "PagedAdamW8bit": "paged_adamw8bit",
    "CompensatedAdamW8bit": "compensated_adamw8bit",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_8bit": "adamw8bit",
    "adamw_bnb_8bit": "adamw8bit",
    "paged_adamw_8bit": "paged_adamw8bit",
}
BASES: dict[tuple[bool, bool], Base] = {
    (True, True): "nf4_fp8",
    (True, False): "nf4",
    (False, True): "fp8",
    (False, False): "plain",
}


@dataclass(frozen=True)
class Length:
    """How long a run is."""

    steps: int
    passes: int
    """Forward and backward passes of one process."""
    epochs: float
    validations: int


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
    def name(self) -> str:
        """What tools/train.py finds the recipe by."""
        return self.path.stem if self.path.parent == CONFIGS.resolve() else str(self.path)

    @property
    def through_trainer(self) -> bool:
        """Whether Transformers' Trainer trains, and not XTuner's own loop."""
        return str(self.values.get("framework", "mmengine")).lower() == "huggingface"

    @property
    def trainer(self) -> Mapping[str, Any]:
        """Arguments of Transformers' Trainer."""
        return self.values.get("training_args") or {}

    @property
    def dataset_key(self) -> str:
        """Where the recipe has its training data."""
        return "train_dataset" if self.through_trainer else "train_dataloader.dataset"

    @property
    def accumulation_key(self) -> str:
        """Where the recipe has the packs of an optimiser step."""
        return (
            "training_args.gradient_accumulation_steps" if self.through_trainer else "optim_wrapper.accumulative_counts"
        )

    @property
    def held_out_key(self) -> str:
        """Where the recipe names the file of the held-out replies."""
        return "training_args.held_out" if self.through_trainer else "val_dataloader.dataset.path"

    @property
    def persona_keys(self) -> tuple[str, ...]:
        """Where the recipe names the persona's card."""
        return ("persona", "training_args.persona") if self.through_trainer else ("persona",)

    @property
    def dataset(self) -> Mapping[str, Any]:
        """Settings of the training data."""
        return value_at(self.values, self.dataset_key) or {}

    @property
    def pack_length(self) -> int | None:
        """Tokens of a pack, None if dialogues are not packed."""
        return self.dataset.get("pack_length")

    @property
    def padded_to(self) -> int:
        """Tokens that every pass has at least, 0 if nothing is filled up."""
        if self.through_trainer:
            # PackedTrainer brings its own collator.
            return self.pack_length or 0
        return int(value_at(self.values, "train_dataloader.collate_fn.pad_to") or 0)

    @property
    def max_length(self) -> int:
        """Tokens that a dialogue may have."""
        return int(self.dataset.get("max_length") or 2048)

    @property
    def batch_size(self) -> int:
        """Packs, or dialogues, of one forward pass."""
        if self.through_trainer:
            return int(self.trainer.get("per_device_train_batch_size") or 8)
        return int(value_at(self.values, "train_dataloader.batch_size") or 1)

    @property
    def accumulation(self) -> int:
        """Passes per optimiser step and GPU."""
        if self.through_trainer:
            return int(self.trainer.get("gradient_accumulation_steps") or 1)
        return packs_per_step(self.values)

    @property
    def optimiser(self) -> Optimiser:
        """The optimiser's kind.

        Raises: UserError if its memory is not known.
        """
        key = "training_args.optim" if self.through_trainer else "optim_wrapper.optimizer.type"
        default = "adamw_torch" if self.through_trainer else "AdamW"
        name = str(value_at(self.values, key) or default).rpartition(".")[2]
        if name not in OPTIMISERS:
            raise UserError(
                f"{self.path.name}: [{key}] {name}: 不知道它占多少内存 / its memory is not known: "
                f"用其中之一 / use one of {', '.join(OPTIMISERS)}"
            )
        return OPTIMISERS[name]

    @property
    def data_file(self) -> str | None:
        """The training file."""
        return self.dataset.get("path")

    @property
    def held_out_file(self) -> str | None:
        """The file of the held-out replies, None if none are looked at."""
        return value_at(self.values, self.held_out_key)

    @property
    def replies(self) -> Mapping[str, Any] | None:
        """The settings of sampled replies, None if none are sampled."""
        if self.through_trainer:
            # With the hook's own defaults.
            return {} if self.trainer.get("persona") else None
        hooks = self.values.get("custom_hooks") or []
        return next((each for each in hooks if str(each.get("type", "")).endswith("SampleRepliesHook")), None)

    def contradictions(self) -> Iterator[str]:
        """Settings that training refuses, one line each."""
        pack, settings = self.pack_length, self.values.get("train_cfg") or {}
        if pack is not None and pack < self.max_length:
            yield (
                f"{self.path.name}: [{self.dataset_key}.pack_length] {pack} < max_length {self.max_length}: "
                "调大前者 / raise the former"
            )
        if not self.through_trainer and settings.get("max_iters") and settings.get("max_epochs"):
            yield (
                f"{self.path.name}: [train_cfg] max_iters 与 max_epochs 只能写一个 / only one of them may be given: "
                "add train_cfg.max_epochs=None"
            )

    def length(self, packs: int, gpus: int) -> Length:
        """How long a run over ``packs``, or dialogues, on ``gpus`` GPUs is."""
        batches = -(-packs // (self.batch_size * gpus))
        if self.through_trainer:
            steps, passes = trainer_passes(batches, self.accumulation, self.trainer)
            validations = -(-steps // -(-steps // int(self.trainer.get("validations", 6)))) if self.held_out_file else 0
            return Length(steps, passes, passes / batches, validations)
        settings = self.values.get("train_cfg") or {}
        passes = loop_passes(batches, self.accumulation, settings)
        validations = loop_validations(passes, self.accumulation, settings) if self.held_out_file else 0
        return Length(passes // self.accumulation, passes, passes / batches, validations)


def value_at(values: Any, key: str) -> Any:
    """The value at a dotted place of nested dicts and lists, None if there is none.

    >>> value_at({"hooks": [{"every": 10}]}, "hooks.0.every"), value_at({}, "hooks.0.every")
    (10, None)
    """
    for part in key.split("."):
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, Sequence) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return None
    return values


def _llm(values: Mapping[str, Any]) -> Mapping[str, Any]:
    model = values.get("model") or {}
    return model.get("llm") or model


def run_of(
    recipe: Recipe, shape: Shape, *, gpus: int = 1, deepspeed: str | None = None, data: Data | None = None
) -> Run:
    """The switches of ``recipe`` that decide about memory.

    Raises: UserError for an optimiser or a DeepSpeed configuration that is not known.
    """
    values = recipe.values
    model, llm = values.get("model") or {}, _llm(values)
    lora = model.get("lora") or values.get("lora") or {}
    quantisation = llm.get("quantization_config") or {}
    adapter = model.get("adapter_dtype", "float32")
    if recipe.pack_length is not None:
        tokens = recipe.pack_length * recipe.batch_size
    elif data is not None:
        tokens = sum(sorted(data.lengths, reverse=True)[: recipe.batch_size])
    else:
        tokens = recipe.max_length * recipe.batch_size
    zero = zero_of(recipe, deepspeed)
    dtypes = (llm.get("torch_dtype"), quantisation.get("bnb_4bit_compute_dtype"), adapter if lora else None)
    return Run(
        shape=shape,
        base=BASES[bool(quantisation.get("load_in_4bit")), bool(model.get("fp8_base"))],
        dtype_bytes=_bytes_of(llm.get("torch_dtype")),
        bfloat16=any("bfloat16" in str(each) or each == "auto" for each in dtypes),
        double_quant=bool(quantisation.get("bnb_4bit_use_double_quant")),
        rank=int(lora.get("r") or 8) if lora else 0,
        targets=tuple(lora.get("target_modules") or ("wqkv", "wo", "w1", "w2", "w3")) if lora else (),
        adapter_bytes=_bytes_of(adapter),
        optimiser=recipe.optimiser,
        checkpointing=bool(model.get("use_activation_checkpointing")),
        budget=float(model.get("activation_budget", 1.0)) if model.get("kernels") == "compile" else 1.0,
        tokens=max(tokens, recipe.padded_to),
        supervised=data.share if data else 0.4,
        accumulation=recipe.accumulation,
        gpus=gpus,
        zero=zero.stage,
        offload_optimiser=zero.offload_optimiser,
        offload_weights=zero.offload_weights,
        reply_tokens=int(recipe.replies.get("max_new_tokens", 96)) + 160 if recipe.replies is not None else 0,
    )


def _bytes_of(dtype: Any) -> int:
    """Bytes of a torch dtype by its name; what a recipe leaves out loads in float32, "auto" as InternLM2 is stored."""
    return 2 if "16" in str(dtype) or dtype == "auto" else 4


@dataclass(frozen=True)
class Zero:
    """What a DeepSpeed configuration divides among the GPUs, and what it moves to the host."""

    stage: int = 0
    offload_optimiser: bool = False
    offload_weights: bool = False


# XTuner's own configurations.
ZERO_BY_NAME = {
    "deepspeed_zero1": Zero(1),
    "deepspeed_zero2": Zero(2),
    "deepspeed_zero2_offload": Zero(2, offload_optimiser=True),
    "deepspeed_zero3": Zero(3),
    "deepspeed_zero3_offload": Zero(3, offload_optimiser=True, offload_weights=True),
}


def zero_of(recipe: Recipe, deepspeed: str | None) -> Zero:
    """What DeepSpeed does for a recipe: by a JSON file, by one of XTuner's names, or by the Trainer's own argument.

    Raises: UserError for a configuration that is not there, cannot be read or is refused by the Trainer.
    """
    given = deepspeed or (recipe.trainer.get("deepspeed") if recipe.through_trainer else None)
    if not given:
        return Zero()
    if isinstance(given, Mapping):
        settings = given
    elif Path(given).is_file():
        settings = _read_json(Path(given))
    elif given in ZERO_BY_NAME:
        return ZERO_BY_NAME[given]
    else:
        raise UserError(
            f"{given}: 没有这个 DeepSpeed 配置 / no such DeepSpeed configuration: use {', '.join(ZERO_BY_NAME)} or a JSON file"
        )
    if recipe.through_trainer:
        _agree(recipe, settings, str(deepspeed or "training_args.deepspeed"))
    zero = settings.get("zero_optimization") or {}
    stage = int(zero.get("stage") or 0)
    return Zero(
        stage,
        offload_optimiser=stage > 0 and _offloads(zero, "offload_optimizer", "cpu_offload"),
        offload_weights=stage == 3 and _offloads(zero, "offload_param", "cpu_offload_param"),
    )


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: 不是 JSON / is not JSON ({error}): 改正它 / correct it") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file}: 不是 JSON 对象 / is not a JSON object: 改正它 / correct it")
    return settings


def _offloads(zero: Mapping[str, Any], key: str, deprecated: str) -> bool:
    """Whether DeepSpeed keeps something off the GPU; what goes to NVMe is counted as the host's, an upper bound."""
    settings = zero.get(key)
    if not settings:
        return bool(zero.get(deprecated))
    # A part of the optimiser stays on the GPU with a ratio below 1: the plan takes it for all.
    return settings.get("device", "none") != "none" and settings.get("ratio", 1.0) == 1.0


def _agree(recipe: Recipe, settings: Mapping[str, Any], name: str) -> None:
    """XTuner overrules these numbers by the recipe's, but Transformers' Trainer ends with an error."""
    for key, own in (
        ("gradient_accumulation_steps", recipe.accumulation),
        ("train_micro_batch_size_per_gpu", recipe.batch_size),
    ):
        if settings.get(key) not in (None, "auto", own):
            raise UserError(
                f'{name}: [{key}] {settings[key]}: 配方写的是 {own} / the recipe says {own}: 改为 "auto" / make it "auto"'
            )


def all_recipes(folder: Path = CONFIGS) -> list[Recipe]:
    """Every recipe of configs/ that the plan can read."""
    found = []
    for path in sorted(folder.glob("*.py")):
        try:
            found.append(Recipe.read(path.resolve()))
        except UserError:
            continue
    return found
