"""Blow after blow, of every kind and in any order: the job ends well and tells what has happened.

A storm is drawn from a seed. Each blow waits until everybody trains, so that what the job tells
afterwards can be held against what was done: which incidents, of which cause, with whom as the
victim, what budgets have paid, and that nothing needs attention any more. In the end the weights
are those of a run that nobody disturbed, bit for bit, each sample was used once, and no process is
left.

REKINDLE_E2E_STORM is for how many seconds blows follow each other (600 for a long look), and
REKINDLE_E2E_SEED another storm than the one that the suite goes through. With ``-s`` each blow
shows what was told of it.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rekindle.api import PAID_BY, Cause
from rekindle.checkpoint import Store
from rekindle.data.ledger import audit

SECONDS = float(os.environ.get("REKINDLE_E2E_STORM", "0"))
SEED = int(os.environ.get("REKINDLE_E2E_SEED", "116"))
PATIENCE = 30.0
"""Seconds until what is told of a blow, and of the job after it, is what it will be."""
ALLOWED = {"AsExpected", "Straggler", "CheckpointDamaged"}
"""Reasons of Degraded: a busy machine may give less to one of the pods, and a round that began with
an older checkpoint says so until its end."""
SHORT = 3
"""Blows of the storm in the suite: each kind is drawn before one comes twice."""
MOST_STEPS = 100
"""Steps that a blow may cost: a checkpoint is made every 10, and a busy machine lags behind."""
LOST = {"PodLost", "NodeLost"}

pytestmark = [pytest.mark.processes, pytest.mark.timeout(1200 + 6 * SECONDS)]


@dataclass(frozen=True)
class Told:
    """One incident that a blow must leave: any of these victims, one of these causes."""

    causes: set[str]
    victims: set[str]


@dataclass
class Storm:
    """A job, what was done to it, and what it told of that."""

    job: Any
    site: Any
    random: random.Random
    eventually: Callable[..., Any]
    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    """(blow, what was told, whether that is the truth)"""
    seen: set[str] = field(default_factory=set)

    def strike(self, name: str) -> None:
        """One blow, and what the job says once it has got over it."""
        self.seen |= {incident["at"] for incident in self.fresh()}
        before, began = self.job.status, time.monotonic()
        expected = BLOWS[name](self)
        ends = time.monotonic() + PATIENCE
        while misjudged(expected, self.fresh()) and time.monotonic() < ends:
            time.sleep(0.1)
        self.job.wait_step(self.job.step() + 5)
        ends = time.monotonic() + PATIENCE
        while True:
            after, told = self.job.whole(), self.fresh()
            wrong = [*misjudged(expected, told), *untrue(before, after, told)]
            if not wrong or time.monotonic() >= ends:
                break
            time.sleep(0.1)
        words = "; ".join([*map(in_words, told), *wrong]) or "nothing"
        self.rows.append((name, words, not wrong))
        right, took = "BAD" if wrong else "ok ", time.monotonic() - began
        print(f"{right} {took:5.1f} s, step {self.job.step()}: {name}: {words}", flush=True)

    def fresh(self) -> list[dict[str, Any]]:
        """The incidents since the last blow."""
        return [i for i in self.job.status.get("incidents", ()) if i["at"] not in self.seen]

    def member(self) -> str:
        return self.random.choice(self.job.members())

    def processes(self, pod: str) -> dict[str, list[int]]:
        """What runs in a pod, by what it is there for."""
        return roles(self.site.embedded.pids(self.job.namespace, pod))


def in_words(incident: dict[str, Any]) -> str:
    return f"{incident['cause']} of {', '.join(incident['victims'])}"


def misjudged(expected: list[Told], told: list[dict[str, Any]]) -> list[str]:
    """What does not fit between what was done and what was told."""
    if true(expected, told):
        return []
    wanted = [f"{'/'.join(sorted(o.causes))} of {'/'.join(sorted(o.victims))}" for o in expected]
    told_in_full = "; ".join(str(incident) for incident in told)
    return [f"expected {', '.join(wanted) or 'nothing'}: {told_in_full}"]


def untrue(before: dict[str, Any], after: dict[str, Any], told: list[dict[str, Any]]) -> list[str]:
    """What a status says after a blow that is not so."""
    found = []
    paid = [PAID_BY[Cause(incident["cause"])] for incident in told]
    for budget in ("user", "infrastructure", "preemption"):
        spent = after["restarts"][budget] - before.get("restarts", {}).get(budget, 0)
        if spent != paid.count(budget):
            found.append(f"restarts.{budget} has grown by {spent}")
    for incident in told:
        if incident["round"] and incident.get("resumedFrom") is not None:
            if incident["step"] - incident["resumedFrom"] != incident["stepsLost"]:
                found.append(f"steps do not add up: {incident}")
            if incident["stepsLost"] > MOST_STEPS:
                found.append(f"{incident['stepsLost']} steps lost")
        if "secondsLost" not in incident:
            found.append(f"never over: {incident}")
    conditions = {c["type"]: c for c in after["conditions"]}
    well = {name: conditions[name]["status"] == "True" for name in ("Ready", "Reconciled")}
    well["Degraded"] = conditions["Degraded"]["reason"] in ALLOWED
    found += [f"{name}: {conditions[name]['message']}" for name, fine in well.items() if not fine]
    return found


def true(expected: list[Told], told: list[dict[str, Any]]) -> bool:
    """Whether each of the expected incidents is there once, and nothing else is."""
    left = list(told)
    for one in expected:
        fits = [i for i in left if i["cause"] in one.causes and set(i["victims"]) <= one.victims]
        if not fits:
            return False
        left.remove(fits[0])
    return not left


def roles(pids: list[int]) -> dict[str, list[int]]:
    """The processes of a pod by role; one that ends meanwhile is left out.

    The first process has the agent as its child, that has the fork server, and that the workers:
    those that train with the page of the round, and those that wait for the next one without.
    """
    parents, uploads, pages = {}, set(), set()
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            if "rekindle.checkpoint.saving.uploader" in Path(f"/proc/{pid}/cmdline").read_text():
                uploads.add(pid)
            if "/control" in Path(f"/proc/{pid}/maps").read_text():
                pages.add(pid)
        except OSError:
            continue
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
    found: dict[str, list[int]] = {}
    for pid in pids:
        depth, above = 0, parents.get(pid)
        if above is None:
            continue
        while above in parents:
            above, depth = parents[above], depth + 1
        role = ("first", "agent", "fork server", "standby")[min(depth, 3)]
        if role == "standby" and pid in pages:
            role = "worker"
        found.setdefault("uploader" if pid in uploads else role, []).append(pid)
    return found


def kill(storm: Storm, role: str, causes: set[str]) -> list[Told]:
    def there() -> dict[str, dict[str, list[int]]]:
        found = {pod: storm.processes(pod) for pod in storm.job.members()}
        return {pod: by_role for pod, by_role in found.items() if role in by_role}

    having = storm.eventually(there, f"a pod with a {role}")
    pod = storm.random.choice(sorted(having))
    pids = having[pod][role]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return [Told(causes, {pod})] if causes else []


def kill_pod(storm: Storm) -> list[Told]:
    pod = storm.member()
    storm.site.kill_pod(storm.job.namespace, pod)
    return [Told({"PodLost"}, {pod})]


def kill_all_pods(storm: Storm) -> list[Told]:
    pods = storm.job.members()
    for pod in pods:
        storm.site.kill_pod(storm.job.namespace, pod)
    return [Told({"PodLost"}, set(pods))]


def stop_and_continue(storm: Storm) -> list[Told]:
    pids = storm.site.embedded.pids(storm.job.namespace, storm.member())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)  # the blow itself
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return []


def notice(storm: Storm) -> list[Told]:
    pod = storm.member()
    storm.job.delete_pod(pod)
    return [Told({"Preempted"}, {pod})]


def a_node(storm: Storm) -> tuple[str, set[str]]:
    """A node that the job trains on, and its pods there."""
    node = storm.job.node_of(storm.member())
    return node, {pod for pod in storm.job.members() if storm.job.node_of(pod) == node}


def reclaim(storm: Storm) -> list[Told]:
    node, there = a_node(storm)
    storm.site.embedded.add_node()
    storm.site.embedded.reclaim(node, 30.0)
    storm.eventually(lambda: node not in storm.site.embedded.node_names(), "the node to go")
    return [Told({"Preempted"}, there)]


def node_stands_still(storm: Storm) -> list[Told]:
    node, there = a_node(storm)
    storm.site.embedded.pause(node)
    time.sleep(25.0)  # the blow itself
    storm.site.embedded.resume(node)
    return [Told(LOST, there)]


def kubelet_away(storm: Storm) -> list[Told]:
    node, _ = a_node(storm)
    storm.site.embedded.stop_kubelet(node)
    time.sleep(10.0)  # the blow itself: the node counts as gone after four seconds
    storm.site.embedded.resume(node)
    return []


def power_loss(storm: Storm) -> list[Told]:
    node, there = a_node(storm)
    storm.site.embedded.add_node()
    storm.site.embedded.power_loss(node)
    try:
        storm.job.incident(min(there))
        storm.job.whole(besides=min(there))
    finally:
        storm.site.embedded.remove(node)
    return [Told(LOST, there)]


def api_server_away(storm: Storm) -> list[Told]:
    storm.site.embedded.stop_api_server()
    time.sleep(5.0)  # the blow itself
    storm.site.embedded.start_api_server()
    return []


def operator_away(storm: Storm) -> list[Told]:
    storm.site.operator.kill()
    time.sleep(3.0)  # the blow itself
    storm.site.operator.start()
    return [Told({"OperatorRestarted"}, {"operator"})]


def damaged_newest(storm: Storm) -> list[Told]:
    """The newest commit is damaged while nobody's memory is left: an older one has to do."""
    store = storm.job.store()
    pods = storm.job.members()
    for pod in pods:
        for pid in storm.site.embedded.pids(storm.job.namespace, pod):
            os.kill(pid, signal.SIGSTOP)  # or one more commit could follow
    damage(store, store.commits()[0])
    for pod in pods:
        storm.site.kill_pod(storm.job.namespace, pod)
    return [Told({"PodLost"}, set(pods)), Told({"CheckpointDamaged"}, set())]


