"""The serving set needs no override: what plain `pip install` and `pip check` would say of it, without a network."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from huanhuan.paths import ROOT
from huanhuan.training.preflight import pinned_versions

FILES = ("requirements.txt", "requirements-train.txt", "requirements-dev.txt")


def requirements_in(file: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def conflicts(wanted: list[Requirement]) -> Iterator[str]:
    """What is missing or of another version among ``wanted`` and all that these need in turn."""
    seen: set[tuple[str, str]] = set()
    waiting = [("", each) for each in wanted]
    while waiting:
        by, requirement = waiting.pop()
        extras = requirement.extras or {""}
        key = (canonicalize_name(requirement.name), str(requirement))
        if key in seen or not (requirement.marker is None or requirement.marker.evaluate({"extra": by})):
            continue
        seen.add(key)
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement} is missing"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement}: {found} is installed"
        needs = [Requirement(each) for each in importlib.metadata.requires(requirement.name) or ()]
        waiting += [(extra, need) for extra in extras for need in needs]


def test_the_serving_set_agrees_with_itself() -> None:
    assert list(conflicts(requirements_in(ROOT / "requirements.txt"))) == []


def test_the_training_set_differs_by_its_overrides_only() -> None:
    told = set(conflicts(requirements_in(ROOT / "requirements-train.txt")))
    overridden = {canonicalize_name(each.name) for each in requirements_in(ROOT / "overrides.txt")}
    assert {canonicalize_name(Requirement(line.partition(":")[0]).name) for line in told} <= overridden, told


@pytest.mark.parametrize("name", FILES)
def test_pins_are_exact_and_those_of_the_lock(name: str) -> None:
    wanted = requirements_in(ROOT / name)
    assert wanted
    lock = {canonicalize_name(key): value for key, value in pinned_versions(ROOT / "requirements.lock").items()}
    for each in wanted:
        (pin,) = each.specifier
        assert pin.operator == "==", each
        assert lock[canonicalize_name(each.name)] == pin.version, each


def test_no_file_names_a_host() -> None:
    for file in (*FILES, "overrides.txt", "requirements.lock"):
        assert "://" not in (ROOT / file).read_text("utf-8"), file
