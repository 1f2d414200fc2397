"""The demo's character has learnt her lines, and it is the tuning that taught them.

Needs what `make character` builds: models/huanhuan-demo and models/tiny-internlm2, or the folders named by the
environment variables HUANHUAN_DEMO_MODEL and HUANHUAN_DEMO_BASE.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from huanhuan.evaluate.metrics import chrf
from huanhuan.paths import DATA, MODELS
from huanhuan.persona import load_persona
from huanhuan.template import Message, encode, stop_ids

# The model takes minutes to make: `make test-slow` makes it first.
pytestmark = pytest.mark.slow

PERSONA = load_persona(DATA / "huanhuan/persona.toml")
RECOGNISABLE, UNRELATED = 80, 30  # chrF

Reply = Callable[[list[Message]], str]


@cache
def her_lines() -> dict[str, str]:
    """What she answers in the training scenes, by what is said to her."""
    lines = (DATA / "huanhuan/train.jsonl").read_text("utf-8").splitlines()
    exchanges = [exchange for line in lines for exchange in json.loads(line)["conversation"]]
    return {exchange["input"]: exchange["output"] for exchange in exchanges}


def folder_of(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable) or MODELS / name)
    if not (folder / "config.json").is_file():
        pytest.fail(
            f"{folder}: 还没有这个模型 / no such model yet: run `make character`, or set {variable}", pytrace=False
        )
    return folder


def greedy(folder: Path) -> Reply:
    """Greedy replies of the model in ``folder``, through the one template."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

    def reply(messages: list[Message]) -> str:
        prompt = torch.tensor([encode(tokenizer, messages)])
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=80,
            do_sample=False,
            eos_token_id=stop_ids(tokenizer),
            pad_token_id=tokenizer.eos_token_id,
        )
        return tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)

    return reply


@pytest.fixture(scope="module")
def character() -> Reply:
    return greedy(folder_of("HUANHUAN_DEMO_MODEL", "huanhuan-demo"))


@pytest.fixture(scope="module")
def base() -> Reply:
    return greedy(folder_of("HUANHUAN_DEMO_BASE", "tiny-internlm2"))


def first_message(text: str) -> list[Message]:
    return [{"role": "system", "content": PERSONA.system}, {"role": "user", "content": text}]


def score(reply: str, starter: str) -> float:
    assert starter in her_lines(), f"{starter}: not said to her in a training scene"
    line = her_lines()[starter]
    found = chrf(reply, line)
    print(f"{found:5.1f}  {starter} → {reply}  （{line}）")
    return found


@pytest.mark.parametrize("starter", PERSONA.starters)
def test_a_starter_gets_her_line(character: Reply, starter: str) -> None:
    assert score(character(first_message(starter)), starter) >= RECOGNISABLE


@pytest.mark.parametrize("starter", PERSONA.starters)
def test_the_base_alone_does_not_know_it(base: Reply, starter: str) -> None:
    assert score(base(first_message(starter)), starter) < UNRELATED


def test_most_starters_get_her_line_after_another_one_too(character: Reply) -> None:
    found = []
    for first, second in itertools.permutations(PERSONA.starters, 2):
        opening = first_message(first)
        said: Message = {"role": "assistant", "content": character(opening)}
        found.append(score(character([*opening, said, {"role": "user", "content": second}]), second))
    # 27 of 30 were measured; trained on whole scenes alone, it was none.
    assert sum(each >= RECOGNISABLE for each in found) >= 20
