"""What comes of manifests in the style of six other systems.

Each file below this folder is what somebody would apply: a comment in it says what must come of
it. ``expect`` is one of

* ``Succeeded``: training is complete, in a round, without an incident;
* ``Failed REASON; WORDS; ...``: the condition Failed has these words (REASON may be left out);
* ``condition TYPE=STATUS REASON; WORDS; ...``: that condition comes, and ``rekindle why`` has it;
* ``refused; WORDS; ...``: kubectl apply fails with these words.

``phase`` must be the phase then, ``holds`` says for how many seconds it has to stay, ``step`` is
the last step known, and ``needs`` what not every cluster has. What differs between clusters is put
in here: the image, the endpoint of the object store and the secret for it.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = {f"{path.parent.name}/{path.stem}": path for path in sorted(HERE.glob("*/*.yaml"))}
IMAGE = "rekindle/runtime:0.1"
PLAIN_IMAGE = "example.com/plain-torch:2"
PATIENCE = 150.0
"""Seconds for one manifest; several run at once on two cores."""
AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the comment of a file says."""

    outcome: str
    """Succeeded, Failed, refused, or the type of a condition."""
    status: str = "True"
    reasons: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    phase: str | None = None
    holds: float = 0.0
    step: int | None = None
    needs: str | None = None


def expected(text: str) -> Expected:
    said = dict(re.findall(r"^# (expect|phase|holds|step|needs): (.+)$", text, re.MULTILINE))
    head, *words = (part.strip() for part in said["expect"].split(";"))
    outcome, _, rest = head.partition(" ")
    status = "True"
    if outcome == "condition":
        condition, _, rest = rest.partition(" ")
        outcome, _, status = condition.partition("=")
    return Expected(
        outcome=outcome,
        status=status,
        reasons=tuple(rest.split("|")) if rest else (),
        words=tuple(words),
        phase=said.get("phase"),
        holds=float(said.get("holds", 0)),
        step=int(said["step"]) if "step" in said else None,
        needs=said.get("needs"),
    )


EXPECTED = {name: expected(path.read_text()) for name, path in FILES.items()}


