"""What tests of the chat share."""

from __future__ import annotations

import sys
from pathlib import Path

# Test folders are no packages; the fake engine is imported by name from here.
sys.path.insert(0, str(Path(__file__).parent))
