"""What `make` would run, in which order."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from huanhuan.paths import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make here")


def commands(target: str, changed: str) -> str:
    """The commands of ``make TARGET`` after ``changed`` was changed; nothing is run."""
    result = subprocess.run(["make", "-n", "-W", changed, target], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout


def test_a_changed_script_is_converted_before_the_base_reads_it() -> None:
    """Otherwise pretraining would leave out what was held out before the change, and read what is held out now."""
    told = commands("character", "data/huanhuan/script/第二集.txt")
    steps = ["tools/dialogue_to_jsonl.py", "tools/make_tiny_base.py", "xtuner train", "tools/merge_hf.py"]
    places = [told.index(step) for step in steps]
    assert places == sorted(places)


def test_the_demo_writes_its_own_model_only() -> None:
    told = commands("demo", "data/huanhuan/persona.toml")
    assert set(re.findall(r"models/[\w-]+", told)) == {"models/tiny-internlm2", "models/huanhuan-demo"}


def test_settings_for_another_model_do_not_reach_the_demo() -> None:
    told = commands("demo", "data/huanhuan/persona.toml")
    assert re.search(r"HUANHUAN_BASE=\S*models/tiny-internlm2 xtuner train", told)
    assert "-u HUANHUAN_API_BASE" in told and "HUANHUAN_ENGINE=transformers" in told
