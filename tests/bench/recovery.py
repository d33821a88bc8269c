"""How long training stands still when a pod goes, beside torchrun with defaults and tuned.

Run it alone: `python tests/bench/recovery.py [--rounds 5] [--only kill preempt ...]`; about twelve
minutes, most of it torchrun's time-outs. Everything runs on the embedded cluster with the real
operator, three pods on three nodes; torchrun's launchers are plain pods of the same cluster. The
last line is JSON, seconds as medians unless the name says otherwise:

- rekindle_kill_s            SIGKILL of PID 1 of one pod of three, until the last of the survivors
                             has done its next optimizer step; the victim rotates, rank 0 included
- rekindle_kill_100mb_s      the same with 100 MB of model and optimizer state
- rekindle_kill_3workers_s   the same with three workers per pod
- rekindle_power_loss_s      the node of one pod of three loses its power, until the last of the
                             survivors has done its next optimizer step: nothing there is heard any
                             more, no connection is closed, Kubernetes taints it after 40 s and
                             evicts after 300 s. A replacement has joined before the next one goes
- rekindle_power_loss_blind_s  the same with an operator that may not read nodes
- rekindle_join_gap_s        the longest time between two steps of a survivor while the replacement
                             comes up and joins
- rekindle_preempt_gap_s     the same for a pod that is deleted with its grace, from the deletion on
- steps_lost                 steps that were done again after those deletions, all together
- torchrun_default_s         a kill under torchrun with its defaults, until the survivors' next step
- torchrun_tuned_s           the same with an external store, keep-alive of 1 s, last call of 2 s,
                             and without sharing the store
- torchrun_unrecovered       runs of torchrun that had not recovered when they were given up; they
                             count with the time that was waited. The defaults keep the workers of
                             all tries in one store without prefixes: a new worker may read the
                             address of one that is gone, and a whole round is lost
- breakdown                  the kill as its incident tells it: detect, decide, restart, restore and
                             firstStep, medians; null where the incident has none
- breakdown_error            by how much their sum differs from the measured whole, in the median
- spread                     [min, max] and the number of measurements of each

Times are taken by the workers and read from outside (see recovery_steps); they share one clock.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "operator"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "runtime"))

import yaml
from kubernetes import client, config
from recovery_steps import Course, longest_gap, resumed_at, settled, steps_lost

from rekindle.api import RECOVERY_PHASES
from rekindle_cli.local.stack import free_ports
from rekindle_local.cluster import ClusterConfig, ClusterThread
from rekindle_local.images import python_image
from rekindle_local.nodes.node_lifecycle import AS_IN_A_CLUSTER

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GROUP, VERSION, PLURAL = "rekindle.dev", "v1alpha1", "trainingjobs"
PATIENCE = 120.0
"""Seconds that any single thing may take."""
CALM = 30
"""Steps that all workers have done in one generation before anything is measured."""
GIVE_UP = 200.0
"""Seconds after which torchrun's defaults are no longer waited for."""
PARTS = (
    "kill", "kill-100mb", "kill-3workers", "preempt", "power-loss", "power-loss-blind",
    "torchrun-tuned", "torchrun-default",
)  # fmt: skip


