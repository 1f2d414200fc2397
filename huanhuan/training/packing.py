"""Which dialogues share a pack. No torch."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into as few bins as best-fit decreasing finds; returns the items' indices, bin by bin.

    Best-fit decreasing needs at most 11/9 of the optimal number of bins plus one (Johnson, 1973).

    >>> pack_best_fit([5, 7, 3, 2], 8)
    [[1], [0, 2], [3]]
    """
    bins: list[list[int]] = []
    # Free space of each bin with its index, ascending: the first that is large enough fits best.
    free: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        place = bisect.bisect_left(free, (lengths[index], -1))
        if place == len(free):
            bins.append([index])
            space, chosen = capacity, len(bins) - 1
        else:
            space, chosen = free.pop(place)
            bins[chosen].append(index)
        bisect.insort(free, (space - lengths[index], chosen))
    return bins
