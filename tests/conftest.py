"""Shared by every test: no network, two threads, and one tiny InternLM2 built from nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

# Set before anything imports a Hugging Face library or torch, which read them once; child processes inherit them.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[_name] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS = (
    "春风吹过长长的宫墙，院子里的海棠开了一半。",
    "她放下手里的茶盏，慢慢地说：“这件事不急，等天晴了再说吧。”",
    "你是谁？我是这园子里种花的人，姐姐从哪里来？",
    "夜里下了一场小雨，台阶上都是水，丫头提着灯走得很慢。",
    "“明天早些起来，我们一同去看梅花，好不好？”他笑着问。",
    "The old lamp was still burning when they came back, and nobody spoke.",
    "母亲的信写了三页，没有一句是抱怨，只问家里的人是否都好。",
    "月光落在水面上，风一来就碎了，像谁把镜子打破了一样。",
)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an InternLM2 with random weights (fp32, hidden 64, 2 layers, about 400 tokens). Do not write in it."""
    from huanhuan.training.tiny_base import build_random_base

    return build_random_base(tmp_path_factory.mktemp("tiny") / "tiny-internlm2", TEXTS)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base: Path) -> Any:
    """The tokenizer of :func:`tiny_base`, as ``AutoTokenizer`` loads it. Do not change it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base, trust_remote_code=True)