@dataclass
class Figures:
    """What has been measured, by field."""

    values: dict[str, list[float]] = field(default_factory=dict)
    breakdowns: list[dict[str, float]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    unrecovered: int = 0

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)
        print(f"{name} {value:.3f}", file=sys.stderr, flush=True)

    def add_torchrun(self, name: str, seconds: float | None, waited: float) -> None:
        """Take over a recovery, or that there was none within the time that was waited."""
        self.add(name, waited if seconds is None else seconds)
        self.unrecovered += seconds is None

    def add_breakdown(self, recovery: dict[str, float] | None, whole: float) -> None:
        """Take over an incident's own account of a recovery that took ``whole`` seconds."""
        if not recovery or any(recovery.get(name) is None for name in RECOVERY_PHASES):
            return
        parts = {name: float(recovery[name]) for name in RECOVERY_PHASES}
        self.breakdowns.append(parts)
        self.errors.append(abs(sum(parts.values()) - whole) / whole)
        print(f"  {recovery}", file=sys.stderr, flush=True)

    def result(self) -> dict[str, Any]:
        names = (
            "rekindle_kill_s", "rekindle_kill_100mb_s", "rekindle_kill_3workers_s",
            "rekindle_power_loss_s", "rekindle_power_loss_blind_s",
            "rekindle_join_gap_s", "rekindle_preempt_gap_s",
            "torchrun_default_s", "torchrun_tuned_s",
        )  # fmt: skip
        medians = {
            name: round(statistics.median(self.values[name]), 3) if name in self.values else None
            for name in names
        }
        parts = {
            name: round(statistics.median(each[name] for each in self.breakdowns), 4)
            for name in (RECOVERY_PHASES if self.breakdowns else ())
        }
        error = round(statistics.median(self.errors), 4) if self.errors else None
        spread = {
            name: [round(min(found), 3), round(max(found), 3), len(found)]
            for name, found in self.values.items()
        }
        return {
            **medians,
            "steps_lost": sum(self.lost) if self.lost else None,
            "breakdown": parts or None,
            "breakdown_error": error,
            "torchrun_unrecovered": self.unrecovered,
            "spread": spread,
        }


