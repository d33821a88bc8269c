"""What may be installed is bounded in pyproject.toml, and what is installed is held by a lock."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = "constraints.txt"
PYTHONS = ["3.11", "3.12", "3.13"]

ENDLESS = {"packaging"}
"""Versions by date, and a major a year: nothing can be said beforehand about a next one."""


def written(extra: str) -> list[Requirement]:
    """What stands in pyproject.toml, without the extras that an extra includes."""
    lines = PROJECT["dependencies"] if extra == "" else EXTRAS[extra]
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.name != PROJECT["name"]]


ALL = sorted({str(one): one for extra in ("", *EXTRAS) for one in written(extra)}.items())


def locked(python: str) -> dict[str, Version]:
    """Version by package, on a Python."""
    found = {}
    for line in (ROOT / LOCK).read_text().splitlines():
        if line and not line.startswith("#"):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"python_full_version": f"{python}.1"}):
                (pin,) = one.specifier
                assert pin.operator == "==", line
                name = canonicalize_name(one.name)
                assert name not in found, f"{name} has two versions on Python {python}"
                found[name] = Version(pin.version)
    return found


def below(root: Requirement, python: str) -> Iterator[tuple[str, Requirement]]:
    """What a package needs, what that needs, and so on: as far as it is installed here."""
    seen, waiting = set(), [root]
    while waiting:
        one = waiting.pop()
        for extra in ("", *sorted(one.extras)):
            if (one.name, extra) in seen:
                continue
            seen.add((one.name, extra))
            try:
                lines = requires(one.name) or []
            except PackageNotFoundError:
                continue
            surroundings = {"extra": extra, "python_version": python, "sys_platform": "linux"}
            for needed in map(Requirement, lines):
                if needed.marker is None or needed.marker.evaluate(surroundings):
                    waiting.append(needed)
                    yield one.name, needed


@pytest.mark.parametrize("requirement", [one for _, one in ALL], ids=str)
def test_a_dependency_has_a_lower_and_an_upper_bound(requirement: Requirement) -> None:
    operators = {bound.operator for bound in requirement.specifier}
    wanted = {">="} if requirement.name in ENDLESS else {">=", "<"}
    assert operators == {"=="} or wanted <= operators, f"{requirement}: where may it break us?"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("requirement", [one for _, one in ALL], ids=str)
def test_what_is_locked_is_within_the_bounds(requirement: Requirement, python: str) -> None:
    held = locked(python).get(canonicalize_name(requirement.name))
    assert held, f"{requirement.name} is not in {LOCK}: run .ci/lock"
    assert requirement.specifier.contains(held), f"run .ci/lock --upgrade {requirement.name}"


@pytest.mark.parametrize("requirement", [one for _, one in ALL], ids=str)
def test_what_a_dependency_needs_is_locked_too(requirement: Requirement) -> None:
    held = locked("3.11")
    for by, needed in below(requirement, "3.11"):
        version = held.get(canonicalize_name(needed.name))
        assert version, f"{needed.name}, which {by} needs, is not in {LOCK}: run .ci/lock"


def test_the_lock_holds_for_every_platform() -> None:
    text = (ROOT / LOCK).read_text()
    assert "+" not in text, "a build of one processor or accelerator"
    assert not re.search(r"platform_|sys_|os_name|@|--", text)


def test_the_pythons_of_the_lock_are_those_of_the_project() -> None:
    told = [one.rpartition(" :: ")[2] for one in PROJECT["classifiers"] if "Python :: 3." in one]
    assert told == PYTHONS
    assert SpecifierSet(PROJECT["requires-python"]).contains(PYTHONS[0])


def test_the_lock_does_not_let_an_old_bound_pass() -> None:
    """The comparison above can fail: the locked client is not within the bounds of last year."""
    assert not SpecifierSet(">=30,<36").contains(locked("3.11")["kubernetes"])


@pytest.mark.parametrize("mark", ["main job", "tests"])
def test_the_commands_of_the_front_page_install_what_is_locked(mark: str) -> None:
    readme = (ROOT / "README.md").read_text()
    found = re.search(rf"<!-- {mark} -->\n    (.*)\n", readme)
    assert found
    (install,) = [part for part in found[1].split(" && ") if " install " in part]
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == LOCK


def test_scripts_of_ci_install_what_is_locked_or_say_why_not() -> None:
    """`newest` and `clients` are about what is not locked; `lock` installs its own tool."""
    for script in sorted((ROOT / ".ci").iterdir()):
        if "bash" in script.read_text().partition("\n")[0]:
            subprocess.run(["bash", "-n", script], check=True, timeout=60)
        for line in script.read_text().splitlines():
            if "pip install" in line and script.name == "run":
                assert f"-c {LOCK}" in line, line
