"""Visitors' pages, kept for some hours: whoever reloads the page finds what was said."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from huanhuan.errors import UserError

MOST_PAGES = 256
MOST_WEIGHT = 40_000_000


class Kept(Protocol):
    """What is kept: ``key`` finds it, for its ``owner`` only; ``weight`` is its size in letters."""

    key: str
    owner: str
    holder: str

    @property
    def weight(self) -> int:
        """Its size in letters."""
        ...


Page = TypeVar("Page", bound=Kept)


def keep_hours(environ: Mapping[str, str] = os.environ) -> float:
    """``HUANHUAN_KEEP``, the hours that a page is kept: 12 unless it is set, 0 for not at all.

    Raises: UserError if it is no number.
    """
    text = environ.get("HUANHUAN_KEEP", "").strip() or "12"
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours <= 24 * 30:
        raise UserError(
            f"HUANHUAN_KEEP={text}: 需要 0 到 720 小时 / must be hours from 0 to 720: correct it or unset it"
        )
    return hours


class Shelf(Generic[Page]):
    """The pages last used, bounded in number, in letters and in age. Nothing lists them."""

    def __init__(self, hours: float = 12, pages: int = MOST_PAGES, weight: int = MOST_WEIGHT) -> None:
        self._seconds, self._pages, self._weight = hours * 3600, pages, weight
        self._lock = threading.Lock()
        # The least recently used first, each with its time and its weight then.
        self._kept: OrderedDict[str, tuple[Page, float, int]] = OrderedDict()

    def keep(self, page: Page) -> bool:
        """Keep ``page`` from now on, the oldest make room for it; False if nothing is kept here."""
        if not self._seconds:
            return False
        with self._lock:
            self._kept.pop(page.key, None)
            self._kept[page.key] = (page, time.monotonic(), page.weight)
            self._tidy()
            return page.key in self._kept

    def find(self, key: str, owner: str) -> Page | None:
        """The page with this key, if it is kept and belongs to ``owner``."""
        with self._lock:
            self._tidy()
            page = self._kept[key][0] if key in self._kept else None
        return page if page and page.owner == owner else None

    def latest(self, owner: str, in_use: Callable[[Page], bool]) -> Page | None:
        """The page that ``owner`` used last and that no window shows any more."""
        if not owner:
            return None
        with self._lock:
            self._tidy()
            pages = [page for page, *_ in reversed(self._kept.values()) if page.owner == owner]
        return next((page for page in pages if not in_use(page)), None)

    def _tidy(self) -> None:
        now, total = time.monotonic(), sum(weight for *_, weight in self._kept.values())
        while self._kept:
            key, (_, since, weight) = next(iter(self._kept.items()))
            if now - since <= self._seconds and len(self._kept) <= self._pages and total <= self._weight:
                return
            del self._kept[key]
            total -= weight

    def __len__(self) -> int:
        return len(self._kept)