def wait_for(check: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The first truthy answer; raises TimeoutError naming what was waited for."""
    end = time.monotonic() + seconds
    while not (value := check()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.1)
    return value


def python_path() -> str:
    """Where processes find this checkout's packages, whatever else is installed."""
    own = [str(ROOT / "operator"), str(ROOT / "runtime")]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextlib.contextmanager
def operator(kubeconfig: Path, log: Path, *options: str) -> Iterator[None]:
    """The operator as a process."""
    port, health = free_ports(2)
    command = [
        sys.executable, "-m", "rekindle_operator",
        "--coordinator-url", f"https://127.0.0.1:{port}", "--tls-directory",
        str(log.parent / "tls"),
        "--host", "127.0.0.1", "--port", str(port), "--metrics-port", str(health),
        *options,
    ]  # fmt: skip
    env = {**os.environ, "KUBECONFIG": str(kubeconfig), "PYTHONPATH": python_path()}
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the operator has ended:\n{log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{health}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_for(ready, "the operator to be ready")
        yield
    finally:
        process.terminate()
        process.wait(30)


@dataclass
class Site:
    """The cluster, and a folder for what workers note."""

    thread: ClusterThread
    folder: Path
    namespace: str = "bench"
    dark: list[str] = field(default_factory=list)
    """Nodes that have lost their power."""

    def __post_init__(self) -> None:
        api = config.new_client_from_config(str(self.thread.kubeconfig))
        self.core, self.jobs = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self.core.create_namespace({"metadata": {"name": self.namespace}})
        key, secret = self.thread.s3_credentials
        data = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        body = {"metadata": {"name": "s3"}, "stringData": data}
        self.core.create_namespaced_secret(self.namespace, body)

    def kill(self, pod: str) -> float:
        """SIGKILL PID 1 of a pod; gives the moment."""
        pid = self.thread.pids(self.namespace, pod)[0]
        at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return at

    def power_loss(self, pod: str) -> float:
        """The node of a pod loses its power, and another one comes; gives the moment."""
        node = self.thread.node_of(self.namespace, pod)
        self.thread.add_node()
        at = time.monotonic()
        self.thread.power_loss(node)
        self.dark.append(node)
        return at

    def clear(self) -> None:
        """Take away the nodes without power: their pods cannot end otherwise."""
        while self.dark:
            self.thread.remove(self.dark.pop())

    def logs(self, pods: list[str]) -> str:
        """The last lines of pods that may exist, for a run that has gone wrong."""
        parts = []
        for pod in pods:
            with contextlib.suppress(client.ApiException):
                text = self.core.read_namespaced_pod_log(pod, self.namespace, tail_lines=200)
                parts.append(f"--- {pod}\n{text}")
        return "\n".join(parts)


class Job:
    """A TrainingJob of three pods."""

    def __init__(self, site: Site, name: str, *arguments: str, workers: int = 1) -> None:
        self.site, self.name, self.workers = site, name, workers
        notes = site.folder / name
        notes.mkdir()
        self.course = Course(notes)
        container = {
            "name": "trainer",
            "image": "rekindle/runtime:bench",
            "args": [str(HERE / "recovery_rekindle.py"), f"--notes={notes}", *arguments],
        }
        spec = {
            "replicas": 3,
            "procPerNode": workers,
            "template": {"spec": {"terminationGracePeriodSeconds": 30, "containers": [container]}},
            "checkpoint": {
                "uri": f"s3://rekindle/{name}",
                "endpointUrl": site.thread.s3_endpoint,
                "secretRef": {"name": "s3"},
            },
        }
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": site.namespace},
            "spec": spec,
        }
        site.jobs.create_namespaced_custom_object(GROUP, VERSION, site.namespace, PLURAL, body)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(json.dumps(self.status(), indent=1), file=sys.stderr)
            print(self.site.logs([pod_of(name) for name in self.course.workers]))
        arguments = (GROUP, VERSION, self.site.namespace, PLURAL, self.name)
        self.site.jobs.delete_namespaced_custom_object(*arguments)
        self.site.clear()
        selector = f"rekindle.dev/job={self.name}"
        wait_for(
            lambda: (
                not self.site.core.list_namespaced_pod(
                    self.site.namespace, label_selector=selector
                ).items
            ),
            "the job's pods to go",
        )

    def status(self) -> dict[str, Any]:
        found = self.site.jobs.get_namespaced_custom_object(
            GROUP, VERSION, self.site.namespace, PLURAL, self.name
        )
        return found.get("status") or {}

    def generation(self) -> int:
        """The newest round that has done a step."""
        last = [steps[-1].generation for steps in self.course.read().values() if steps]
        return max(last, default=0)

    def running(self, count: int = CALM) -> list[str]:
        """The workers of a whole round, by name, when all have done so many steps; else none."""
        workers, generation = self.course.read(), self.generation()
        found = [name for name, steps in workers.items() if settled(steps, generation, count)]
        whole = 3 * self.workers
        return sorted(found) if len(found) == whole else []

    def calm(self) -> list[str]:
        """Wait for a whole round that trains undisturbed; gives its workers."""
        return list(wait_for(self.running, f"{self.name} to train with all pods"))

    def incident(self) -> dict[str, Any]:
        """The newest incident, once it is closed."""

        def closed() -> dict[str, Any] | None:
            found = self.status().get("incidents") or [{}]
            return found[-1] if found[-1].get("secondsLost") is not None else None

        return dict(wait_for(closed, f"{self.name} to close its incident"))


def pod_of(worker: str) -> str:
    return worker.partition("@")[0]


def pods_of(workers: list[str]) -> list[str]:
    """The pods of workers, in the order of their slots."""
    return sorted({pod_of(worker) for worker in workers})


def measure_kills(
    job: Job,
    rounds: int,
    figures: Figures,
    name: str,
    *,
    join: bool = False,
    lose: Callable[[str], float] | None = None,
) -> None:
    """Kill one pod after the other, or lose it; each is replaced before the next one goes."""
    for number in range(rounds):
        workers = job.calm()
        victim = pods_of(workers)[number % 3]
        others = [worker for worker in workers if pod_of(worker) != victim]
        before = job.generation()
        killed = (lose or job.site.kill)(victim)

        def resumed(
            others: list[str] = others, killed: float = killed, before: int = before
        ) -> list[float] | None:
            found = job.course.read()
            moments = [resumed_at(found[worker], killed, before) for worker in others]
            return None if None in moments else [at for at in moments if at is not None]

        stepped = max(wait_for(resumed, f"{job.name} to go on without {victim}"))
        figures.add(name, stepped - killed)
        job.calm()
        if join:
            workers_now = job.course.read()
            end = max(steps[-1].at for steps in workers_now.values())
            gaps = [longest_gap(workers_now[worker], stepped, end) for worker in others]
            figures.add("rekindle_join_gap_s", max(gaps))
            figures.add_breakdown(job.incident().get("recovery"), stepped - killed)


def measure_preemptions(job: Job, rounds: int, figures: Figures) -> None:
    """Delete one pod after the other, as a drain does; each is replaced before the next one."""
    for number in range(rounds):
        workers = job.calm()
        victim = pods_of(workers)[number % 3]
        others = [worker for worker in workers if pod_of(worker) != victim]
        deleted = time.monotonic()
        job.site.core.delete_namespaced_pod(victim, job.site.namespace)

        def replaced(others: list[str] = others) -> bool:
            now = job.running()
            return bool(now) and now != workers and set(others) <= set(now)  # noqa: B023

        wait_for(replaced, f"{job.name} to train without {victim} and with its replacement")
        steps = job.course.read()
        end = max(found[-1].at for found in steps.values())
        gaps = [longest_gap(steps[worker], deleted, end) for worker in others]
        figures.add("rekindle_preempt_gap_s", max(gaps))
        figures.lost.append(steps_lost(steps.values(), deleted))


def launchers(site: Site, name: str, endpoint: str | None) -> list[str]:
    """Start three torchrun launchers as pods, tuned if there is a store outside of them."""
    tuned = endpoint is not None
    notes = site.folder / name
    notes.mkdir()
    settings = (
        "is_host=0,keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=2"
        if tuned
        else "is_host={host}"
    )
    pods: list[str] = []
    for number in range(3):
        pod = f"{name}-{number}"
        container = {
            "name": "launcher",
            "image": "rekindle/runtime:bench",
            "command": [
                "python", "-m", "torch.distributed.run",
                "--nnodes=2:3", "--nproc-per-node=1", "--max-restarts=10",
                "--rdzv-backend=c10d", f"--rdzv-id={name}",
                f"--rdzv-endpoint={endpoint or '$(POD_IP):' + str(free_ports(1)[0])}",
                f"--rdzv-conf={settings.format(host=int(number == 0))}",
                "--local-addr=$(POD_IP)",
                str(HERE / "recovery_torchrun.py"),
                f"--notes={notes}", f"--snapshot={notes / 'snapshot.pt'}", "--delay=0.05",
            ],
            "env": [
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                *([{"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"}] if tuned else []),
            ],
        }  # fmt: skip
        spec = {"restartPolicy": "Never", "containers": [container]}
        body = {"metadata": {"name": pod}, "spec": spec}
        site.core.create_namespaced_pod(site.namespace, body)
        pods.append(pod)
        if endpoint is None:

            def address(pod: str = pod) -> str | None:
                found = site.core.read_namespaced_pod(pod, site.namespace)
                return str(found.status.pod_ip or "")

            port = container["command"][8].rpartition(":")[2]
            endpoint = f"{wait_for(address, f'the address of {pod}')}:{port}"
    return pods


@dataclass
class Torchrun:
    """Three launchers that train until one of them is killed."""

    site: Site
    name: str
    pods: list[str]
    store: Any
    """The rendezvous, where it is not within the first launcher."""
    killed: float = 0.0
    victim: str = ""

    def kill(self, victim: int) -> None:
        """Wait until all train, then kill one."""
        course = Course(self.site.folder / self.name)

        def calm() -> bool:
            steps = [found for found in course.read().values() if len(found) >= CALM]
            return len(steps) == 3 and all(found[-1].world == 3 for found in steps)

        wait_for(calm, f"{self.name} to train")
        self.victim = self.pods[victim]
        # Every process is a generation of its own, named by when it began.
        self._before = time.monotonic_ns()
        self.killed = self.site.kill(self.victim)

    def recovered(self, seconds: float) -> float | None:
        """How long it took until both survivors stepped; None: longer than ``seconds``."""
        course = Course(self.site.folder / self.name)

        def resumed() -> list[float] | None:
            moments = [
                resumed_at(steps, self.killed, self._before)
                for worker, steps in course.read().items()
                if pod_of(worker) != self.victim
            ]
            return None if None in moments else [at for at in moments if at is not None]

        left = max(self.killed + seconds - time.monotonic(), 0.1)
        try:
            return float(max(wait_for(resumed, f"{self.name} to go on", left))) - self.killed
        except TimeoutError:
            print(self.site.logs(self.pods), file=sys.stderr)
            return None

    def end(self) -> None:
        for pod in self.pods:
            self.site.core.delete_namespaced_pod(pod, self.site.namespace, grace_period_seconds=0)


def measure_tuned(site: Site, rounds: int, figures: Figures) -> None:
    """One start of three launchers, and one kill, for each measurement."""
    for number in range(rounds):
        store = external_store()
        name = f"torchrun-tuned-{number}"
        run = Torchrun(site, name, launchers(site, name, f"127.0.0.1:{store.port}"), store)
        try:
            run.kill(number % 3)
            figures.add_torchrun("torchrun_tuned_s", run.recovered(PATIENCE), PATIENCE)
        finally:
            run.end()


def measure_defaults(site: Site, rounds: int, figures: Figures) -> None:
    """The same; but what is measured are time-outs, which may well pass side by side."""
    runs: list[Torchrun] = []
    try:
        for number in range(rounds):
            name = f"torchrun-default-{number}"
            runs.append(Torchrun(site, name, launchers(site, name, None), None))
            # The rendezvous lives in the first launcher: without it nothing goes on.
            runs[-1].kill(1 + number % 2)
        for run in runs:
            figures.add_torchrun("torchrun_default_s", run.recovered(GIVE_UP), GIVE_UP)
            run.end()
    finally:
        for run in runs:
            with contextlib.suppress(client.ApiException):
                run.end()


def external_store() -> Any:
    """A TCPStore of its own for torchrun's rendezvous, which no kill takes away."""
    from torch.distributed import TCPStore

    return TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )


