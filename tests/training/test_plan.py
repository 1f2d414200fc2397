"""Plans: what is read from a recipe, how data is counted, what is proposed instead."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from huanhuan.errors import UserError
from huanhuan.paths import CONFIGS, ROOT
from huanhuan.training import base
from huanhuan.training.alternatives import alternatives
from huanhuan.training.machine import Machine, this_machine
from huanhuan.training.memory import GIB, SHAPES
from huanhuan.training.plan import DEMO_BASE, Plan, make_plan, shape_of
from huanhuan.training.plan_data import count_data
from huanhuan.training.plan_recipe import ZERO_BY_NAME, Recipe, Zero, all_recipes, run_of, zero_of
from huanhuan.training.plan_report import report
from huanhuan.training.recipe import find_recipe
from huanhuan.training.speed import CARDS, MEASURED_THROUGH_TRAINER, MEASURED_TOKENS, find_card, speed_of

RECIPES = sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.fixture(autouse=True)
def no_local_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(base.ENVIRONMENT, raising=False)
    monkeypatch.setattr(base, "MODELS", tmp_path / "models")


def read(recipe: str, *overrides: str) -> Recipe:
    return Recipe.read(find_recipe(recipe), overrides)


def plan_for(
    recipe: str,
    *overrides: str,
    gib: float | None = None,
    card: str | None = None,
    gpus: int = 1,
    deepspeed: str | None = None,
) -> Plan:
    return make_plan(read(recipe, *overrides), this_machine(gib, gpus, card), deepspeed)


every_recipe = functools.cache(all_recipes)


def proposed_by(plan: Plan) -> dict[str, float]:
    """Peak by command line, of every proposal."""
    return {each.arguments: each.peak for each in alternatives(plan, every_recipe(), most=100)}


def test_the_switches_are_read_from_the_recipe() -> None:
    qlora = run_of(read("huanhuan_qlora"), SHAPES["7b"])
    assert (qlora.base, qlora.rank, qlora.checkpointing, qlora.tokens) == ("nf4", 64, True, 8192)
    assert (qlora.double_quant, qlora.adapter_bytes, qlora.optimiser) == (True, 4, "adamw")
    overrides = [
        "model.use_activation_checkpointing=False",
        "train_dataloader.dataset.pack_length=4096",
        "train_dataloader.collate_fn.pad_to=4096",
        "model.lora.r=8",
    ]
    changed = run_of(read("huanhuan_qlora", *overrides), SHAPES["7b"])
    assert (changed.rank, changed.checkpointing, changed.tokens) == (8, False, 4096)
    full = run_of(read("huanhuan_full"), SHAPES["7b"], gpus=8, deepspeed="deepspeed_zero3_offload")
    assert (full.base, full.rank, full.zero, full.offload_weights, full.gpus) == ("plain", 0, 3, True, 8)
    assert run_of(read("huanhuan_lora_fp8"), SHAPES["7b"]).base == "fp8"


def test_short_packs_are_as_long_as_what_they_are_filled_to() -> None:
    recipe = read("huanhuan_qlora", "train_dataloader.dataset.pack_length=4096")
    assert run_of(recipe, SHAPES["7b"]).tokens == 8192


@pytest.mark.parametrize("recipe", ["huanhuan_qlora_fp8", "huanhuan_qlora model.fp8_base=True"])
def test_fp8_products_over_nf4_are_a_base_of_their_own(recipe: str) -> None:
    name, *overrides = recipe.split()
    assert run_of(read(name, *overrides), SHAPES["7b"]).base == "nf4_fp8"
    assert plan_for(name, *overrides, card="H100").fits
    (obstacle,) = plan_for(name, *overrides, card="A100").obstacles
    assert "FP8" in obstacle
    assert any("FP8" in each for each in plan_for(name, *overrides, gib=80, deepspeed="deepspeed_zero2").obstacles)


def test_compressed_weights_do_not_train() -> None:
    refused = plan_for("huanhuan_qlora", "model.lora=None", card="H200")
    assert any("model.lora" in each for each in refused.obstacles)


def test_transformers_trainer_has_settings_of_its_own() -> None:
    overrides = ["training_args.gradient_accumulation_steps=4", "training_args.num_train_epochs=2"]
    overrides += ["training_args.min_steps=0", "training_args.held_out=None", "training_args.persona=None"]
    planned = plan_for("huanhuan_lora_transformers", *overrides, card="H200")
    assert planned.run.changed(accumulation=1, reply_tokens=0) == run_of(
        read("huanhuan_lora"), SHAPES["7b"], data=planned.data
    ).changed(reply_tokens=0)
    assert planned.run.accumulation == 4
    assert planned.positions == 2 * planned.data.packs(8192) * 8192
    assert planned.validation_tokens == planned.reply_tokens == 0


def test_what_the_trainer_does_not_read_changes_nothing() -> None:
    unheard = [
        "train_dataloader.dataset.pack_length=4096",
        "train_dataloader.collate_fn.pad_to=16384",
        "train_dataloader.batch_size=4",
        "optim_wrapper.accumulative_counts=8",
        "optim_wrapper.optimizer.type=AdamW8bit",
        "train_cfg.max_iters=5",
    ]
    plain, changed = (
        plan_for("huanhuan_lora_transformers", gib=80),
        plan_for("huanhuan_lora_transformers", *unheard, gib=80),
    )
    assert (changed.run, changed.length, changed.positions) == (plain.run, plain.length, plain.positions)
    heard = [
        "train_dataset.pack_length=2048",
        "training_args.per_device_train_batch_size=2",
        "training_args.optim=adamw_bnb_8bit",
        "training_args.max_steps=7",
    ]
    changed = plan_for("huanhuan_lora_transformers", *heard, gib=80)
    assert (changed.run.tokens, changed.run.optimiser, changed.length.steps) == (4096, "adamw8bit", 7)


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


def planned_as_written(arguments: str, machine: Machine) -> Plan:
    """The plan of a command line of tools/train.py."""
    name, *options = shlex.split(arguments)
    overrides = [each for each in options if "=" in each]
    given = dict(itertools.pairwise(options))
    gpus = int(given.get("--nproc", 1))
    return make_plan(Recipe.read(find_recipe(name), overrides), replace(machine, gpus=gpus), given.get("--deepspeed"))


@pytest.mark.parametrize(
    ("gib", "gpus", "deepspeed"),
    [
        *((gib, 1, None) for gib in (12, 24, 40, 80)),
        (24, 8, None),
        (24, 2, "deepspeed_zero2"),
        (40, 8, "deepspeed_zero3"),
    ],
)
@pytest.mark.parametrize("recipe", [name for name in RECIPES if "demo" not in name])
def test_what_is_proposed_fits_as_it_is_written(recipe: str, gpus: int, deepspeed: str | None, gib: float) -> None:
    refused = plan_for(recipe, gib=gib, gpus=gpus, deepspeed=deepspeed)
    if refused.fits:
        assert list(report(refused, []))[-1].endswith("it runs")
        return
    proposed = proposed_by(refused)
    assert proposed
    for arguments, peak in proposed.items():
        again = planned_as_written(arguments, refused.machine)
        assert again.fits, (arguments, again.obstacles)
        assert again.memory.peak == pytest.approx(peak)
        assert again.machine.gpus >= gpus


def test_the_same_recipe_is_proposed_with_its_gpus_and_deepspeed() -> None:
    first, *_ = proposed_by(plan_for("huanhuan_full", gib=40, gpus=8, deepspeed="deepspeed_zero3"))
    assert first.startswith("huanhuan_full --nproc 8 --deepspeed deepspeed_zero3 ")
    assert "pack_length=4096" in first


def test_settings_are_proposed_where_the_framework_reads_them() -> None:
    first, *_ = proposed_by(plan_for("huanhuan_lora_transformers", gib=40))
    assert shlex.split(first)[1:] == ["train_dataset.pack_length=4096", "training_args.gradient_accumulation_steps=2"]
    first, *_ = proposed_by(plan_for("huanhuan_lora", gib=40))
    assert not any("training_args" in each for each in shlex.split(first))


def test_what_is_asked_of_a_recipe_stays_in_the_proposal() -> None:
    asked = ["model.lora.target_modules=[wqkv,wo]", "optim_wrapper.accumulative_counts=3"]
    first, *_ = proposed_by(plan_for("huanhuan_lora", *asked, gib=30))
    again = planned_as_written(first, this_machine(30))
    assert again.run.targets == ("wqkv", "wo")
    assert again.run.accumulation * again.run.tokens == 3 * 8192


def test_another_recipe_is_proposed_for_the_same_character(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes((ROOT / "data/huanhuan/train.jsonl").read_bytes())
    persona = "data/other/persona.toml"
    own = [f"train_dataloader.dataset.path={tmp_path / 'train.jsonl'}", f"persona={persona}"]
    proposed = proposed_by(plan_for("huanhuan_full", *own, gib=60))
    others = [planned_as_written(each, this_machine(60)).recipe for each in proposed]
    assert {"huanhuan_qlora", "huanhuan_lora_transformers"} < {each.path.stem for each in others}
    for recipe in others:
        assert recipe.data_file == str(tmp_path / "train.jsonl")
        assert recipe.values["persona"] == persona


def test_a_recipe_of_another_folder_is_proposed_by_its_path(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text((CONFIGS / "huanhuan_lora.py").read_text("utf-8"), "utf-8")
    (tmp_path / "_base_").symlink_to(CONFIGS / "_base_")
    first, *_ = proposed_by(make_plan(Recipe.read(own), this_machine(40)))
    assert first.startswith(f"{own} ")


@pytest.mark.parametrize("gib", [1, 4, 24])
def test_the_demo_is_no_substitute_for_a_model(gib: float) -> None:
    refused = plan_for("huanhuan_full", gib=gib)
    for arguments in proposed_by(refused):
        assert planned_as_written(arguments, refused.machine).recipe.base != DEMO_BASE


@pytest.mark.parametrize("card", ["T4", "V100", "Tesla V100-SXM2-16GB"])
def test_a_card_without_bfloat16_runs_no_recipe_that_needs_it(card: str) -> None:
    for name in (each for each in RECIPES if "demo" not in each):
        refused = plan_for(name, card=card)
        assert sum("bfloat16" in each for each in refused.obstacles) == 1
        assert proposed_by(refused) == {}
    assert plan_for("huanhuan_qlora_demo", card=card).fits


def test_fp8_is_not_proposed_to_a_card_without_it() -> None:
    proposed = proposed_by(plan_for("huanhuan_lora_fp8", card="A100"))
    assert proposed
    assert not any("fp8" in each for each in proposed)


def test_fp8_needs_a_card_that_has_it() -> None:
    assert plan_for("huanhuan_lora_fp8", card="H100").fits
    (obstacle,) = plan_for("huanhuan_lora_fp8", card="A100").obstacles
    assert "FP8" in obstacle


@pytest.mark.parametrize(
    ("recipe", "deepspeed", "told"),
    [("huanhuan_qlora", "deepspeed_zero3", "NF4"), ("huanhuan_lora_fp8", "deepspeed_zero2", "FP8")],
)
def test_what_deepspeed_cannot_do_is_told(recipe: str, deepspeed: str, told: str) -> None:
    refused = plan_for(recipe, gib=139, gpus=2, deepspeed=deepspeed)
    assert any(told in each for each in refused.obstacles)


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 3}, Zero(3)),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, Zero(3, offload_optimiser=True)),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, Zero(3, offload_weights=True)),
        (
            {"stage": 3, "offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}},
            Zero(3),
        ),
        ({"stage": 3, "offload_optimizer": {}, "offload_param": None}, Zero(3)),
        # Some of the states stay on the GPU.
        ({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.3}}, Zero(3)),
        ({"stage": 3, "cpu_offload": True, "cpu_offload_param": True}, Zero(3, True, True)),
        # Only stage 3 divides weights, and so moves them.
        ({"stage": 2, "offload_param": {"device": "cpu"}}, Zero(2)),
        ({"stage": 1, "offload_optimizer": {"device": "cpu"}}, Zero(1, offload_optimiser=True)),
        ({"offload_optimizer": {"device": "cpu"}}, Zero()),
        (None, Zero()),
    ],
)
def test_deepspeeds_json_is_read(zero: Any, expected: Zero, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": zero}), "utf-8")
    assert zero_of(read("huanhuan_full"), str(file)) == expected
    run = run_of(read("huanhuan_full"), SHAPES["7b"], deepspeed=str(file))
    assert (run.zero, run.offload_optimiser, run.offload_weights) == (
        expected.stage,
        expected.offload_optimiser,
        expected.offload_weights,
    )


def test_offloading_the_optimiser_leaves_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    offload = {"device": "cpu", "pin_memory": True}
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": offload}}), "utf-8")
    divided = plan_for("huanhuan_full", gib=80, gpus=2, deepspeed="deepspeed_zero3").memory
    offloaded = plan_for("huanhuan_full", gib=80, gpus=2, deepspeed=str(file)).memory
    assert offloaded.weights == divided.weights > 0
    assert offloaded.optimiser == 0 < divided.optimiser


def test_xtuners_own_deepspeed_configurations_are_known() -> None:
    import xtuner

    folder = Path(str(xtuner.__file__)).parent / "configs" / "deepspeed"
    found = {file.stem: zero_of(read("huanhuan_full"), str(file)) for file in folder.glob("*.json")}
    assert found == ZERO_BY_NAME


@pytest.mark.parametrize(
    ("text", "told"), [("{", "JSON"), ("[1]", "JSON"), ('{"gradient_accumulation_steps": 8}', "auto")]
)
def test_a_deepspeed_file_that_training_would_refuse(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text(text, "utf-8")
    with pytest.raises(UserError, match=told):
        plan_for("huanhuan_lora_transformers", gib=80, deepspeed=str(file))


def test_xtuner_overrules_deepspeeds_accumulation(tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text('{"gradient_accumulation_steps": 8, "train_micro_batch_size_per_gpu": 4}', "utf-8")
    planned = plan_for("huanhuan_full", gib=80, deepspeed=str(file)).run
    assert (planned.accumulation, planned.tokens) == (1, 8192)


def test_the_trainers_own_deepspeed_argument_is_read() -> None:
    planned = plan_for("huanhuan_lora_transformers", "training_args.deepspeed=deepspeed_zero2", gib=80)
    assert planned.run.zero == 2


def test_time_grows_with_epochs_and_shrinks_with_gpus() -> None:
    one = plan_for("huanhuan_qlora", "train_cfg.max_epochs=60", card="H200")
    twice = plan_for("huanhuan_qlora", "train_cfg.max_epochs=120", card="H200")
    assert twice.positions == 2 * one.positions
    assert sum(twice.times.values()) > sum(one.times.values())
    assert one.speed is not None
    assert "measured" in one.speed.source
    two = plan_for("huanhuan_qlora", "train_cfg.max_epochs=60", card="H200", gpus=2)
    assert two.times["训练 / training"] == pytest.approx(one.times["训练 / training"] / 2)
    slow = plan_for("huanhuan_qlora", card="RTX 3090").speed
    assert slow is not None
    assert "scaled" in slow.source
    assert slow.tokens < one.speed.tokens


@pytest.mark.parametrize(
    ("overrides", "steps", "passes", "validations"),
    [
        # Two packs an epoch: thirty steps at least.
        ([], 30, 30, 6),
        (["optim_wrapper.accumulative_counts=4"], 30, 120, 6),
        (["train_cfg.min_steps=0"], 6, 6, 6),
        # Whole steps: six packs are one and a half of four.
        (["train_cfg.min_steps=0", "optim_wrapper.accumulative_counts=4"], 2, 8, 2),
        (["train_cfg.max_epochs=40"], 80, 80, 6),
        (["train_cfg.max_epochs=None", "train_cfg.max_iters=5"], 5, 5, 5),
        (["train_cfg.max_epochs=None", "train_cfg.max_iters=5", "optim_wrapper.accumulative_counts=2"], 3, 6, 3),
    ],
)
def test_a_run_is_as_long_as_the_loop_makes_it(overrides: list[str], steps: int, passes: int, validations: int) -> None:
    planned = plan_for("huanhuan_qlora", *overrides, card="H200")
    assert planned.data.packs(8192) == 2
    assert (planned.length.steps, planned.length.passes, planned.length.validations) == (steps, passes, validations)
    assert planned.positions == passes * 8192
    assert planned.times["训练 / training"] == pytest.approx(passes * 8192 / 12_417)
    assert planned.reply_tokens == 3 * 96 * (validations + 1)


def test_the_trainer_makes_as_many_steps_validations_and_replies() -> None:
    planned, own = (plan_for(name, card="H200") for name in ("huanhuan_lora_transformers", "huanhuan_lora"))
    assert planned.length == own.length
    assert (planned.positions, planned.validation_tokens) == (own.positions, own.validation_tokens)
    assert planned.reply_tokens == own.reply_tokens > 0


@pytest.mark.parametrize(
    ("override", "told"),
    [("train_cfg.max_iters=5", "max_epochs=None"), ("train_dataloader.dataset.pack_length=1024", "max_length")],
)
def test_settings_that_training_refuses_are_refused(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        plan_for("huanhuan_qlora", override, gib=80)


def recipe_table() -> dict[str, list[str]]:
    """The cells of the table of configs/README.md, by recipe: peak memory, tokens/s, of peak, seconds a million."""
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", (CONFIGS / "README.md").read_text("utf-8"), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")[2:]] for name, cells in rows}


def test_the_plan_of_a_measured_recipe_is_what_the_table_says() -> None:
    table = recipe_table()
    speeds = {name: int(cells[1].replace(",", "")) for name, cells in table.items() if cells[1][:1].isdigit()}
    assert len(speeds) >= 5
    assert set(speeds.values()) == {*MEASURED_TOKENS.values(), *MEASURED_THROUGH_TRAINER.values()}
    for name, (peak, _, _, million) in table.items():
        planned = plan_for(name, card="H200")
        assert planned.speed is not None
        assert ("measured" in planned.speed.source) == (name in speeds), name
        if name in speeds:
            assert planned.speed.tokens == pytest.approx(speeds[name], abs=0.5)
            assert 1e6 / planned.speed.tokens == pytest.approx(float(million.split()[0]), abs=0.6)
            assert planned.times["训练 / training"] == pytest.approx(planned.positions / speeds[name], rel=1e-4)
            assert planned.memory.peak / GIB == pytest.approx(float(peak.split()[0]), rel=0.15)


def test_what_was_not_measured_is_estimated() -> None:
    for recipe, *overrides in (
        ("huanhuan_lora", "model.use_activation_checkpointing=True"),
        ("huanhuan_full", "model.use_activation_checkpointing=True", "model.kernels=liger"),
        ("huanhuan_qlora_fast", "model.activation_budget=0.5"),
        ("huanhuan_qlora", "train_dataloader.collate_fn.pad_to=16384"),
    ):
        speed = plan_for(recipe, *overrides, card="H200").speed
        assert speed is not None
        assert "estimated" in speed.source
        assert "measured" not in speed.source


def test_without_a_gpu_patience_decides() -> None:
    machine = Machine("CPU", 64 * GIB, 1, None, 64 * GIB, 8)
    assert make_plan(read("huanhuan_qlora_demo"), machine).fits
    *_, obstacle = make_plan(read("huanhuan_full", "train_cfg.max_epochs=30"), machine).obstacles
    assert "GPU" in obstacle


def test_several_nodes_share_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNODES", "2")
    first, *_ = proposed_by(plan_for("huanhuan_full", gib=40, gpus=8, deepspeed="deepspeed_zero3"))
    assert "--nproc 4 " in first


def test_cards_have_one_name_each() -> None:
    for card in CARDS:
        assert find_card(f"NVIDIA {card.name}") == card
    for name in ("Voodoo 2", "", "NVIDIA", "RTX"):
        assert find_card(name) is None


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("rtx 3090", "RTX 3090"),
        ("a6000", "RTX A6000"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("A100", "A100 80GB"),
        ("A100 40GB", "A100 40GB"),
        ("A100 40 GiB", "A100 40GB"),
        ("A100-40G", "A100 40GB"),
        ("A100 20GB", None),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GH200 480GB", "GH200 480GB"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti 16GB"),
        ("RTX 4060 Ti 8GB", "RTX 4060 Ti 8GB"),
        ("RTX 4090 48GB", None),
        # Others, whose names begin or end alike.
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A3000 Laptop GPU", None),
        ("NVIDIA T400 4GB", None),
        ("Quadro RTX 6000", None),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4060", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
    ],
)
def test_a_card_is_known_by_whole_words_and_its_memory(name: str, card: str | None) -> None:
    found = find_card(name)
    assert (found.name if found else None) == card


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
