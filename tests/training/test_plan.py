"""Plans: what is read from a recipe, how data is counted, what is proposed instead."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from huanhuan.errors import UserError
from huanhuan.paths import CONFIGS, ROOT
from huanhuan.training import base
from huanhuan.training.alternatives import alternatives
from huanhuan.training.machine import Machine, this_machine
from huanhuan.training.memory import GIB, SHAPES
from huanhuan.training.plan import Plan, Recipe, all_recipes, make_plan, run_of, shape_of
from huanhuan.training.plan_data import count_data
from huanhuan.training.plan_report import report
from huanhuan.training.recipe import find_recipe
from huanhuan.training.speed import CARDS, find_card, speed_of

RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.fixture(autouse=True)
def no_local_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(base.ENVIRONMENT, raising=False)
    monkeypatch.setattr(base, "MODELS", tmp_path / "models")


def plan_for(recipe: str, *overrides: str, gib: float | None = None, card: str | None = None, gpus: int = 1) -> Plan:
    return make_plan(Recipe.read(find_recipe(recipe), overrides), this_machine(gib, gpus, card))


def test_the_switches_are_read_from_the_recipe() -> None:
    qlora = run_of(Recipe.read(find_recipe("huanhuan_qlora")), SHAPES["7b"])
    assert (qlora.base, qlora.rank, qlora.checkpointing, qlora.tokens) == ("nf4", 64, True, 8192)
    assert (qlora.double_quant, qlora.adapter_bytes, qlora.optimiser) == (True, 4, "adamw")
    overrides = [
        "model.use_activation_checkpointing=False",
        "train_dataloader.dataset.pack_length=4096",
        "model.lora.r=8",
    ]
    changed = run_of(Recipe.read(find_recipe("huanhuan_qlora"), overrides), SHAPES["7b"])
    assert (changed.rank, changed.checkpointing, changed.tokens) == (8, False, 4096)
    full = run_of(Recipe.read(find_recipe("huanhuan_full")), SHAPES["7b"], gpus=8, deepspeed="deepspeed_zero3_offload")
    assert (full.base, full.rank, full.zero, full.offload_weights, full.gpus) == ("plain", 0, 3, True, 8)
    assert run_of(Recipe.read(find_recipe("huanhuan_lora_fp8")), SHAPES["7b"]).base == "fp8"


def test_transformers_trainer_has_settings_of_its_own() -> None:
    overrides = ["training_args.gradient_accumulation_steps=4", "training_args.num_train_epochs=2"]
    planned = plan_for("huanhuan_lora_transformers", *overrides, card="H200")
    assert planned.run.changed(accumulation=1, reply_tokens=0) == run_of(
        Recipe.read(find_recipe("huanhuan_lora")), SHAPES["7b"], data=planned.data
    ).changed(reply_tokens=0)
    assert planned.run.accumulation == 4
    assert planned.positions == 2 * planned.data.packs(8192) * 8192
    assert planned.validation_tokens == planned.reply_tokens == 0


def test_the_sizes_are_those_of_the_local_base_or_of_the_name(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (
        ("internlm/internlm2-chat-7b", "7b"),
        ("internlm/internlm2-chat-1_8b", "1.8b"),
        ("internlm/internlm2_5-1_8b-chat", "1.8b"),
        ("internlm/internlm2_5-7b-chat", "7b"),
        ("Shanghai_AI_Laboratory/internlm2-chat-20b", "20b"),
    ):
        assert shape_of(name) == SHAPES[size]
    for name in ("internlm/internlm2-chat-17b", "someone/model", "someone/other-7b"):
        with pytest.raises(UserError, match=name):
            shape_of(name)
    monkeypatch.setenv(base.ENVIRONMENT, str(tiny_base))
    assert shape_of("someone/model").hidden == 64


def test_a_base_of_another_kind_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": "wide"}', "utf-8")
    monkeypatch.setenv(base.ENVIRONMENT, str(tmp_path))
    with pytest.raises(UserError, match=r"config\.json"):
        shape_of("someone/model")


def test_tokens_are_counted_as_training_counts_them(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    from huanhuan.training.data import DialogueDataset

    tokenizer = AutoTokenizer.from_pretrained(tiny_base, trust_remote_code=True)
    for max_length in (400, 900):
        trained = DialogueDataset("data/huanhuan/train.jsonl", tokenizer, max_length, pack_length=1024)
        counted = count_data("data/huanhuan/train.jsonl", max_length, tiny_base)
        assert list(counted.lengths) == [len(each.input_ids) for each in trained.dialogues]
        assert counted.supervised == sum(each.supervised for each in trained.dialogues)
        assert counted.packs(1024) == len(trained)
        assert counted.exact


def test_estimated_tokens_follow_the_characters(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    conversation = [{"system": "甲" * 10, "input": "乙" * 20, "output": "丙" * 30}]
    file.write_text(json.dumps({"conversation": conversation}), "utf-8")
    data = count_data(str(file), 2048, None)
    # One token begins; three messages of 7, 14 and 21 tokens, each with five around it.
    assert data.lengths == (1 + 7 + 14 + 21 + 15,)
    assert data.supervised == 22
    assert not data.exact
    assert count_data(str(file), 50, None).lengths == ()


def test_the_committed_qlora_recipe_runs_on_16_gib() -> None:
    assert plan_for("huanhuan_qlora", gib=15.6).fits
    assert not plan_for("huanhuan_lora", gib=15.6).fits


@pytest.mark.parametrize("gib", [12, 24, 40, 80])
@pytest.mark.parametrize("recipe", [name for name in RECIPES if "demo" not in name])
def test_what_is_proposed_fits(recipe: str, gib: float) -> None:
    refused = plan_for(recipe, gib=gib)
    if refused.fits:
        assert list(report(refused, []))[-1].endswith("it runs")
        return
    proposed = alternatives(refused, all_recipes())
    assert proposed
    for each in proposed:
        name, *arguments = shlex.split(each.arguments)
        gpus = int(arguments[arguments.index("--nproc") + 1]) if "--nproc" in arguments else 1
        deepspeed = arguments[arguments.index("--deepspeed") + 1] if "--deepspeed" in arguments else None
        overrides = [argument for argument in arguments if "=" in argument]
        again = make_plan(Recipe.read(find_recipe(name), overrides), this_machine(gib, gpus), deepspeed)
        assert again.fits, (each.arguments, again.obstacles)
        assert again.memory.peak == pytest.approx(each.peak, rel=0.02)


def test_fp8_needs_a_card_that_has_it() -> None:
    assert plan_for("huanhuan_lora_fp8", card="H100").fits
    (obstacle,) = plan_for("huanhuan_lora_fp8", card="A100").obstacles
    assert "FP8" in obstacle


@pytest.mark.parametrize(
    ("recipe", "deepspeed", "told"),
    [("huanhuan_qlora", "deepspeed_zero3", "NF4"), ("huanhuan_lora_fp8", "deepspeed_zero2", "FP8")],
)
def test_what_deepspeed_cannot_do_is_told(recipe: str, deepspeed: str, told: str) -> None:
    refused = make_plan(Recipe.read(find_recipe(recipe)), this_machine(139, 2), deepspeed)
    assert any(told in each for each in refused.obstacles)


def test_time_grows_with_epochs_and_shrinks_with_gpus() -> None:
    one = plan_for("huanhuan_qlora", card="H200")
    twice = plan_for("huanhuan_qlora", "train_cfg.max_epochs=6", card="H200")
    assert twice.positions == 2 * one.positions
    assert sum(twice.times.values()) > sum(one.times.values())
    assert one.speed is not None
    assert "measured" in one.speed.source
    two = plan_for("huanhuan_qlora", card="H200", gpus=2)
    assert two.times["训练 / training"] == pytest.approx(one.times["训练 / training"] / 2)
    slow = plan_for("huanhuan_qlora", card="RTX 3090").speed
    assert slow is not None
    assert "scaled" in slow.source
    assert slow.tokens < one.speed.tokens


def test_without_a_gpu_patience_decides() -> None:
    machine = Machine("CPU", 64 * GIB, 1, None, 64 * GIB, 8)
    assert make_plan(Recipe.read(find_recipe("huanhuan_qlora_demo")), machine).fits
    (obstacle,) = make_plan(Recipe.read(find_recipe("huanhuan_full"), ["train_cfg.max_epochs=30"]), machine).obstacles[
        -1:
    ]
    assert "GPU" in obstacle


def test_cards_have_one_name_each() -> None:
    for card in CARDS:
        assert find_card(f"NVIDIA {card.name}") == card
    assert find_card("Voodoo 2") is None
    assert find_card("") is None


def test_every_way_to_train_has_a_speed() -> None:
    for recipe in all_recipes():
        run = run_of(recipe, SHAPES["7b"])
        for checkpointing in (False, True):
            speed = speed_of(run.changed(checkpointing=checkpointing), find_card("H200"))
            assert speed is not None
            assert 3_000 < speed.tokens < 40_000


def test_recipes_are_all_read() -> None:
    assert sorted(recipe.path.stem for recipe in all_recipes()) == RECIPES
    assert (ROOT / "configs").is_dir()


def test_an_unknown_optimiser_is_an_error() -> None:
    with pytest.raises(UserError, match="Lion"):
        plan_for("huanhuan_full", "optim_wrapper.optimizer.type=Lion", gib=80)