def measure(chosen: argparse.Namespace, folder: Path) -> Figures:
    """Run the chosen parts on a cluster of their own."""
    figures = Figures()
    cluster = ClusterConfig(
        nodes=3,
        lifecycle=AS_IN_A_CLUSTER,
        images={"rekindle/runtime:*": python_image(HERE, env={"PYTHONPATH": python_path()})},
        crds=(yaml.safe_load((ROOT / "crds" / "trainingjob.yaml").read_text()),),
    )
    log = folder / "operator.log"
    small, large = ("--delay=0.012",), ("--width=2048", "--lanes=3")
    try:
        if {*chosen.only} - {"power-loss-blind"}:
            with ClusterThread(cluster) as thread, operator(thread.kubeconfig, log):
                site = Site(thread, folder)
                if "kill" in chosen.only:
                    with Job(site, "small", *small) as job:
                        measure_kills(job, chosen.rounds, figures, "rekindle_kill_s", join=True)
                if "preempt" in chosen.only:
                    with Job(site, "preempted", *small) as job:
                        measure_preemptions(job, chosen.rounds, figures)
                if "kill-100mb" in chosen.only:
                    with Job(site, "large", *large) as job:
                        measure_kills(job, chosen.rounds, figures, "rekindle_kill_100mb_s")
                if "kill-3workers" in chosen.only:
                    with Job(site, "threes", *small, "--lanes=18", workers=3) as job:
                        measure_kills(job, chosen.rounds, figures, "rekindle_kill_3workers_s")
                if "power-loss" in chosen.only:
                    with Job(site, "dark", *small) as job:
                        name, lose = "rekindle_power_loss_s", site.power_loss
                        measure_kills(job, chosen.rounds, figures, name, lose=lose)
                if "torchrun-tuned" in chosen.only:
                    measure_tuned(site, chosen.rounds, figures)
                if "torchrun-default" in chosen.only:
                    measure_defaults(site, chosen.default_rounds or chosen.rounds, figures)
        if "power-loss-blind" in chosen.only:
            with (
                ClusterThread(cluster) as thread,
                operator(thread.kubeconfig, log, "--no-watch-nodes"),
            ):
                site = Site(thread, folder)
                with Job(site, "blind", *small) as job:
                    name, lose = "rekindle_power_loss_blind_s", site.power_loss
                    measure_kills(job, chosen.rounds, figures, name, lose=lose)
    except BaseException:
        print(log.read_text()[-6000:] if log.exists() else "", file=sys.stderr)
        raise
    return figures


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind")
    parser.add_argument(
        "--default-rounds", type=int, help="the same for torchrun's defaults, 55 s each"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--keep", type=Path, help="leave logs and notes in this folder")
    return parser.parse_args(arguments)


def main() -> None:
    chosen = parse()
    with contextlib.ExitStack() as stack:
        if chosen.keep:
            chosen.keep.mkdir(parents=True, exist_ok=True)
            folder = chosen.keep.resolve()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="recovery-")))
        figures = measure(chosen, folder)
    print(json.dumps(figures.result()))


if __name__ == "__main__":
    main()
