"""How much somebody has done within the last hour."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

HOUR = 3600.0


class Hourly:
    """Counts what each of any number of names did; a name that has been quiet for an hour is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[str, list[float]] = {}

    def count(self, name: str) -> None:
        """``name`` did something now."""
        now = time.monotonic()
        with self._lock:
            for quiet in [each for each, times in self._times.items() if now - times[-1] >= HOUR]:
                del self._times[quiet]
            self._times[name] = [*self._recent(name, now), now]

    def minutes_left(self, name: str, most: int) -> int:
        """Minutes, rounded up, until ``name`` has done less than ``most`` within an hour; 0 if it has."""
        now = time.monotonic()
        with self._lock:
            recent = self._recent(name, now)
        return math.ceil((HOUR - (now - recent[-most])) / 60) if len(recent) >= most else 0

    def _recent(self, name: str, now: float) -> list[float]:
        return [at for at in self._times.get(name, ()) if now - at < HOUR]

    def __iter__(self) -> Iterator[str]:
        """The names that are not forgotten."""
        # A copy: others may count meanwhile.
        return iter(tuple(self._times))
