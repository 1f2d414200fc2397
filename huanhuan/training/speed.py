"""How fast a recipe trains: measured where it was measured, else scaled from there by a card's peak."""

from __future__ import annotations

from dataclasses import dataclass

from huanhuan.training.memory import Run


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


# NVIDIA's data sheets, without sparsity. The first name that is part of what the driver reports counts.
CARDS = (
    Card("B200", 2250, 178, (10, 0)),
    Card("GH200", 989, 94, (9, 0)),
    Card("H200", 989, 139.8, (9, 0)),
    Card("H100 PCIe", 756, 79.2, (9, 0)),
    Card("H100", 989, 79.2, (9, 0)),
    Card("H800", 989, 79.2, (9, 0)),
    Card("H20", 148, 95.6, (9, 0)),
    Card("A100-SXM4-40GB", 312, 39.4, (8, 0)),
    Card("A100-PCIE-40GB", 312, 39.4, (8, 0)),
    Card("A100", 312, 79.2, (8, 0)),
    Card("A800", 312, 79.2, (8, 0)),
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
    Card("RTX 4060 Ti", 44, 15.6, (8, 9)),
    Card("RTX 3090", 71, 23.6, (8, 6)),
    Card("RTX 3060", 25, 11.6, (8, 6)),
    Card("V100", 125, 31.7, (7, 0)),
    Card("T4", 65, 14.6, (7, 5)),
)


def find_card(name: str) -> Card | None:
    """The card whose name is part of ``name`` (what a driver reports), or of whose name it is part; else None.

    >>> find_card("NVIDIA GeForce RTX 4090").name, find_card("4090").name
    ('RTX 4090', 'RTX 4090')
    """
    name = name.lower().strip()
    for card in CARDS:
        if card.name.lower() in name:
            return card
    return next((card for card in CARDS if name and name in card.name.lower()), None)


# Tokens per second on one H200, InternLM2-7B in packs of 8,192, by base, what is trained ("lora" or "full") and
# checkpointing, from `bench/train.py`; the two with checkpointing over an uncompressed base are of packs of 16,384
# in another loop.
MEASURED_ON = "H200"
MEASURED_TOKENS = {
    ("nf4", "lora", False): 16_962,
    ("nf4", "lora", True): 12_137,
    ("plain", "lora", False): 17_321,
    ("plain", "lora", True): 12_222,
    ("fp8", "lora", False): 25_569,
    ("plain", "full", False): 9_118,
    ("plain", "full", True): 8_662,
}
MEASURED_PRODUCTS = 7.36e9
# One CPU core in float32, and how much slower most CPUs are in bfloat16: a 512-token step of a base of 4 million
# weights took 0.17 s on two cores, and 12 to 25 times that in bfloat16.
CORE_FLOPS, CPU_BF16_FACTOR = 24e9, 18


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all GPUs together, padding counted, and where the number comes from."""

    tokens: float
    source: str


def weights_in_products(run: Run) -> int:
    """All weights but the embedding, which is looked up and not multiplied."""
    return run.shape.parameters - run.shape.vocabulary * run.shape.hidden


def speed_of(run: Run, card: Card | None, *, cores: int = 0) -> Speed | None:
    """The expected speed on ``card``, or on ``cores`` of a CPU; None if neither is known."""
    trained = "lora" if run.rank else "full"
    factor = 1.0 * run.gpus
    several = f" × {run.gpus}（通信未计 / communication not counted）" if run.gpus > 1 else ""
    if card is None:
        if not cores:
            return None
        operations = (4 if run.rank else 6) * weights_in_products(run)
        slower = CPU_BF16_FACTOR if run.dtype_bytes == 2 else 1
        return Speed(
            cores * CORE_FLOPS / operations / slower, f"按 {cores} 个 CPU 核估计 / estimated for {cores} CPU cores"
        )
    if not card.tflops:
        return None
    kept = _measured(run, trained, run.checkpointing)
    if run.budget < 1 and not run.checkpointing:
        # What is not kept costs what checkpointing costs.
        kept = 1 / (run.budget / kept + (1 - run.budget) / _measured(run, trained, True))
    rate = kept
    exact = (run.base, trained, run.checkpointing) in MEASURED_TOKENS and run.budget == 1
    rate *= MEASURED_PRODUCTS / weights_in_products(run)
    measured = card.name == MEASURED_ON and exact and run.shape.hidden == 4096
    if measured:
        return Speed(rate * factor, f"在 {MEASURED_ON} 上实测 / measured on an {MEASURED_ON}{several}")
    rate *= card.tflops / next(each.tflops for each in CARDS if each.name == MEASURED_ON)
    return Speed(
        rate * factor,
        f"按峰值由 {MEASURED_ON} 的实测推算 / scaled by peak from what was measured on an {MEASURED_ON}{several}",
    )


def _measured(run: Run, trained: str, checkpointing: bool) -> float:
    """Tokens per second of the 7B model on the card of the table."""
    found = MEASURED_TOKENS.get((run.base, trained, checkpointing))
    # Checkpointing runs the forward pass once more: four passes' worth instead of three.
    return found or MEASURED_TOKENS[run.base, trained, not checkpointing] * (0.7 if checkpointing else 1 / 0.7)