def damage(store: Any, ref: Any) -> None:
    """Change a byte in the middle of every data object of a commit."""
    for entry in store.objects.list(f"data/{ref}/"):
        content = bytearray(store.objects.get(entry.key))
        content[len(content) // 2] ^= 0xFF
        store.objects.put(entry.key, bytes(content))


def scaling(storm: Storm) -> list[Told]:
    for replicas in (3, 2):
        storm.job.patch({"replicas": replicas})
        storm.job.whole()
    return []


@contextmanager
def no_room(site: Any) -> Iterator[None]:
    """No node takes a new pod."""
    nodes = site.embedded.node_names()
    for node in nodes:
        site.embedded.cordon(node)
    try:
        yield
    finally:
        for node in nodes:
            site.core.patch_node(node, {"spec": {"unschedulable": None}})


def late_pod(storm: Storm) -> list[Told]:
    """Its replacement finds no node for a while: the others train on without it."""
    pod = storm.member()
    with no_room(storm.site):
        storm.site.kill_pod(storm.job.namespace, pod)
        storm.job.incident(pod)
        storm.job.wait_step(storm.job.step() + 5)
    return [Told({"PodLost"}, {pod})]


BLOWS: dict[str, Callable[[Storm], list[Told]]] = {
    "a pod is killed": kill_pod,
    "a worker is killed": lambda storm: kill(storm, "worker", {"WorkerKilled"}),
    "a fork server is killed": lambda storm: kill(storm, "fork server", {"WorkerKilled"}),
    "an uploader is killed": lambda storm: kill(storm, "uploader", set()),
    "an agent is killed": lambda storm: kill(storm, "agent", {"PodLost", "WorkerKilled"}),
    "all pods are killed": kill_all_pods,
    "a pod stands still for a second": stop_and_continue,
    "a pod is deleted": notice,
    "a node is reclaimed": reclaim,
    "a node loses its power": power_loss,
    "a node stands still": node_stands_still,
    "a kubelet is away": kubelet_away,
    "the API server is away": api_server_away,
    "the operator is away": operator_away,
    "the newest checkpoint is damaged": damaged_newest,
    "the job grows and shrinks": scaling,
    "a pod comes late": late_pod,
}


def drawn(chance: random.Random) -> Iterator[str]:
    """Blows without end; each kind once before one comes again."""
    while True:
        yield from chance.sample(sorted(BLOWS), len(BLOWS))


def finish(job: Any) -> None:
    """Let the job end a few steps from now, by another template."""
    spec = job.get()["spec"]["template"]["spec"]
    arguments = spec["containers"][0]["args"]
    last = job.step() + 60
    spec["containers"][0]["args"] = [
        f"--steps={last}" if argument.startswith("--steps=") else argument for argument in arguments
    ]
    job.patch({"template": {"spec": spec}})
    job.wait_phase("Succeeded")


def final(store: Store) -> tuple[Any, dict[str, bytes]]:
    """The last commit of a run, and its weights."""
    commit = store.read(store.commits()[0])
    weights = store.load(commit).state["model"]
    return commit, {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


def undisturbed(folder: Path, steps: int) -> dict[str, bytes]:
    """The weights of a run of the same script that nobody disturbs: one process, no cluster."""
    command = [sys.executable, Path(__file__).parent / "scripts/regress.py", "--bitwise"]
    subprocess.run([*command, f"--steps={steps}"], cwd=folder, check=True, timeout=1200)
    commit, weights = final(Store.open((folder / "checkpoints").as_uri()))
    assert commit.ref.step == steps
    return weights


def processes_of(namespace: str) -> list[str]:
    """Command lines of what still runs of the jobs in a namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"REKINDLE_JOB_NAMESPACE={namespace}\0".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text())
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def test_a_job_gets_over_a_storm_and_tells_the_truth_about_it(submit, site, eventually, tmp_path):
    if site.embedded is None:
        pytest.skip("only processes and machines of the embedded cluster can be struck")
    job = submit(
        "struck", "--steps=1000000", "--delay=0.05", "--bitwise", "--ballast=20",
        replicas=2, elastic={"minReplicas": 1, "maxReplicas": 3}, grace=60,
        restart={"infrastructure": {"max": 1000}, "preemption": {"max": 1000}},
    )  # fmt: skip
    chance = random.Random(SEED)
    storm = Storm(job, site, chance, eventually)
    job.whole()
    job.wait(lambda s: (s.get("checkpoint") or {}).get("step", 0) >= 20, "two checkpoints")
    ends = time.monotonic() + SECONDS
    for number, name in enumerate(drawn(chance)):
        if time.monotonic() >= ends and number >= SHORT:
            break
        storm.strike(name)
    finish(job)
    status = job.status
    commit, weights = final(job.store())
    job.delete()
    proof = audit(commit.meta)
    assert (proof.samples_repeated, proof.samples_missed) == (0, 0)
    assert proof.digest_ok
    assert weights == undisturbed(tmp_path, commit.ref.step)

    right = sum(right for *_, right in storm.rows)
    assert right >= 0.95 * len(storm.rows), storm.rows
    assert status["restarts"]["user"] == 0, status["incidents"]
    eventually(lambda: not processes_of(job.namespace), "all processes of its pods to end")
