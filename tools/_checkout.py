"""Imported first by every tool: makes the checkout importable, so a tool runs without being installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
