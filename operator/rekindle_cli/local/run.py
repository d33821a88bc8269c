"""Running one job on this machine: cluster up, apply, follow, summary.

`follow_to_end` is the loop that `run` and `demo` share: a snapshot comes in, the timeline says what
changed, the view shows it. It ends with the job, or when the job is deleted.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rekindle_cli import manifest, places
from rekindle_cli.jobs import evidence
from rekindle_cli.jobs.client import Api
from rekindle_cli.jobs.evidence import Evidence
from rekindle_cli.jobs.follow import Follower
from rekindle_cli.jobs.report import JobReport
from rekindle_cli.jobs.snapshot import JobSnapshot
from rekindle_cli.jobs.timeline import timeline
from rekindle_cli.jobs.view import ProgressView
from rekindle_cli.local.stack import LocalStack, Options
from rekindle_cli.manifest import Bundle
from rekindle_cli.output.failure import CommandFailure

_LOST_SECONDS = 60.0
_UNSEEN_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What `rekindle run` was asked for."""

    path: Path
    nodes: int = 3
    workdir: Path | None = None
    real_s3: bool = False
    verbose: bool = False


def prepare(request: RunRequest) -> tuple[Bundle, Options]:
    """Read the manifest, and decide what the cluster for it has to have."""
    bundle = manifest.load(request.path)
    if request.workdir is not None and not request.workdir.is_dir():
        raise CommandFailure(f"--workdir {request.workdir} is no directory.")
    return bundle, stack_options(
        bundle,
        nodes=request.nodes,
        workdir=request.workdir,
        real_s3=request.real_s3,
        verbose=request.verbose,
    )


def stack_options(
    bundle: Bundle,
    *,
    nodes: int,
    workdir: Path | None = None,
    real_s3: bool = False,
    verbose: bool = False,
) -> Options:
    """What a cluster has to have for this job."""
    where = workdir or manifest.working_directory(bundle, places.examples())
    bucket = None if real_s3 else manifest.bucket(bundle.job)
    return Options(
        nodes=nodes,
        workdirs=dict.fromkeys(manifest.images(bundle.job), where.resolve()),
        buckets=(bucket,) if bucket else (),
        real_s3=real_s3,
        verbose=verbose,
    )


def apply(
    stack: LocalStack, api: Api, bundle: Bundle, view: ProgressView, *, real_s3: bool
) -> Bundle:
    """Create the objects of a bundle, as they have to be on this machine; gives those applied."""
    local = manifest.localise(bundle, None if real_s3 else stack.s3)
    for note in local.notes:
        view.note(note)
    namespace = local.bundle.namespace
    if namespace != manifest.DEFAULT_NAMESPACE:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        api.apply(body, namespace)
    for other in local.bundle.others:
        api.apply(other, namespace)
    api.apply(local.bundle.job, namespace)
    return local.bundle


def follow_to_end(
    snapshots: Iterable[JobSnapshot],
    view: ProgressView,
    *,
    lost_for: Callable[[], float] = lambda: 0.0,
    each: Callable[[JobSnapshot], None] = lambda snapshot: None,
) -> JobSnapshot:
    """Show every change until the job has ended; gives the last snapshot."""
    previous: JobSnapshot | None = None
    for current in snapshots:
        view.show(current, timeline(previous, current))
        if current.job is None and previous is not None and previous.job is not None:
            raise CommandFailure(
                f"TrainingJob {previous.job.name} was deleted.", reason="JobFailed", code=1
            )
        if current.job is not None and current.job.finished:
            return current
        if lost_for() > _LOST_SECONDS:
            raise CommandFailure(
                f"The cluster has not answered for {_LOST_SECONDS:.0f} s.",
                reason="JobFailed",
                code=1,
            )
        each(current)
        previous = current
    raise CommandFailure("The job is no longer followed.", reason="JobFailed", code=1)


class StepWatch:
    """Notices when progress falls back, which means that steps were lost."""

    def __init__(self) -> None:
        self._step = 0
        self.back = 0
        """Steps that it fell back by, over all times."""

    def __call__(self, snapshot: JobSnapshot) -> None:
        """Look at the next snapshot."""
        step = snapshot.job.step if snapshot.job is not None else None
        if step is not None:
            self.back += max(0, self._step - step)
            self._step = step


class Patience:
    """Ends once when nobody takes up a job."""

    def __init__(self) -> None:
        self._since: datetime | None = None
        self._over = False

    def over(self, snapshot: JobSnapshot) -> bool:
        """Whether to complain now."""
        if self._over or snapshot.job is None or snapshot.job.seen:
            return False
        self._since = self._since or snapshot.at
        self._over = (snapshot.at - self._since).total_seconds() > _UNSEEN_SECONDS
        return self._over


def run_job(
    stack: LocalStack,
    bundle: Bundle,
    view: ProgressView,
    *,
    started: float,
    real_s3: bool = False,
    each: Callable[[JobSnapshot], None] = lambda snapshot: None,
) -> JobReport:
    """Apply a bundle to a running stack, follow it to its end, and collect what is known then."""
    api = stack.api()
    applied = apply(stack, api, bundle, view, real_s3=real_s3)
    steps, patience = StepWatch(), Patience()

    def look(snapshot: JobSnapshot) -> None:
        steps(snapshot)
        if patience.over(snapshot):
            view.note(
                f"no operator has looked at the job for {_UNSEEN_SECONDS:.0f} s; "
                f"what it says is in {stack.operator.log if stack.operator else 'its log'}"
            )
        each(snapshot)

    with Follower(api, applied.namespace, applied.name) as follower, view:
        last = follow_to_end(
            follower.snapshots(), view, lost_for=lambda: follower.lost_for, each=look
        )
        took = time.monotonic() - started
        last = replace(last, rounds=follower.now().rounds or last.rounds)
    assert last.job is not None, "a followed job that ended is there"
    return JobReport(
        job=last.job,
        seconds=took,
        rounds=last.rounds,
        steps_back=steps.back,
        evidence=_evidence(stack, applied, real_s3=real_s3),
    )


def _evidence(stack: LocalStack, applied: Bundle, *, real_s3: bool) -> Evidence:
    return evidence.gather(
        applied.job["spec"]["checkpoint"]["uri"],
        options=manifest.store_options(applied.job),
        access=None if real_s3 else stack.s3,
    )


def last_words(api: Api, report: JobReport, lines: int = 15) -> list[str]:
    """The end of the log of the pod that the newest incident blames, for a job that failed."""
    victims = report.job.incidents[-1].victims if report.job.incidents else ()
    for pod in victims:
        found = api.log_tail(report.job.namespace, pod, lines)
        if found:
            return [f"The last lines of {pod}:", *(f"  {line}" for line in found)]
    return []
