"""What a run wants of its checkpoints: where, how often, how many are kept, how they are reached.

Script and job may both say it. The job (environment) wins, so that a script written for a laptop
runs unchanged on a cluster; options of the store that the script gives stay its own, but for the
endpoint, which belongs to the root. All ranks read the same environment, so they come to the same
result without asking each other.
"""

import json
import os

from rekindle.api import (
    ENV_CHECKPOINT_EVERY,
    ENV_CHECKPOINT_EVERY_SECONDS,
    ENV_CHECKPOINT_EVERY_STEPS,
    ENV_CHECKPOINT_KEEP,
    ENV_CHECKPOINT_URI,
    ENV_MTBF,
)
from rekindle.checkpoint.resolving import JOBS_STORE, jobs_options, whole
from rekindle.checkpoint.retention import Best, Retention
from rekindle.checkpoint.saving.interval import Pace
from rekindle.flags import Every, Flags, check_store_option
from rekindle.persistence.run_identity import place_of


def root(flags: Flags) -> tuple[str, str | None]:
    """Where this fit's checkpoints are, and a line of notice when that is not the script's own."""
    where, notice = base(flags)
    return place_of(where, flags.fit_number), notice


def base(flags: Flags) -> tuple[str, str | None]:
    """The same for the root, which all fits of a script may have in common."""
    # A relative path means the directory that the script was started in.
    wanted = whole(flags.root)
    job = os.environ.get(ENV_CHECKPOINT_URI)
    if not job or job == wanted:
        return wanted, None
    return job, f"checkpoints go to {job}, as the job says, and not to {wanted}"


def interval(flags: Flags) -> Every | Pace | None:
    """How often to save: the job's wish (environment) before the script's; None: at the end."""
    steps = os.environ.get(ENV_CHECKPOINT_EVERY_STEPS)
    seconds = os.environ.get(ENV_CHECKPOINT_EVERY_SECONDS)
    if not steps and not seconds:
        every = os.environ.get(ENV_CHECKPOINT_EVERY) or flags.checkpoint_every
        return _pace(every) if isinstance(every, str) else every
    return Every(steps=int(steps) if steps else None, seconds=float(seconds) if seconds else None)


def _pace(every: str) -> Pace:
    if every != "auto":
        raise ValueError(
            f"{ENV_CHECKPOINT_EVERY}={every!r} is not known; allowed is 'auto', and a number in "
            f"{ENV_CHECKPOINT_EVERY_STEPS} or {ENV_CHECKPOINT_EVERY_SECONDS}"
        )
    told = os.environ.get(ENV_MTBF)
    if not told:
        return Pace()
    try:
        seconds = float(told)
        if not 0 < seconds < float("inf"):
            raise ValueError
    except ValueError:
        raise ValueError(f"{ENV_MTBF}={told!r} must be a number of seconds above 0") from None
    return Pace(mtbf=seconds, told=True)


def retention(flags: Flags) -> Retention:
    """Which commits to keep: the job's wish before the flags, and what callbacks need as well."""
    told = os.environ.get(ENV_CHECKPOINT_KEEP)
    try:
        policy = Retention.from_json(json.loads(told)) if told else None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{ENV_CHECKPOINT_KEEP}={told!r} is no retention: {error}") from None
    policy = policy or Retention(latest=flags.keep_latest)
    for callback in flags.callbacks:
        if (more := callback.keeps()) is not None:
            policy = policy.also(more)
    return policy


def best_rule(flags: Flags) -> Best | None:
    """What "best" means in this script: the first rule that a callback brings, if any does."""
    rules = [rule for c in flags.callbacks if (kept := c.keeps()) is not None for rule in kept.best]
    return rules[0] if rules else None


def store_options(flags: Flags) -> dict[str, str]:
    """How to open the store: the script's words, and the job's where the script says nothing.

    The endpoint is the other way round, as the root is: it belongs to the place that the job names.
    Raises ValueError naming the variable.
    """
    told = jobs_options()
    for option, value in told.items():
        check_store_option(option, value, JOBS_STORE[option])
    options = {**told, **flags.store}
    if "endpoint_url" in told:
        options["endpoint_url"] = told["endpoint_url"]
    return options


def given_options(flags: Flags) -> dict[str, str]:
    """Options of the store that came with the root in use -> how the script has spelt them.

    None when the job has replaced the root: then they were meant for another place.
    """
    if root(flags)[1] is not None:
        return {}
    return {option: f"store[{option!r}]" for option in flags.store}
