"""Where things lie in the checkout, whatever the current folder is."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
DATA = ROOT / "data"
MODELS = ROOT / "models"
WORK_DIRS = ROOT / "work_dirs"


def in_checkout(path: str | Path) -> Path:
    """``path`` itself if absolute, else ``path`` below the checkout.

    >>> in_checkout("data/huanhuan/train.jsonl") == ROOT / "data/huanhuan/train.jsonl"
    True
    """
    return ROOT / path
