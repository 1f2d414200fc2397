"""Every setting that the chat reads from the environment stands in the guides, and no other."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("deploy.md", "scale.md"))

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]


def settings(text: str) -> set[str]:
    return set(re.findall(r"HUANHUAN_[A-Z_]+", text))


def test_the_guides_name_every_setting_and_no_other() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "huanhuan/chat").rglob("*.py"))
    assert settings(code) == settings(GUIDES)


def test_the_guides_show_pictures_that_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", GUIDES)
    assert pictures
    for path in pictures:
        assert (ROOT / "docs" / path).stat().st_size < 300_000, path


def test_what_the_platforms_read() -> None:
    config = tomllib.loads((ROOT / ".streamlit/config.toml").read_text("utf-8"))
    assert config["server"]["port"] == 7860 and config["server"]["address"] == "0.0.0.0"
    assert config["browser"]["gatherUsageStats"] is False
    assert config["client"]["showErrorDetails"] == "none"
    assert config["server"]["maxUploadSize"] <= 8
    assert config["runner"]["magicEnabled"] is False, "two scripts parsed at once can fail on CPython 3.11"
    assert json.loads((ROOT / "ms_deploy.json").read_text("utf-8"))["sdk_type"] == "streamlit"
    assert "streamlit" in (ROOT / "requirements.txt").read_text("utf-8") and (ROOT / "packages.txt").exists()
