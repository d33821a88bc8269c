"""The Dockerfile, as far as it can be checked without an engine that builds it."""

import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from rekindle.api import COORDINATOR_PORT, OPERATOR_METRICS_PORT, POD_METRICS_PORT

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Keyword and rest of each instruction, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", "").splitlines() if line.strip()]
    return [(keyword, rest.strip()) for keyword, _, rest in (line.partition(" ") for line in lines)]


def stages() -> dict[str, list[Instruction]]:
    """Instructions by stage, in order."""
    found: dict[str, list[Instruction]] = {"": []}
    for keyword, rest in instructions():
        if keyword == "FROM":
            found[rest.split(" AS ")[1]] = current = [(keyword, rest)]
        elif len(found) == 1:
            found[""].append((keyword, rest))
        else:
            current.append((keyword, rest))
    return found


def values(stage: str, keyword: str) -> list[str]:
    return [rest for found, rest in stages()[stage] if found == keyword]


def test_there_are_the_two_targets() -> None:
    assert list(stages()) == ["", "build", "operator", "runtime"]


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    allowed = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for keyword, rest in instructions():
        if keyword == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), f"COPY {source}: no such file"
                assert any(fnmatch(source.split("/")[0], pattern) for pattern in allowed), source


def test_the_wheel_is_built_from_all_that_pyproject_packs() -> None:
    copied = {source for rest in values("build", "COPY") for source in rest.split()[:-1]}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    packed = {path.split("/")[0] for path in (*wheel["packages"], *wheel["force-include"])}
    assert packed | {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= copied


def test_the_requirements_of_an_image_are_those_of_its_extra(tmp_path: Path) -> None:
    (command,) = [rest for rest in values("build", "RUN") if "tomllib" in rest]
    python, flag, script = shlex.split(command)
    assert (python, flag) == ("python", "-c")
    script = script.replace("/src/pyproject.toml", str(ROOT / "pyproject.toml"))
    # -W: the images' Python tells nobody about a file that the script leaves to the interpreter.
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True, timeout=30
    )
    for extra in ("operator", "runtime"):
        expected = PROJECT["dependencies"] + PROJECT["optional-dependencies"][extra]
        assert (tmp_path / f"{extra}.txt").read_text().splitlines() == expected
        (install,) = [rest for rest in values(extra, "RUN") if "-r " in rest]
        assert f"-r /requirements/{extra}.txt" in install


def test_images_hold_the_locked_releases_but_of_what_comes_with_torch(tmp_path: Path) -> None:
    (command,) = [rest for rest in values("build", "RUN") if "grep" in rest]
    command = command.replace("/src/constraints.txt", str(ROOT / "constraints.txt"))
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=30)
    locked = (ROOT / "constraints.txt").read_text().splitlines()
    kept = (tmp_path / "constraints.txt").read_text().splitlines()
    left_out = {line.partition("==")[0] for line in set(locked) - set(kept)}
    assert {"torch", "triton", "nvidia-nccl-cu13"} <= left_out, "a base image has its own torch"
    assert not left_out & {"kopf", "kubernetes", "boto3", "numpy", "torchmetrics", "scikit-learn"}
    for stage in ("operator", "runtime"):
        (install,) = [rest for rest in values(stage, "RUN") if "-r " in rest]
        assert "-c /requirements/constraints.txt " in install


@pytest.mark.parametrize("absent", ["torch", "boto3", "numpy"])
def test_the_image_of_the_operator_asks_for_nothing_of_the_runtime(absent: str) -> None:
    requirements = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["operator"]
    assert not [line for line in requirements if re.match(rf"{absent}\b", line)]
    assert absent not in " ".join(values("operator", "RUN"))


@pytest.mark.parametrize("stage", ["operator", "runtime"])
def test_images_run_as_a_number_that_is_not_root_and_stop_on_sigterm(stage: str) -> None:
    chart = yaml.safe_load((ROOT / "charts/rekindle/values.yaml").read_text())
    user = chart["podSecurityContext"]["runAsUser"]
    assert values(stage, "USER") == [f"{user}:{user}"]
    assert values(stage, "STOPSIGNAL") == ["SIGTERM"]
    keywords = [keyword for keyword, _ in stages()[stage]]
    assert "RUN" not in keywords[keywords.index("USER") :]


@pytest.mark.parametrize(
    ("stage", "module", "ports"),
    [
        ("operator", "rekindle_operator", [COORDINATOR_PORT, OPERATOR_METRICS_PORT]),
        ("runtime", "rekindle.launch", [POD_METRICS_PORT]),
    ],
)
def test_entrypoints_and_ports_are_those_of_the_contract(
    stage: str, module: str, ports: list[int]
) -> None:
    assert values(stage, "ENTRYPOINT") == [f'["python", "-m", "{module}"]']
    assert values(stage, "EXPOSE") == [" ".join(map(str, ports))]
    folder = ROOT / ("operator" if stage == "operator" else "runtime") / module.replace(".", "/")
    assert (folder / "__main__.py").is_file()


def test_versions_are_those_of_the_project() -> None:
    for stage in ("operator", "runtime"):
        assert f"VERSION={PROJECT['version']}" in values(stage, "ARG")
        assert 'org.opencontainers.image.version="${VERSION}"' in values(stage, "LABEL")[0]
    (torch,) = [pin for pin in PROJECT["optional-dependencies"]["dev"] if pin.startswith("torch==")]
    assert f"TORCH={torch.removeprefix('torch==')}" in values("runtime", "ARG")
    assert torch in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_runtime_starts_among_the_examples() -> None:
    (copied,) = [rest.split() for rest in values("runtime", "COPY")]
    assert copied == ["runtime/examples", *values("runtime", "WORKDIR")]


@pytest.mark.parametrize("manifest", sorted((ROOT / "runtime/examples").glob("*/job.yaml")))
def test_an_example_finds_its_script_in_the_image_that_it_names(manifest: Path) -> None:
    spec = yaml.safe_load(manifest.read_text())["spec"]["template"]["spec"]
    (container,) = [c for c in spec["containers"] if c["name"] == "trainer"]
    assert "command" not in container, "the image's entrypoint is the launcher"
    assert (ROOT / "runtime/examples" / container["args"][0]).is_file()
    assert f"-t {container['image']} " in (ROOT / "Dockerfile").read_text()
