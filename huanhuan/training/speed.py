"""How fast a recipe trains: measured where it was measured, else scaled from there by a card's peak."""

from __future__ import annotations

import re
from dataclasses import dataclass

from huanhuan.training.memory import SHAPES, Run, Shape


@dataclass(frozen=True)
class Card:
    """A GPU as its data sheet has it."""

    name: str
    tflops: float
    """Dense bfloat16 (float16 where it has none) with float32 accumulation, in 10^12 a second."""
    gib: float
    """Memory that a program can use."""
    capability: tuple[int, int]

    @property
    def has_bf16(self) -> bool:
        """Ampere and newer."""
        return self.capability >= (8, 0)

    @property
    def has_fp8(self) -> bool:
        """Ada, Hopper, Blackwell."""
        return self.capability >= (8, 9)


# NVIDIA's data sheets, without sparsity. Of cards that differ only in memory the first is meant if none is named.
CARDS = (
    Card("B200", 2250, 178, (10, 0)),
    Card("GH200 480GB", 989, 94, (9, 0)),
    Card("GH200 120GB", 989, 94, (9, 0)),
    Card("H200", 989, 139.8, (9, 0)),
    Card("H200 NVL", 836, 139.8, (9, 0)),
    Card("H100 PCIe", 756, 79.2, (9, 0)),
    Card("H100 NVL", 836, 93.1, (9, 0)),
    Card("H100", 989, 79.2, (9, 0)),
    Card("H800", 989, 79.2, (9, 0)),
    Card("H20", 148, 95.6, (9, 0)),
    Card("A100 80GB", 312, 79.2, (8, 0)),
    Card("A100 40GB", 312, 39.4, (8, 0)),
    Card("A800 80GB", 312, 79.2, (8, 0)),
    Card("A800 40GB", 312, 39.4, (8, 0)),
    Card("L40S", 362, 44.4, (8, 9)),
    Card("L40", 181, 44.4, (8, 9)),
    Card("L4", 121, 22.0, (8, 9)),
    Card("RTX 6000 Ada", 364, 47.4, (8, 9)),
    Card("RTX A6000", 155, 47.4, (8, 6)),
    Card("A40", 150, 44.4, (8, 6)),
    Card("A30", 165, 23.6, (8, 0)),
    Card("A10G", 70, 22.0, (8, 6)),
    Card("A10", 125, 22.0, (8, 6)),
    Card("RTX 5090", 209, 31.4, (12, 0)),
    Card("RTX 5080", 113, 15.5, (12, 0)),
    Card("RTX 4090", 165, 23.6, (8, 9)),
    Card("RTX 4080", 97, 15.6, (8, 9)),
    Card("RTX 4080 SUPER", 104, 15.6, (8, 9)),
    Card("RTX 4060 Ti 16GB", 44, 15.6, (8, 9)),
    Card("RTX 4060 Ti 8GB", 44, 7.6, (8, 9)),
    Card("RTX 3090", 71, 23.6, (8, 6)),
    Card("RTX 3090 Ti", 80, 23.6, (8, 6)),
    Card("RTX 3060", 25, 11.6, (8, 6)),
    Card("V100 32GB", 125, 31.7, (7, 0)),
    Card("V100 16GB", 125, 15.8, (7, 0)),
    Card("T4", 65, 14.6, (7, 5)),
)
# What a driver writes before a name, and what makes another card of the same number.
MAKERS = {"nvidia", "geforce", "tesla"}
VARIANTS = {"ti", "super", "d", "laptop", "mobile", "max", "nvl", "mig"}


def find_card(name: str) -> Card | None:
    """The card whose words are all in ``name`` (what a driver reports), the one with most words; else the one card
    that has all words of ``name``; None if there is none, or none with the memory that ``name`` says.

    >>> find_card("NVIDIA GeForce RTX 4090").name, find_card("4090").name, find_card("A100-SXM4-40GB").name
    ('RTX 4090', 'RTX 4090', 'A100 40GB')
    >>> find_card("RTX A4000"), find_card("RTX 4090 Laptop GPU"), find_card("A100 20GB")
    (None, None, None)
    """
    words, sizes = _words(name)
    alike = [card for card in CARDS if _words(card.name)[0] & VARIANTS == words & VARIANTS]
    within = [card for card in alike if _words(card.name)[0] <= words]
    most = max((len(_words(card.name)[0]) for card in within), default=0)
    found = [card for card in within if len(_words(card.name)[0]) == most]
    if not found and words:
        found = [card for card in alike if words <= _words(card.name)[0]]
        if len({_words(card.name)[0] for card in found}) > 1:
            return None
    return next((card for card in found if not sizes or _has_memory(card, sizes)), None)


def _words(name: str) -> tuple[frozenset[str], frozenset[int]]:
    """The words of a card's name, and the gigabytes in it: of "NVIDIA A100-SXM4-40GB", a100 and sxm4, and 40."""
    name = name.lower()
    size = r"\b(\d+)\s*g(?:i?b)?\b"
    words = re.findall(r"[a-z0-9]+", re.sub(size, " ", name))
    return frozenset(words) - MAKERS, frozenset(map(int, re.findall(size, name)))


