"""The adapter folder is PEFT's own, and a checkpoint that does not belong to the recipe is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from huanhuan.errors import UserError
from huanhuan.export.run import export

IDS = torch.tensor([[1, 300, 301, 17]])


def recipe_like(trained: Any, **changes: Any) -> Path:
    """The recipe of ``trained`` with other settings."""
    text = trained.recipe.read_text("utf-8")
    for key, value in changes.items():
        before, _, after = text.partition(f"{key}=")
        assert after, key
        old = next(
            end
            for end in range(len(after))
            if after[end:].startswith(", ") and after[:end].count("[") == after[:end].count("]")
        )
        text = f"{before}{key}={value!r}{after[old:]}"
    path = trained.recipe.with_name("other.py")
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"modules_to_save": ["output"], "target_modules": ["wqkv"]}])
def test_peft_loads_the_adapter(
    tiny_base: Path, train: Callable[..., Any], tmp_path: Path, lora: dict[str, Any]
) -> None:
    from peft import PeftModel  # pyright: ignore[reportPrivateImportUsage]

    trained = train(tiny_base, lora)
    out = tmp_path / "adapter"
    export(trained.recipe, out, checkpoint=str(trained.path), adapter_only=True)
    assert sorted(file.name for file in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "huanhuan.json",
    ]
    base = AutoModelForCausalLM.from_pretrained(tiny_base, trust_remote_code=True, torch_dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(base, str(out)).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=IDS).logits, trained.model(input_ids=IDS).logits)


def test_names_and_settings_are_those_peft_would_save(
    tiny_base: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    trained = train(tiny_base, {"alpha_pattern": {"w2": 4}})
    export(trained.recipe, tmp_path / "ours", checkpoint=str(trained.path), adapter_only=True)
    trained.model.save_pretrained(str(tmp_path / "peft"))
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (
        json.loads((tmp_path / name / "adapter_config.json").read_text("utf-8")) for name in ("ours", "peft")
    )
    assert ours.pop("base_model_name_or_path") == "someone/tiny-internlm2"
    for settings in (ours, theirs):
        settings["target_modules"] = sorted(settings["target_modules"])
    differing = {key for key in ours if ours[key] != theirs[key]}
    assert differing <= {"auto_mapping"}


def test_target_modules_left_to_xtuner_come_from_the_checkpoint(
    tiny_base: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    trained = train(tiny_base, {"target_modules": ["wqkv", "w1"]})
    recipe = recipe_like(trained, target_modules=None)
    export(recipe, tmp_path / "adapter", checkpoint=str(trained.path), adapter_only=True)
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text("utf-8"))
    assert sorted(settings["target_modules"]) == ["w1", "wqkv"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"r": 4}, "r: recipe 4, checkpoint 8"),
        ({"lora_alpha": 128}, "lora_alpha: recipe 128, checkpoint 16"),
        ({"target_modules": ["wqkv"]}, "target_modules"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    tiny_base: Path, train: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    trained = train(tiny_base)
    with pytest.raises(UserError) as caught:
        export(recipe_like(trained, **changes), tmp_path / "out", checkpoint=str(trained.path), adapter_only=True)
    assert any(expected in line for line in caught.value.problems)
    assert all("\n" not in line for line in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_without_a_copy_of_the_recipe_the_tensors_tell(
    tiny_base: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    trained = train(tiny_base)
    state = torch.load(trained.path, weights_only=False)["state_dict"]
    torch.save({"state_dict": state}, trained.path)
    with pytest.raises(UserError, match="rank 8, recipe r=4"):
        export(recipe_like(trained, r=4), tmp_path / "out", checkpoint=str(trained.path), adapter_only=True)
    recipe = recipe_like(trained, target_modules=["wqkv", "wo", "w1", "w2", "w3", "output", "gate"])
    with pytest.raises(UserError, match="gate"):
        export(recipe, tmp_path / "out", checkpoint=str(trained.path), adapter_only=True)


def test_options_given_to_training_are_given_again(tiny_base: Path, train: Callable[..., Any], tmp_path: Path) -> None:
    trained = train(tiny_base)
    recipe = recipe_like(trained, lora_alpha=128)
    options = ["model.lora.lora_alpha=16"]
    export(recipe, tmp_path / "out", checkpoint=str(trained.path), adapter_only=True, options=options)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text("utf-8"))["lora_alpha"] == 16


def test_full_and_lora_are_not_confused(tiny_base: Path, train: Callable[..., Any], tmp_path: Path) -> None:
    trained = train(tiny_base)
    full = tmp_path / "full.py"
    full.write_text("pretrained_model_name_or_path = 'x'\nmodel = dict(type='M')\n", "utf-8")
    with pytest.raises(UserError, match="has no adapter"):
        export(full, tmp_path / "out", checkpoint=str(trained.path), adapter_only=True)
    with pytest.raises(UserError, match=r"has no model\.lora"):
        export(full, tmp_path / "out", checkpoint=str(trained.path), base=tiny_base)
    torch.save({"state_dict": {"llm.output.weight": torch.ones(2)}}, tmp_path / "full.pth")
    with pytest.raises(UserError, match="not a LoRA checkpoint"):
        export(trained.recipe, tmp_path / "out", checkpoint=str(tmp_path / "full.pth"), base=tiny_base)


def test_an_adapter_that_diverged_is_refused(tiny_base: Path, train: Callable[..., Any], tmp_path: Path) -> None:
    trained = train(tiny_base)
    content = torch.load(trained.path, weights_only=False)
    next(iter(content["state_dict"].values()))[0, 0] = float("nan")
    torch.save(content, trained.path)
    with pytest.raises(UserError, match="NaN"):
        export(trained.recipe, tmp_path / "out", checkpoint=str(trained.path), adapter_only=True)


def test_initialisations_that_change_the_base_are_refused(
    tiny_base: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    trained = train(tiny_base, {"init_lora_weights": True})
    with pytest.raises(UserError, match="pissa"):
        export(
            recipe_like(trained, init_lora_weights="pissa_niter_4"),
            tmp_path / "out",
            checkpoint=str(trained.path),
            adapter_only=True,
        )


def test_what_transformers_trainer_leaves_is_read_too(
    tiny_base: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    trained = train(tiny_base, {"target_modules": ["wqkv", "output"], "modules_to_save": ["norm"]})
    work_dir = tmp_path / "trainer"
    trained.model.save_pretrained(str(work_dir / "checkpoint-4"))
    for name, options in {"pth": {"checkpoint": str(trained.path)}, "trainer": {"work_dir": work_dir}}.items():
        export(trained.recipe, tmp_path / f"out-{name}", base=tiny_base, progress=False, **options)
    pth, trainer = (load_file(tmp_path / f"out-{name}/model.safetensors") for name in ("pth", "trainer"))
    assert pth.keys() == trainer.keys() and all(torch.equal(pth[name], trainer[name]) for name in pth)
    with pytest.raises(UserError, match="lora_alpha: recipe 128, checkpoint 16"):
        export(recipe_like(trained, lora_alpha=128), tmp_path / "x", work_dir=work_dir, base=tiny_base)


def test_a_whole_model_of_transformers_trainer_is_read_too(
    make_base: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "full.py"
    recipe.write_text(
        "pretrained_model_name_or_path = 'x'\nmodel = dict(type='M')\ntraining_args = dict(output_dir='trainer')\n",
        "utf-8",
    )
    trained = make_base()
    export(recipe, tmp_path / "out", work_dir=trained, base=tiny_base, progress=False)
    expected: dict[str, torch.Tensor] = {}
    for file in trained.glob("*.safetensors"):
        expected |= load_file(file)
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
