"""What a conversion depends on beside its sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huanhuan.dataset.conversations import CutOptions
from huanhuan.dataset.filters import FilterOptions
from huanhuan.persona import Persona


@dataclass(frozen=True)
class Options:
    """``names``: the character's name and aliases, empty only where every source holds ready conversations.

    ``card`` is the file of ``persona``. ``identity_share``: share of identity exchanges among all. ``val_share``:
    share of the scenes held out. ``format``: what a record is written as. ``tokenizer``: a folder whose tokenizer
    measures lengths, and the budget too if ``cut.budget_tokens`` is set.
    """

    names: tuple[str, ...]
    system: str | None = None
    persona: Persona | None = None
    card: Path | None = None
    encoding: str | None = None
    layout: str | None = None
    cut: CutOptions = field(default_factory=CutOptions)
    filters: FilterOptions = field(default_factory=FilterOptions)
    identity_share: float = 0.03
    val_share: float = 0.15
    seed: int = 0
    format: str = "xtuner"
    tokenizer: Path | None = None

    def shown(self) -> dict[str, Any]:
        """The options as the report lists them; no path, so that the report is the same wherever it is made."""
        return {
            "encoding": self.encoding or "auto",
            "layout": self.layout or "auto",
            "format": self.format,
            "single_turn": self.cut.single_turn,
            "context": self.cut.context,
            "context_chars": self.cut.context_chars,
            "budget": self.cut.budget if self.cut.budget_tokens is None else None,
            "budget_tokens": self.cut.budget_tokens,
            "tokenizer": self.tokenizer.name if self.tokenizer else None,
            "openers": self.cut.openers,
            "stage_directions": "keep" if self.cut.keep_directions else "drop",
            "filters_off": sorted(self.filters.off),
            "min_chars": self.filters.min_chars,
            "copies": self.filters.copies,
            "similarity": self.filters.similarity,
            "interjections": self.filters.interjections,
            "identity_share": self.identity_share if self.persona else 0,
            "val_share": self.val_share,
            "seed": self.seed,
        }
