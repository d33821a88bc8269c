"""``rekindle audit``: proves from a checkpoint which samples its weights have seen.

The ledger in the checkpoint says what completed steps did, and holds a digest of the ids that were
handed to the model. Here both are held against the order of the data, derived anew from seed and
size. Work that was lost with a crash is in neither: they speak of the surviving timeline. Exit code
1 means that something is not exactly once; no torch and no dataset is needed.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from rekindle_cli.checkpoints.store_arguments import (
    Json,
    Name,
    Options,
    Uri,
    command,
    opened,
    print_json,
)
from rekindle_cli.output.failure import JOB_FAILED, CommandFailure
from rekindle_cli.output.wording import count

if TYPE_CHECKING:
    from rekindle.data.ledger import Audit

EPOCHS = ("EPOCH", "SAMPLES", "USED", "REPEATED", "MISSED")
SIZES = ("FROM STEP", "EPOCH", "SAMPLE", "GLOBAL BATCH", "MICRO-BATCH", "PROCESSES")
_FIELDS = ("step", "epoch", "sample", "G", "m", "world_size")


def add_to(app: typer.Typer) -> None:
    """Make ``audit`` a command of `app`."""

    @command(app, "audit")
    def audit(
        uri: Uri,
        step: Name = "latest",
        as_json: Json = False,
        *,
        options: Options,
    ) -> None:
        """Prove which samples the weights of a checkpoint have seen; exit code 1 if not exact."""
        from rekindle.data.ledger import NoLedger, audit
        from rekindle_cli.checkpoints import inventory

        with opened(uri, options) as store:
            commit = store.read(inventory.resolve(store, step))
            try:
                found = audit(commit.meta, store.objects.get)
            except NoLedger as error:
                raise CommandFailure(
                    f"Step {commit.ref.step} in {store.uri} proves nothing: {error}."
                ) from None
        if as_json:
            print_json(
                {"uri": store.uri, **inventory.ref_json(commit.ref), **report(commit.meta, found)}
            )
        else:
            show(commit.ref.step, commit.meta, found)
        if not found.exact:
            raise typer.Exit(JOB_FAILED)


def report(meta: Mapping[str, Any], found: "Audit") -> dict[str, Any]:
    """The proof as plain values."""
    cursor = meta["cursor"]
    return {
        "exact": found.exact,
        "digest_ok": found.digest_ok,
        "samples_expected": found.samples_expected,
        "samples_used": found.samples_used,
        "samples_repeated": found.samples_repeated,
        "samples_missed": found.samples_missed,
        "samples_restarted": found.samples_restarted,
        "epochs": [{**asdict(one), "missed": one.missed} for one in found.epochs],
        "position": {name: cursor.get(name) for name in ("epoch", "sample", "length", "N")},
        "order": cursor.get("order"),
        "seed": cursor.get("seed"),
        "sizes": [dict(entry) for entry in meta.get("history", ())],
    }


def show(step: int, meta: Mapping[str, Any], found: "Audit") -> None:
    """The proof for people."""
    from rekindle_cli.output import tables

    rows = [
        (
            str(one.first) if one.count == 1 else f"{one.first}-{one.first + one.count - 1}",
            *(f"{value:,}" for value in (one.expected, one.used, one.repeated, one.missed)),
        )
        for one in found.epochs
    ]
    tables.show(EPOCHS, rows, sys.stdout)
    history: Sequence[Mapping[str, int]] = meta.get("history", ())
    if history:
        print()
        sizes = [tuple(_figure(entry.get(name)) for name in _FIELDS) for entry in history]
        tables.show(SIZES, sizes, sys.stdout)
    print()
    print(verdict(step, found))


def _figure(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def verdict(step: int, found: "Audit") -> str:
    """One sentence, the whole result."""
    samples = count(found.samples_expected, "sample")
    if found.exact:
        return f"Step {step}: proven, {samples} exactly once per epoch, none repeated or missed."
    flaws = []
    if found.samples_repeated:
        flaws.append(f"{found.samples_repeated:,} repeated")
    if found.samples_missed:
        flaws.append(f"{found.samples_missed:,} missed")
    if found.samples_restarted:
        flaws.append(f"{found.samples_restarted:,} of epochs begun anew on a changed dataset")
    if found.samples_used != found.samples_expected:
        flaws.append(f"{found.samples_used:,} used")
    if found.digest_ok is False:
        flaws.append("the samples used are not those of the order")
    if found.digest_ok is None:
        flaws.append("the order cannot be derived anew, so positions are all that is known")
    return f"Step {step}: not proven for {samples}: {', '.join(flaws)}."
