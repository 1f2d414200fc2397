"""Which scenes are held out: by a seeded hash, so the same script gives the same split everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

# With fewer scenes a held-out loss says little, so small scripts hold out more than the share, up to a quarter.
_AT_LEAST = 8


def rank(seed: int, text: str) -> int:
    """A number that looks random and is the same on every machine; equal texts get equal numbers."""
    return int.from_bytes(
        hashlib.blake2b(f"{seed}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def choose_val(ranks: Sequence[int], free: Sequence[bool], share: float) -> set[int]:
    """Indices of the scenes to hold out: the lowest ranks among those that are ``free`` to be.

    ``share`` of all scenes, and at least eight of them where that is no more than a quarter; none for a share of 0.

    >>> sorted(choose_val([5, 1, 4, 2], [True, False, True, True], 0.5))
    [2, 3]
    """
    if share <= 0:
        return set()
    wanted = max(math.floor(share * len(ranks) + 0.5), min(_AT_LEAST, len(ranks) // 4))
    # At least one scene stays for training.
    wanted = min(wanted, len(ranks) - 1)
    order = sorted((index for index in range(len(ranks)) if free[index]), key=lambda index: (ranks[index], index))
    return set(order[: max(0, wanted)])
