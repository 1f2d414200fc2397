"""Every recipe in configs/: it loads, survives a dump, and says what it is for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config

from huanhuan.paths import CONFIGS, ROOT
from huanhuan.persona import load_persona
from huanhuan.training.hooks import SampleRepliesHook

RECIPES = sorted(CONFIGS.glob("*.py"))
# A recipe that drops out of the glob would drop out of every test below.
EXPECTED = 10


def test_no_recipe_is_missed() -> None:
    assert len(RECIPES) == EXPECTED


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
class TestRecipe:
    def test_load_dump_reload(self, path: Path, tmp_path: Path) -> None:
        recipe = Config.fromfile(str(path))
        recipe.dump(str(tmp_path / "first.py"))
        reloaded = Config.fromfile(str(tmp_path / "first.py"), lazy_import=True)
        reloaded.dump(str(tmp_path / "second.py"))
        assert (tmp_path / "first.py").read_text() == (tmp_path / "second.py").read_text()

    def test_paths_exist_in_the_checkout(self, path: Path) -> None:
        recipe = Config.fromfile(str(path))
        assert load_persona(ROOT / recipe.persona).name == "甄嬛"
        for loader in (recipe.get("train_dataloader"), recipe.get("val_dataloader")):
            if loader is not None:
                assert (ROOT / loader.dataset.path).is_file()

    def test_header_has_the_commands_that_run_it(self, path: Path) -> None:
        header = path.read_text("utf-8").split('"""')[1]
        assert f"xtuner train configs/{path.name}" in header
        assert f"tools/merge_hf.py configs/{path.name} --out models/" in header

    def test_header_has_hardware_memory_and_time(self, path: Path) -> None:
        header = path.read_text("utf-8").split('"""')[1]
        if path.stem.endswith("_demo"):
            assert "Two CPU cores" in header
            return
        assert re.search(r"One .*GPU with \d+ GB", header)
        found = re.search(r"Peak ([\d.]+) GiB; ([\d,]+) tokens/s on an H200, a million tokens in (\d+) s", header)
        assert found
        row = re.search(rf"^\| `{path.stem}` \|.*$", (CONFIGS / "README.md").read_text("utf-8"), re.MULTILINE)
        assert row
        peak, rate, million = (cell.strip().split()[0] for cell in row.group().split("|")[4:8] if "%" not in cell)
        assert (found[1], found[3]) == (peak, million)
        assert float(found[2].replace(",", "")) == round(float(rate.replace(",", "")), -2)

    def test_only_the_demo_writes_the_demo_model(self, path: Path) -> None:
        header = path.read_text("utf-8").split('"""')[1]
        assert ("models/huanhuan-demo" in header) == path.stem.endswith("_demo")


def leaves(value: Any, at: str = "") -> dict[str, str]:
    """Every value of a nested configuration, by its dotted place."""
    if isinstance(value, dict):
        return {place: leaf for key, each in value.items() for place, leaf in leaves(each, f"{at}.{key}").items()}
    return {at: str(value)}


def test_the_demo_changes_only_what_the_small_base_needs() -> None:
    parent = leaves(Config.fromfile(str(CONFIGS / "huanhuan_qlora.py")).model.to_dict())
    demo = leaves(Config.fromfile(str(CONFIGS / "huanhuan_qlora_demo.py")).model.to_dict())
    changed = {place for place in parent.keys() | demo.keys() if parent.get(place) != demo.get(place)}
    assert changed <= {
        ".llm.torch_dtype",
        ".llm.quantization_config.bnb_4bit_compute_dtype",
        ".lora.target_modules",
        ".use_activation_checkpointing",
        ".kernels",
    }


def test_one_system_prompt() -> None:
    persona = load_persona(ROOT / "data/huanhuan/persona.toml")
    for name in ("train", "val"):
        for line in (ROOT / f"data/huanhuan/{name}.jsonl").read_text("utf-8").splitlines():
            assert json.loads(line)["conversation"][0]["system"] == persona.system


OWN = """from mmengine.config import read_base

with read_base():
    from .huanhuan_qlora import *

persona = "data/<角色>/persona.toml"
train_dataloader.dataset.path = "data/<角色>/train.jsonl"
val_dataloader.dataset.path = "data/<角色>/val.jsonl"
"""


@pytest.mark.parametrize("document", ["README.md", "README_en.md", "data/README.md"])
def test_a_recipe_for_another_character_is_what_the_documents_say(document: str, tmp_path: Path) -> None:
    # In a list it is indented.
    text = re.sub(r"(?m)^   (?=\S|    )", "", (ROOT / document).read_text("utf-8"))
    assert OWN in text or OWN.replace("<角色>", "<character>") in text
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "lin_qlora.py").write_text(OWN.replace("<角色>", "lin"), "utf-8")
    recipe = Config.fromfile(str(tmp_path / "configs" / "lin_qlora.py"))
    told = leaves(recipe.to_dict())
    assert not [place for place, value in told.items() if "data/huanhuan" in value]
    assert {value for value in told.values() if value.startswith("data/lin/")} == {
        "data/lin/train.jsonl",
        "data/lin/val.jsonl",
        "data/lin/persona.toml",
    }


def test_sampled_replies_are_asked_of_the_recipes_persona(tiny_tokenizer: Any, tmp_path: Path) -> None:
    card = tmp_path / "persona.toml"
    card.write_text(
        'name = "林晚"\nsystem = "扮演林晚"\ngreeting = "来啦？"\nstarters = ["要绣多久？", "在吗？"]\n', "utf-8"
    )
    recipe = Config.fromfile(str(CONFIGS / "huanhuan_qlora.py"))
    recipe.persona = str(card)
    (settings,) = [each for each in recipe.custom_hooks if "SampleReplies" in str(each["type"])]
    hook = SampleRepliesHook(tiny_tokenizer, **{k: v for k, v in settings.items() if k not in ("type", "tokenizer")})
    hook.before_run(SimpleNamespace(cfg=recipe))
    assert hook.system == "扮演林晚" and hook.starters == ("要绣多久？", "在吗？")