class Tried:
    """One manifest, applied on one cluster in a namespace of its own."""

    def __init__(self, site: Any, name: str) -> None:
        self.site, self.expected = site, EXPECTED[name]
        self.documents = list(yaml.safe_load_all(FILES[name].read_text()))
        self.namespace = site.namespace()
        scripts = {p.name: p.read_text() for p in (HERE / "scripts").glob("*.py")}
        site.core.replace_namespaced_config_map(
            "scripts", self.namespace, {"metadata": {"name": "scripts"}, "data": scripts}
        )
        self.job_name = ""
        for document in self.documents:
            if document["kind"] == "TrainingJob":
                self.job_name = document["metadata"]["name"]
                self._localise(document["spec"])

    def _localise(self, spec: dict[str, Any]) -> None:
        """Put in what differs from one cluster to the next."""
        if spec["checkpoint"]["uri"].startswith("s3://"):
            spec["checkpoint"] |= {"endpointUrl": self.site.s3, "secretRef": {"name": "s3"}}
        pod = spec["template"]["spec"]
        containers = [*pod["containers"], *pod.get("initContainers", ())]
        for holder in (*containers, spec.get("launcher", {})):
            if holder.get("image") == IMAGE:
                holder["image"] = self.site.image
            if holder.get("image") == PLAIN_IMAGE:
                holder["image"] = self.site.plain_image

    def kubectl(self, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", f"--kubeconfig={self.site.kubeconfig}", "-n", self.namespace, *words],
            input=given, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def apply(self) -> subprocess.CompletedProcess[str]:
        return self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(self.documents))

    def status(self) -> dict[str, Any]:
        found = self.kubectl("get", "trainingjob", self.job_name, "-o", "json")
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout).get("status") or {}

    def why(self) -> str:
        path = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "runtime")])
        env = os.environ | {
            "KUBECONFIG": str(self.site.kubeconfig),
            "COLUMNS": "900",
            "PYTHONPATH": path,
        }
        command = [sys.executable, "-m", "rekindle_cli", "why", self.job_name]
        done = subprocess.run(
            [*command, "-n", self.namespace],
            env=env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return done.stdout

    def meets(self, status: dict[str, Any]) -> bool:
        """Whether the condition is there, with one of its reasons and all of its words."""
        wanted = self.expected
        kind = "Complete" if wanted.outcome == "Succeeded" else wanted.outcome
        return any(
            c["type"] == kind
            and c["status"] == wanted.status
            and (not wanted.reasons or c["reason"] in wanted.reasons)
            and all(word in c["message"] for word in wanted.words)
            and wanted.phase in {None, status["phase"]}
            for c in status.get("conditions", ())
        )

    def wait(self) -> dict[str, Any]:
        """The status that meets what is expected."""
        ended, end = {"Succeeded", "Failed"}, time.monotonic() + PATIENCE
        while True:
            status = self.status()
            if self.meets(status):
                return status
            assert status.get("phase") not in ended, json.dumps(status, indent=1)
            assert time.monotonic() < end, json.dumps(status, indent=1)
            time.sleep(0.3)

    def run(self) -> None:
        wanted = self.expected
        applied = self.apply()
        if wanted.outcome == "refused":
            assert applied.returncode != 0, applied.stdout
            assert all(word in applied.stderr for word in wanted.words), applied.stderr
            return
        assert applied.returncode == 0, applied.stderr
        assert not applied.stderr, applied.stderr  # no warning about a file that is right
        status = self.wait()
        end = time.monotonic() + wanted.holds
        while time.monotonic() < end:
            status = self.status()
            assert self.meets(status), json.dumps(status, indent=1)
            time.sleep(0.3)
        counted = status.get("restarts") or {}
        assert counted.get("preemption", 0) == 0, status["incidents"]
        assert self.site.credentials[1] not in json.dumps(status)
        if wanted.outcome == "Succeeded":
            assert status["round"] >= 1
            assert counted["total"] == 0, status["incidents"]
            assert self._log()
        else:
            told = self.why()
            assert all(word in told for word in wanted.words), told
        if wanted.step is not None:
            assert status["progress"]["step"] == wanted.step

    def _log(self) -> str:
        """What the trainer of the first pod has printed; it has to be there after the end."""
        selector = f"rekindle.dev/job={self.job_name}"
        pods = self.kubectl("get", "pods", "-l", selector, "-o", "name").stdout.split()
        assert pods, "no pod is left to read a log of"
        return self.kubectl("logs", pods[0], "-c", "trainer").stdout

    def clean(self) -> None:
        if self.job_name:
            self.kubectl(
                "delete", "trainingjob", self.job_name, "--ignore-not-found", "--wait=false"
            )


def absent(site: Any, need: str | None) -> str | None:
    """In words, what this cluster lacks of what a manifest needs."""
    if need in {"accelerate", "lightning"}:
        return None if importlib.util.find_spec(need) else f"{need} is not installed"
    if need == "nodes":
        return None if len(site.core.list_node().items) > 1 else "it takes two nodes"
    if need == "plain image":
        return None if site.plain_image else "REKINDLE_E2E_PLAIN_IMAGE names no image"
    if need == "pod names":
        if site.embedded is not None:
            return None
        served = site.kubectl("-n", "kube-system", "get", "service", "kube-dns", "-o", "name")
        return None if served.stdout else "no service kube-dns resolves the names of pods"
    if need == "volumes":
        classes = site.kubectl("get", "storageclass", "-o", "name").stdout
        return None if classes else "no storage class makes volumes"
    return None


@pytest.fixture(scope="module")
def tried(site, request) -> Iterator[Callable[[str], None]]:
    """Tries the chosen manifests, some at once; a call raises what went wrong with one."""

    def attempt(name: str) -> None:
        one = Tried(site, name)
        try:
            one.run()
        finally:
            one.clean()

    where = "kubeconfig" if site.embedded is None else "embedded"
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == request.path and getattr(item, "callspec", None)
        and item.callspec.params.get("site") == where
    ]  # fmt: skip
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures: dict[str, Future[None]] = {
            name: pool.submit(attempt, name)
            for name in dict.fromkeys(chosen)
            if absent(site, EXPECTED[name].needs) is None
        }
        yield lambda name: futures[name].result()


@pytest.mark.parametrize("name", FILES)
def test_what_comes_of_it(site, tried, name):
    if lacks := absent(site, EXPECTED[name].needs):
        pytest.skip(lacks)
    tried(name)


def test_there_are_at_least_forty_from_six_systems():
    assert len(FILES) >= 40
    systems = {"hyperpod", "jobset", "pytorchjob", "rayjob", "trainjob", "volcano"}
    assert {name.partition("/")[0] for name in FILES} == systems
