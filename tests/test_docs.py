"""What docs/ says is true: manifests are accepted, Python runs, options and modules exist.

Pages that are made from the source are what the source says; `mkdocs build --strict`, in .ci/run,
finds links that lead nowhere.
"""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import typer
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = {"lightning.md"}
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
WRITTEN = {
    name: text
    for name, text in PAGES.items()
    if name not in MADE and "<!-- Made by docs/generate.py" not in text
}
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*?) -->\n)?```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL)
README = (ROOT / "README.md").read_text()


def blocks(kind: str, pages: dict[str, str]) -> Iterator[Any]:
    for name, text in pages.items():
        for number, found in enumerate(BLOCK.finditer(text)):
            if found["kind"] == kind:
                mark = found["mark"] or ""
                yield pytest.param(mark, found["body"], id=f"{name}-{number}-{mark or 'unmarked'}")


@pytest.fixture(scope="module")
def generator() -> Iterator[dict[str, Any]]:
    before = list(sys.path)
    yield runpy.run_path(str(DOCS / "generate.py"))
    sys.path[:] = before


def test_pages_are_what_the_source_says(generator: dict[str, Any]) -> None:
    assert generator["stale"]() == [], "run: python docs/generate.py"


def test_a_page_that_is_old_is_noticed(generator: dict[str, Any], tmp_path: Path) -> None:
    for name in generator["PAGES"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((DOCS / name).read_text())
    stale = generator["stale"]
    stale.__globals__["DOCS"] = tmp_path
    with (tmp_path / "reference/metrics.md").open("a") as page:
        page.write("More.\n")
    try:
        assert stale() == ["reference/metrics.md"]
    finally:
        stale.__globals__["DOCS"] = DOCS


def manifest() -> dict[str, Any]:
    """README's."""
    found = re.search(r"<!-- manifest -->\n```yaml\n(.*?)```", README, re.DOTALL)
    assert found
    job: dict[str, Any] = yaml.safe_load(found[1])
    job["metadata"]["namespace"] = "default"
    return job


def accept(*objects: dict[str, Any]) -> None:
    from rekindle_local.apiserver import __name__ as package

    server = __import__(f"{package}.{_server_module()}", fromlist=["ApiServer"]).ApiServer()
    server.load([yaml.safe_load((ROOT / "crds" / "trainingjob.yaml").read_text())])
    for one in objects:
        name = one["metadata"].get("namespace", "default")
        if name != "default":
            server.load([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}])
    server.load(list(objects))


def merged(defaults: Any, given: Any) -> Any:
    """Values as Helm puts them together."""
    if not isinstance(defaults, dict) or not isinstance(given, dict):
        return given
    return {**defaults, **{key: merged(defaults.get(key), value) for key, value in given.items()}}


def _server_module() -> str:
    """Where the API server is, below its package."""
    folder = ROOT / "operator" / "rekindle_local" / "apiserver"
    (path,) = (one for one in folder.rglob("*.py") if "\nclass ApiServer" in one.read_text())
    return ".".join(path.relative_to(folder).with_suffix("").parts)


def test_the_manifest_of_the_front_page_is_accepted() -> None:
    accept(manifest())


@pytest.mark.parametrize(("mark", "body"), list(blocks("yaml", PAGES)))
def test_a_manifest_is_accepted(mark: str, body: str) -> None:
    """A whole object, what a job says instead of README's, or values of the chart."""
    found = yaml.safe_load(body)
    if "kind" in found:
        accept(found)
    elif "spec" in found:
        job = manifest()
        job["spec"].update(found["spec"])
        accept(job)
    else:
        assert mark == "values"
        chart = ROOT / "charts" / "rekindle"
        values = merged(yaml.safe_load((chart / "values.yaml").read_text()), found)
        jsonschema.validate(values, json.loads((chart / "values.schema.json").read_text()))


def test_what_the_front_page_says_elsewhere_stands_in_a_page() -> None:
    marks = {found["mark"] for text in PAGES.values() for found in BLOCK.finditer(text)}
    assert {"storage", "capacity", "watch", "namespace", "job", "values"} <= marks


def test_a_wrong_manifest_is_refused() -> None:
    job = manifest()
    job["spec"]["hang"] = {"timeout": "soon"}
    with pytest.raises(Exception, match="must be auto, never"):
        accept(job)


@pytest.mark.processes
@pytest.mark.parametrize(("mark", "body"), list(blocks("python", WRITTEN)))
def test_python_runs(mark: str, body: str, tmp_path: Path) -> None:
    if mark.startswith("not run: "):
        compile(body, "docs", "exec")
        return
    (tmp_path / "example.py").write_text(body)
    path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "operator")])
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def calls() -> Iterator[Any]:
    """Lines of shell blocks that call our command."""
    for name, text in WRITTEN.items():
        for found in BLOCK.finditer(text):
            start = {"sh": "", "console": r"\$ "}.get(found["kind"])
            if start is not None:
                for line in re.findall(
                    rf"^{start}(?:\.venv/bin/)?rekindle (.+)", found["body"], re.MULTILINE
                ):
                    words = shlex.split(line, comments=True)
                    yield pytest.param(words, id=f"{name}: {' '.join(words[:4])}")


@pytest.mark.parametrize("words", list(calls()))
def test_commands_exist(words: list[str]) -> None:
    from rekindle_cli.__main__ import app

    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command = command.commands[words[0]]
        words = words[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known


def test_every_alert_has_a_runbook_and_no_runbook_is_of_none() -> None:
    rules = (ROOT / "charts/rekindle/templates/alerts.yaml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert re.findall(r"^## (\w+)$", PAGES["operations/alerts.md"], re.MULTILINE) == alerts


def test_the_glossary_is_short_and_sorted() -> None:
    terms = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", PAGES["glossary.md"], re.MULTILINE)
    assert terms[0] == "term"
    del terms[0]
    assert 40 <= len(terms) <= 60
    assert len(set(terms)) == len(terms)
    assert terms == sorted(terms, key=lambda term: re.sub(r"\W", " ", term).casefold())


@pytest.mark.parametrize("name", [name for name in WRITTEN if name.startswith("architecture/")])
def test_modules_that_are_named_exist(name: str, generator: dict[str, Any]) -> None:
    known = generator["api"].modules()
    named = set(re.findall(r"`(rekindle(?:_\w+)?(?:\.\w+)+)`", WRITTEN[name]))
    assert not {one for one in named if one not in known}


def test_the_picture_is_of_a_run_that_lost_nothing() -> None:
    picture = DOCS / "images" / "demo.svg"
    text = "".join(ElementTree.parse(picture).getroot().itertext()).replace("\xa0", " ")
    assert "0 repeated, 0 missed (proven by the ledger)" in text
    assert "spot reclaim" in text
    source = picture.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://", source), "it is to load nothing"


def test_the_picture_is_the_same_for_the_same_lines() -> None:
    record = runpy.run_path(str(DOCS / "record_demo.py"))
    printed = "10:00:00 step 1/9\n10:00:01 step 2/9\n10:00:02 step 3/9\n10:00:03 done\n"
    lines = record["chosen"](printed)
    assert lines == ["10:00:00 step 1/9", "10:00:01 step 2/9", "...", "10:00:03 done"]
    assert record["draw"](lines) == record["draw"](lines)