def _has_memory(card: Card, sizes: frozenset[int]) -> bool:
    """Whether a card is one of these sizes: by its name (a GH200's says the host's memory), else nearly."""
    own = _words(card.name)[1]
    return bool(own & sizes) if own else any(0.85 * size < card.gib <= size for size in sizes)


# Tokens per second on one H200 in packs of 8,192, by size, base, what is trained ("lora" or "full") and checkpointing,
# from `bench/train.py`: the table of configs/README.md.
MEASURED_ON, MEASURED_SHAPE, MEASURED_PACK = "H200", SHAPES["7b"], 8192
MEASURED_TOKENS = {
    ("7b", "nf4", "lora", False): 17_283,
    ("7b", "nf4", "lora", True): 12_417,
    ("7b", "nf4_fp8", "lora", False): 24_026,
    ("7b", "plain", "lora", False): 17_950,
    ("7b", "fp8", "lora", False): 25_938,
    ("7b", "plain", "full", False): 11_642,
    ("1.8b", "nf4", "lora", True): 24_625,
    ("1.8b", "plain", "full", True): 36_509,
}
MEASURED_THROUGH_TRAINER = {("7b", "plain", "lora", False): 17_209}
# What the recipes' loop was not measured at: packs of 16,384 and rows of 2,048 in loops of other kinds.
ESTIMATED_TOKENS = {
    ("7b", "plain", "lora", True): 12_222,
    ("7b", "plain", "full", True): 8_662,
}
# One CPU core in float32, and how much slower most CPUs are in bfloat16: a 512-token step of a base of 4 million
# weights took 0.17 s on two cores, and 12 to 25 times that in bfloat16.
CORE_FLOPS, CPU_BF16_FACTOR = 24e9, 18


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all GPUs together, padding counted, and where the number comes from."""

    tokens: float
    source: str


def weights_in_products(shape: Shape) -> int:
    """All weights but the embedding, which is looked up and not multiplied."""
    return shape.parameters - shape.vocabulary * shape.hidden


def speed_of(run: Run, card: Card | None, *, cores: int = 0, through_trainer: bool = False) -> Speed | None:
    """The expected speed on ``card``, or on ``cores`` of a CPU; None if neither is known.

    What goes ``through_trainer``, that of Transformers, is taken to be as fast as XTuner's loop where it was not
    measured.
    """
    several = f" × {run.gpus}（通信未计 / communication not counted）" if run.gpus > 1 else ""
    if card is None:
        if not cores:
            return None
        operations = (4 if run.rank else 6) * weights_in_products(run.shape)
        slower = CPU_BF16_FACTOR if run.dtype_bytes == 2 else 1
        return Speed(
            cores * CORE_FLOPS / operations / slower, f"按 {cores} 个 CPU 核估计 / estimated for {cores} CPU cores"
        )
    rate, measured = _reference(run, run.checkpointing, through_trainer)
    if not card.tflops or not rate:
        return None
    if run.budget < 1 and not run.checkpointing:
        # What is not kept costs what checkpointing costs.
        rate = 1 / (run.budget / rate + (1 - run.budget) / _reference(run, checkpointing=True)[0])
        measured = False
    if (run.tokens, run.zero) != (MEASURED_PACK, 0):
        measured = False
    rate *= run.gpus
    if card.name != MEASURED_ON:
        rate *= card.tflops / next(each.tflops for each in CARDS if each.name == MEASURED_ON)
        source = f"按峰值由 {MEASURED_ON} 推算 / scaled by peak from an {MEASURED_ON}"
    elif measured:
        source = f"在 {MEASURED_ON} 上实测 / measured on an {MEASURED_ON}"
    else:
        source = f"按 {MEASURED_ON} 上相近的运行估计 / estimated from similar runs on an {MEASURED_ON}"
    return Speed(rate, source + several)


def _reference(run: Run, checkpointing: bool, through_trainer: bool = False) -> tuple[float, bool]:
    """Tokens per second of this size on the card of the table, 0 if not known; and whether they were measured."""
    size = next((name for name, shape in SHAPES.items() if shape == run.shape), "")
    key = (run.base, "lora" if run.rank else "full", checkpointing)
    table = MEASURED_THROUGH_TRAINER if through_trainer else MEASURED_TOKENS
    if (size, *key) in table:
        return table[(size, *key)], True
    known = MEASURED_TOKENS | ESTIMATED_TOKENS
    # Of this size if that is there, else scaled from 7B. Checkpointing runs the forward pass once more: four passes'
    # worth instead of three.
    scale = weights_in_products(MEASURED_SHAPE) / weights_in_products(run.shape)
    for of, factor in ((size, 1.0), ("7b", scale)):
        if (of, *key) in known:
            return known[(of, *key)] * factor, False
        if (of, run.base, key[1], not checkpointing) in known:
            other = known[of, run.base, key[1], not checkpointing]
            return other * factor * (0.7 if checkpointing else 1 / 0.7), False
    return 0.0, False
