"""The demo: the bundled job, with a spot preemption at a random moment, and the proof afterwards.

The node of one pod is reclaimed with notice while training is under way, as a cloud reclaims spot
capacity: the node is tainted, its pods are evicted, and it is gone when the notice is over. Nothing
tells the operator about it by a side door. Moment and victim come from a seed, and the pod with
rank 0 is as likely as any other.
"""

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rekindle_cli import manifest, places
from rekindle_cli.jobs.report import JobReport, Preemption, flaws
from rekindle_cli.jobs.snapshot import JobSnapshot, PodView
from rekindle_cli.jobs.view import ProgressView
from rekindle_cli.local.run import run_job, stack_options
from rekindle_cli.local.stack import LocalStack
from rekindle_cli.manifest import Bundle
from rekindle_cli.output.failure import CommandFailure

NODES = 3
REPLICAS = 2
NOTICE_SECONDS = 20.0
_EARLIEST, _LATEST = 0.3, 0.6


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """When to preempt, and a number that picks whom."""

    share: float
    """Of the steps, 0 to 1."""
    lot: float
    """0 up to 1."""

    def due(self, snapshot: JobSnapshot) -> bool:
        """Whether training is stably under way and far enough."""
        job = snapshot.job
        if job is None or job.phase != "Running" or job.fraction is None or job.finished:
            return False
        return job.fraction >= self.share and bool(self._targets(snapshot))

    def victim(self, snapshot: JobSnapshot) -> PodView:
        """The pod whose node goes."""
        targets = self._targets(snapshot)
        return targets[int(self.lot * len(targets))]

    def _targets(self, snapshot: JobSnapshot) -> list[PodView]:
        return [
            pod
            for pod in snapshot.pods
            if pod.phase == "Running" and pod.ready and pod.node and not pod.deleting
        ]


def plan(seed: int) -> DemoPlan:
    """A pure function of the seed."""
    dice = random.Random(seed)
    return DemoPlan(share=dice.uniform(_EARLIEST, _LATEST), lot=dice.random())


class Reclaimer:
    """Takes the node away once; to be shown every snapshot."""

    def __init__(
        self,
        plan: DemoPlan,
        reclaim: Callable[[str, float], None],
        tell: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._reclaim = reclaim
        self._tell = tell
        self.done: Preemption | None = None

    def __call__(self, snapshot: JobSnapshot) -> None:
        """Act if it is time."""
        if self.done is not None or snapshot.job is None or not self._plan.due(snapshot):
            return
        pod = self._plan.victim(snapshot)
        self._reclaim(pod.node, NOTICE_SECONDS)
        self.done = Preemption(
            at_step=snapshot.job.step or 0,
            pod=pod.name,
            node=pod.node,
            notice_seconds=NOTICE_SECONDS,
        )
        self._tell(
            f"spot reclaim: {pod.node} with {pod.name} goes away in {NOTICE_SECONDS:.0f} s "
            f"(training is at step {self.done.at_step})"
        )


def bundle(epochs: int | None) -> Bundle:
    """The demo's job: the bundled manifest with two pods, and as many epochs as asked for."""
    found = manifest.load(places.demo_manifest())
    job = manifest.with_spec(found.job, {"replicas": REPLICAS})
    if epochs is not None:
        changed = manifest.with_argument(job, "--epochs", str(epochs))
        if changed is None:
            raise CommandFailure(
                "The bundled job has no argument --epochs, so it cannot be changed."
            )
        job = changed
    return replace(found, job=job)


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """How the demo went."""

    report: JobReport
    flaws: list[str]
    """Why it did not show what it promises; empty if it did."""
    seed: int


def perform(
    *, epochs: int | None, seed: int | None, view: ProgressView, verbose: bool = False
) -> DemoResult:
    """The whole demo; a new seed when none is given."""
    started = time.monotonic()
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    job = bundle(epochs)
    options = stack_options(job, nodes=NODES, verbose=verbose)
    with LocalStack(options, view.note) as stack:
        reclaimer = Reclaimer(plan(seed), stack.cluster.reclaim, view.note)
        report = run_job(stack, job, view, started=started, each=reclaimer)
    report = replace(report, preemption=reclaimer.done)
    return DemoResult(report=report, flaws=flaws(report), seed=seed)
