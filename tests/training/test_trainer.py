"""The same training through Transformers' Trainer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from xtuner.model.utils import LoadWoInit

from huanhuan.errors import UserError
from huanhuan.paths import CONFIGS, ROOT
from huanhuan.training import trainer as trainer_module
from huanhuan.training import zero3
from huanhuan.training.curves import read_curves
from huanhuan.training.data import DialogueDataset, collate_pack
from huanhuan.training.metrics import Perplexity
from huanhuan.training.model import PackedFinetune
from huanhuan.training.recipe import load_recipe
from huanhuan.training.trainer import PackedTrainer, PackedTrainingArguments, Stopwatch

RECORDS = [
    {"conversation": [{"input": "你是谁？", "output": "我是种花的人。"}]},
    {"conversation": [{"input": "早些起来", "output": "好。"}, {"input": "下雨了", "output": "那就等天晴了再说吧。"}]},
    {"conversation": [{"input": "月光", "output": "碎了"}]},
    {"conversation": [{"input": "姐姐从哪里来？", "output": "从水边来，走得很慢。"}]},
]


def build(folder: Path) -> PackedFinetune:
    llm = ConfigDict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=str(folder),
        trust_remote_code=True,
        torch_dtype=torch.float32,
    )
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["wqkv", "wo", "w1", "w2", "w3"], task_type="CAUSAL_LM")
    return PackedFinetune(llm, lora=lora, device_map={"": 0})


@pytest.fixture
def dataset(tmp_path: Path, tiny_tokenizer: Any) -> DialogueDataset:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in RECORDS), "utf-8")
    return DialogueDataset(str(path), tiny_tokenizer, max_length=128)


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "val.jsonl"
    records = [*RECORDS[1:], {"conversation": [{"input": "早些起来", "output": "碎了"}]}]
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), "utf-8")
    return path


def arguments(folder: Path, **options: Any) -> PackedTrainingArguments:
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "remove_unused_columns": False,
        "report_to": [],
        "max_grad_norm": 0.0,
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": 1,
    }
    return PackedTrainingArguments(output_dir=str(folder), **(defaults | options))


def trainer_of(model: PackedFinetune, dataset: DialogueDataset, folder: Path, **options: Any) -> PackedTrainer:
    return PackedTrainer(model=model, args=arguments(folder, **options), train_dataset=dataset, data_collator=None)


def adapter_in(model: PackedFinetune) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}


def test_a_step_over_accumulated_packs_is_a_step_over_their_tokens(
    tiny_base: Path, dataset: DialogueDataset, tmp_path: Path
) -> None:
    model = build(tiny_base)
    before = adapter_in(model)
    expected = model.compute_loss(collate_pack([dataset[index] for index in range(4)])["data"])["loss"]
    expected.backward()
    # Plain gradient descent at a rate of 1: the step is the gradient.
    want = {name: -each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    trainer = trainer_of(model, dataset, tmp_path / "run", max_steps=1, gradient_accumulation_steps=4)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-4)
    for name, parameter in model.named_parameters():
        if name in want:
            torch.testing.assert_close(parameter.detach() - before[name], want[name], rtol=1e-3, atol=1e-6)


def test_adapters_are_initialised_where_xtuner_turns_that_off(tiny_base: Path) -> None:
    with LoadWoInit():
        model = build(tiny_base)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            bound = parameter.shape[1] ** -0.5
            assert 0.5 * bound < float(parameter.detach().abs().max()) <= bound
        elif "lora_B" in name:
            assert not parameter.any()


def test_the_held_out_loss_is_the_mean_over_supervised_tokens(
    tiny_base: Path, dataset: DialogueDataset, held_out: Path, tmp_path: Path
) -> None:
    model = build(tiny_base)
    trainer = trainer_of(
        model, dataset, tmp_path / "run", held_out=str(held_out), per_device_eval_batch_size=3, max_steps=1
    )
    one_by_one = DialogueDataset(str(held_out), dataset.tokenizer, dataset.max_length)
    results = [result for index in range(4) for result in model.predict(**collate_pack([one_by_one[index]]))]
    expected = Perplexity().compute_metrics(results)
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert trainer.state.log_history == [found | {"step": 0}]
    assert model.training


def test_the_checkpoint_with_the_lowest_held_out_loss_is_kept_and_loaded(
    tiny_base: Path, dataset: DialogueDataset, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny_base)
    losses = iter([3.0, 1.0, 2.0, 2.5])
    seen: list[dict[str, torch.Tensor]] = []

    def predict(data: Any, data_samples: Any) -> list[dict[str, float]]:
        seen.append(adapter_in(model))
        return [{"negative_log_likelihood": next(losses), "tokens": 1}]

    monkeypatch.setattr(model, "predict", predict)
    trainer = trainer_of(
        model,
        dataset,
        tmp_path / "run",
        held_out=str(held_out),
        per_device_eval_batch_size=4,
        validations=4,
        max_steps=10,
        save_strategy="steps",
        save_total_limit=2,
        load_best_model_at_end=True,
        learning_rate=0.1,
    )
    trainer.train()
    evaluated = [each["step"] for each in trainer.state.log_history if "eval_loss" in each]
    assert evaluated == [3, 6, 9, 10]
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-6"]
    for name, value in adapter_in(model).items():
        assert torch.equal(value, seen[1][name])
        assert "lora_B" not in name or not torch.equal(value, seen[3][name])


def test_training_ends_early_once_patience_is_spent(
    tiny_base: Path, dataset: DialogueDataset, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny_base)
    losses = iter([1.0, 2.0, 2.0, 0.5])
    monkeypatch.setattr(model, "predict", lambda **_: [{"negative_log_likelihood": next(losses), "tokens": 1}])
    options: dict[str, Any] = {"validations": 4, "max_steps": 8, "per_device_eval_batch_size": 4, "patience": 2}
    options |= {"save_strategy": "steps", "load_best_model_at_end": True, "held_out": str(held_out)}
    trainer = trainer_of(model, dataset, tmp_path / "run", **options)
    trainer.train()
    assert trainer.state.global_step == 6


def test_validations_are_counted_from_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="held_out=None"):
        arguments(tmp_path, validations=0)


def test_without_held_out_replies_there_is_no_best(tmp_path: Path) -> None:
    assert not arguments(tmp_path, load_best_model_at_end=True, save_strategy="steps").load_best_model_at_end


def test_a_small_data_set_is_gone_through_more_often(tiny_base: Path, dataset: DialogueDataset, tmp_path: Path) -> None:
    model = build(tiny_base)
    for accumulation, least, steps in ((1, 30, 30), (2, 3, -1), (4, 4, 4)):
        trainer = trainer_of(
            model,
            dataset,
            tmp_path / "run",
            num_train_epochs=3,
            min_steps=least,
            gradient_accumulation_steps=accumulation,
        )
        assert trainer.args.max_steps == steps
    assert trainer_of(model, dataset, tmp_path / "run", max_steps=2, min_steps=30).args.max_steps == 2


def test_of_several_gpus_without_a_launcher_one_is_used(
    tiny_base: Path, dataset: DialogueDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(trainer_module, "print_log", lambda text, _: said.append(text))
    args = arguments(tmp_path / "run", max_steps=1)
    args._n_gpu = 2
    trainer = PackedTrainer(model=build(tiny_base), args=args, train_dataset=dataset)
    trainer.train()
    assert not isinstance(trainer.model_wrapped, torch.nn.DataParallel)
    (line,) = said
    assert "NPROC_PER_NODE=2 xtuner train" in line and "--nproc 2" in line


def test_a_loss_that_is_no_number_ends_the_run(
    tiny_base: Path, dataset: DialogueDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tiny_base)
    trainer = trainer_of(model, dataset, tmp_path / "run", max_steps=4)
    right = model.compute_loss

    def compute(data: Any, data_samples: Any = None) -> Any:
        return {"loss": right(data)["loss"] * (float("nan") if trainer.state.global_step == 2 else 1)}

    monkeypatch.setattr(model, "compute_loss", compute)
    with pytest.raises(UserError, match=r"step 3: .*\(records train\.jsonl:\d\)"):
        trainer.train()


def test_adapters_begin_as_the_seed_says(tiny_base: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (1, 1, 2):
        arguments(tmp_path, seed=seed)
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_stopwatch_counts_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    watch = Stopwatch()
    assert watch.rate() == 0
    watch.step(100)
    now = 1.0
    watch.step(300)
    now = 2.0
    watch.pause()
    watch.pause()
    now = 50.0
    watch.step(500)
    now = 51.0
    assert watch.rate() == pytest.approx(900 / 3)
    now = 53.0
    watch.step(10)
    assert watch.rate() == pytest.approx(10 / 2)


@pytest.mark.parametrize("rank", [None, "0"])
def test_deepspeed_needs_no_launcher(monkeypatch: pytest.MonkeyPatch, rank: str | None) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        # Set first, so that what the function sets is undone too.
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    zero3.join_lone_process(uses_deepspeed=False)
    assert "WORLD_SIZE" not in os.environ
    zero3.join_lone_process(uses_deepspeed=True)
    assert [name in os.environ for name in names] == ([True] * 5 if rank is None else [True] + [False] * 4)


def test_what_the_base_recipe_says_reaches_trainer(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs")
    base = tmp_path / "configs" / "_base_" / "character.py"
    text = base.read_text("utf-8")
    for old, new in (
        ("lr=2e-4", "lr=7e-5"),
        ("betas=(0.9, 0.999)", "betas=(0.8, 0.95)"),
        ("weight_decay=0,", "weight_decay=0.1,"),
        ("max_norm=1,", "max_norm=0.5,"),
        ("accumulative_counts=1", "accumulative_counts=4"),
        ("warmup=0.03", "warmup=0.2"),
        ("max_epochs = 3", "max_epochs = 5"),
        ("min_steps=30", "min_steps=40"),
        ("validations=6", "validations=3"),
        ("patience=None", "patience=2"),
        ("seed=42", "seed=1"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    base.write_text(text, "utf-8")
    found = load_recipe(tmp_path / "configs" / "huanhuan_lora_transformers.py").training_args
    wanted = {
        "learning_rate": 7e-5,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "gradient_accumulation_steps": 4,
        "warmup_ratio": 0.2,
        "num_train_epochs": 5,
        "min_steps": 40,
        "validations": 3,
        "patience": 2,
        "seed": 1,
    }
    assert {name: found[name] for name in wanted} == wanted


@dataclass(frozen=True)
class Run:
    """A finished run of the recipe."""

    folder: Path
    output: str

    def logged(self, name: str) -> dict[int, float]:
        """Values by step."""
        state = json.loads((self.folder / "trainer_state.json").read_text("utf-8"))
        return {each["step"]: each[name] for each in state["log_history"] if name in each}


@pytest.fixture(scope="module")
def train(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Train the recipe for three steps through XTuner's own script, each run once only.

    ``changes`` are ``--cfg-options``, ``options`` XTuner's others.
    """
    parent = tmp_path_factory.mktemp("trainer")
    lines = (ROOT / "data" / "huanhuan" / "val.jsonl").read_text("utf-8").splitlines()[:3]
    (parent / "few.jsonl").write_text("\n".join(lines), "utf-8")
    done: dict[str, Run] = {}

    def run(name: str, *changes: str, options: Sequence[str] = ()) -> Run:
        if name in done:
            return done[name]
        folder = parent / name
        command = [sys.executable, "-m", "huanhuan.training.run_xtuner"]
        command += [str(CONFIGS / "huanhuan_lora_transformers.py"), "--work-dir", str(folder), *options]
        command += ["--cfg-options", "model.llm.torch_dtype=float32", "train_dataset.max_length=512"]
        command += ["train_dataset.pack_length=512", "training_args.save_steps=2", "training_args.report_to=none"]
        command += ["training_args.max_steps=3", "training_args.validations=2", "training_args.learning_rate=1e-2"]
        command += [f"training_args.held_out={parent / 'few.jsonl'}", *changes]
        environment = os.environ | {"HUANHUAN_BASE": str(tiny_base), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, cwd=parent, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert result.returncode == 0, result.stderr[-3000:]
        done[name] = Run(folder, result.stdout + result.stderr)
        return done[name]

    return run


@pytest.mark.slow
def test_the_recipe_trains_saves_and_resumes(train: Callable[..., Run]) -> None:
    run = train("run")
    loss = run.logged("loss")
    assert list(loss) == [1, 2, 3]
    assert loss[3] < loss[1]
    held_out = run.logged("eval_loss")
    assert list(held_out) == [2, 3]
    assert all(value > 0 for value in run.logged("tokens_per_second").values())
    for step in (0, 2, 3):
        assert run.output.count(f"[{step}] ") == 3

    assert {path.name for path in run.folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    best = min(held_out, key=lambda step: held_out[step])
    kept, written = (
        load_file(folder / "adapter_model.safetensors") for folder in (run.folder / f"checkpoint-{best}", run.folder)
    )
    assert kept.keys() == written.keys()
    assert all(torch.equal(kept[name], written[name]) for name in kept)

    curves = read_curves(run.folder)
    assert {"loss", "held_out/loss", "held_out/perplexity", "lr", "tokens_per_second"} <= curves.values.keys()

    resumed = train("resumed", options=["--resume", str(run.folder / "checkpoint-2")])
    assert resumed.logged("loss") == pytest.approx(loss, rel=1e-4)
    assert resumed.logged("eval_loss") == pytest.approx(held_out, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "method"), [(3, "lora"), (3, "full"), (2, "lora")])
def test_under_deepspeed_the_same_is_saved(train: Callable[..., Run], stage: int, method: str) -> None:
    # Adam would make the whole of a step of what is next to nothing in the gradient.
    changes = ["training_args.optim=sgd", "training_args.persona=None"]
    changes += ["model.lora=None"] if method == "full" else []
    alone = train(method, *changes)
    options = ["--deepspeed", f"deepspeed_zero{stage}"]
    divided = train(f"{method}-zero{stage}", *changes, options=options)
    assert divided.logged("loss") == pytest.approx(alone.logged("loss"), rel=1e-4)
    assert divided.logged("eval_loss") == pytest.approx(alone.logged("eval_loss"), rel=1e-6)
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    expected, found = (load_file(each.folder / file) for each in (alone, divided))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-7)
    options += ["--resume", str(divided.folder / "checkpoint-2")]
    resumed = train(f"{method}-zero{stage}-resumed", *changes, options=options)
    assert resumed.logged("eval_loss") == pytest.approx(alone.logged("eval_loss"), rel=1e-6)
