"""What the checkpoint store itself says about a run, and what its ledger proves.

A status is what somebody reported; a commit is what is there. The newest commit holds the ledger of
the samples that its weights have seen, and `rekindle.audit` checks it against the order of the data
derived anew: figures about repeated and missed samples come from there or are not given.

Reading needs credentials, and the store's client takes them from the environment. So this is a
process of its own (``python -m rekindle_cli.jobs.evidence URI``) with exactly the environment that
it should have: nothing of the caller's AWS account gets in by accident, and a store that does not
answer cannot hold up the command beyond its time limit. It imports no torch.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rekindle_cli import places
from rekindle_cli.manifest import S3Access

_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Committed:
    """One checkpoint of the surviving line."""

    step: int
    fence: int
    """The attempt that wrote it; grows with each restart."""
    world_size: int
    created: float
    """Unix seconds, writer's clock."""
    base: int | None
    """Step of the checkpoint that its attempt had resumed from."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the ledger in the newest commit proves."""

    expected: int
    used: int
    repeated: int
    missed: int
    digest_ok: bool
    """Whether the ids used are exactly those of the data order."""

    @property
    def exact(self) -> bool:
        """Every sample up to the commit exactly once per epoch."""
        return (
            self.digest_ok and not self.repeated and not self.missed and self.used == self.expected
        )


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The checkpoints that are kept, newest first, and the samples of the newest."""

    commits: tuple[Committed, ...] = ()
    samples: Samples | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Validation metrics in the newest commit."""
    problem: str = ""
    """Why something of this is not known."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The way back from what the process prints."""
        samples = data.get("samples")
        return cls(
            commits=tuple(Committed(**entry) for entry in data.get("commits", ())),
            samples=None if samples is None else Samples(**samples),
            metrics=dict(data.get("metrics") or {}),
            problem=str(data.get("problem") or ""),
        )


def gather(uri: str, *, options: Mapping[str, str], access: S3Access | None) -> Evidence:
    """Read the store at `uri` in a process of its own; what goes wrong is in `problem`.

    `options` are those of `rekindle.checkpoint.Store.open`, as the job has them. With `access` the
    process has these credentials and no others of AWS; without, the caller's.
    """
    from rekindle.checkpoint.objects.location import InvalidLocation, without_credentials

    command = [sys.executable, "-m", "rekindle_cli.jobs.evidence", uri]
    command += ["--options", json.dumps(dict(options))]
    try:
        # The arguments of a process are for everybody on the machine to read.
        without_credentials(options.get("endpoint_url", ""))
        done = subprocess.run(
            command,
            env=_environment(os.environ, access),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        return Evidence.from_json(json.loads(done.stdout))
    except InvalidLocation as error:
        return Evidence(problem=str(error))
    except subprocess.TimeoutExpired:
        return Evidence(problem=f"{uri} did not answer within {_SECONDS:.0f} s")
    except (ValueError, TypeError, KeyError):
        words = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return Evidence(problem=f"{uri} cannot be read: {words[0] if words else 'no answer'}")


def _environment(caller: Mapping[str, str], access: S3Access | None) -> dict[str, str]:
    environment = dict(caller)
    if access is not None:
        environment = {key: text for key, text in caller.items() if not key.startswith("AWS_")}
        environment |= {
            "AWS_ACCESS_KEY_ID": access.access_key,
            "AWS_SECRET_ACCESS_KEY": access.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            # Files of the caller's would be read for a region or an endpoint otherwise.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
    path = [*places.python_path(), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return environment


def examine(uri: str, options: Mapping[str, str] | None = None) -> Evidence:
    """Read the store in this process, with this process's credentials."""
    from rekindle.checkpoint.store import Store
    from rekindle.data.ledger import audit

    store = Store.open(uri, **(options or {}))
    refs = store.commits()
    if not refs:
        return Evidence(problem=f"{uri} holds no checkpoint")
    read = [store.read(ref) for ref in refs]
    commits = tuple(
        Committed(
            step=commit.ref.step,
            fence=commit.ref.fence,
            world_size=commit.world_size,
            created=commit.created,
            base=None if commit.base is None else commit.base.step,
        )
        for commit in read
    )
    meta = read[0].meta
    try:
        found = audit(meta, store.objects.get)
    except ValueError as error:  # NoLedger, or an order that is not in the store
        problem = f"of the newest checkpoint, {error}"
        return Evidence(commits=commits, metrics=_metrics(meta), problem=problem)
    return Evidence(
        commits=commits,
        metrics=_metrics(meta),
        samples=Samples(
            expected=found.samples_expected,
            used=found.samples_used,
            repeated=found.samples_repeated,
            missed=found.samples_missed,
            digest_ok=found.digest_ok is True,
        ),
    )


def _metrics(meta: Mapping[str, Any]) -> dict[str, float]:
    found = meta.get("metrics")
    if not isinstance(found, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the evidence as one JSON object; errors are part of it."""
    parser = argparse.ArgumentParser(
        prog="python -m rekindle_cli.jobs.evidence", description=__doc__
    )
    parser.add_argument("uri")
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args(arguments)
    from rekindle.checkpoint.format.manifest import IntegrityError, VersionError
    from rekindle.checkpoint.objects.interface import StoreError
    from rekindle.checkpoint.objects.location import InvalidLocation

    try:
        found = examine(given.uri, given.options)
    except (InvalidLocation, IntegrityError, VersionError, StoreError, ValueError) as error:
        found = Evidence(problem=str(error))
    print(json.dumps(dataclasses.asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
