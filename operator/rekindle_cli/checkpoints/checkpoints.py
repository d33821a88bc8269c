"""``rekindle checkpoints``: looking at, checking and keeping checkpoints, on S3 or a file system.

Parsing and printing; the work is in `rekindle.checkpoint`. Nothing here needs torch but `import`,
which runs in a process of its own. Exit codes: 0 done, 1 damage was found, 2 something has to be
corrected first. With ``--json`` standard output has one JSON object. A store that exists and holds
no checkpoint can be listed; a place where nothing is cannot, since it is most likely misspelt.
"""

import json
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from rekindle.checkpoint.retention import Best

app = typer.Typer(
    name="checkpoints",
    help="Look at, check and keep checkpoints, on s3:// and file://.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@command(app, "ls")
def list_(
    uri: Uri,
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """List all checkpoints, newest first, also those that no restore would take."""
    from rekindle_cli.checkpoints import inventory
    from rekindle_cli.output import tables

    with opened(uri, options) as store:
        found = inventory.entries(store)
    if as_json:
        print_json({"uri": store.uri, "checkpoints": [inventory.entry_json(one) for one in found]})
    elif found:
        tables.show(inventory.HEADER, [inventory.row(one) for one in found], sys.stdout)
    else:
        print(f"{store.uri} holds no checkpoint.")


@command(app)
def show(
    uri: Uri,
    step: Name = "latest",
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Show what one checkpoint holds."""
    from rekindle.checkpoint.difference import flat
    from rekindle.checkpoint.format.encoding import encode
    from rekindle_cli.checkpoints import inventory
    from rekindle_cli.jobs.view import print_rows
    from rekindle_cli.output import tables

    with opened(uri, options) as store:
        ref = inventory.resolve(store, step)
        entry = next((one for one in inventory.entries(store) if one.ref == ref), None)
        if entry is None:
            raise CommandFailure(f"Step {ref.step} was removed just now.", reason="NotFound")
    commit = entry.commit
    if as_json:
        document = inventory.entry_json(entry)
        if commit is not None:
            document["meta"] = encode(commit.meta, "meta")
            document["tensors"] = [
                {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes}
                for t in commit.tensors
            ]
        print_json(document)
        return
    rows = inventory.details(entry)
    if commit is not None:
        rows += [(f"meta {path}", f"{value!r:.100}") for path, value in flat(commit.meta).items()]
    print_rows(rows, sys.stdout)
    if tensors and commit is not None:
        print()
        tables.show(("TENSOR", "DTYPE", "SHAPE", "SIZE"), inventory.tensor_rows(commit), sys.stdout)


@command(app)
def verify(
    uri: Uri,
    step: Annotated[
        str | None, typer.Argument(help="As for show; else every checkpoint.", metavar="[STEP]")
    ] = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Mark damaged ones, so that no restore tries them.")
    ] = False,
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Read checkpoints back and compare every checksum; exit code 1 if anything is damaged."""
    from rekindle.checkpoint import verify as checking
    from rekindle_cli.checkpoints import inventory
    from rekindle_cli.output.wording import count

    reports = []
    with opened(uri, options) as store:
        if step is None:
            refs = sorted(store.listed(), reverse=True)
        else:
            refs = [inventory.resolve(store, step)]
        if not refs:
            raise CommandFailure(f"{store.uri} holds no checkpoint.", reason="NotFound")
        for ref in refs:
            report = checking.verify(store, ref)
            reports.append(report)
            if quarantine and report.damage:
                store.quarantine(ref, f"{report.damage[0].key} {report.damage[0].what}")
            if not as_json:
                state = f"{count(len(report.damage), 'damage')}" if report.damage else "whole"
                print(
                    f"step {ref.step} of attempt {ref.fence}: {state}, "
                    f"{count(report.objects, 'object')}, {inventory.size(report.nbytes)}",
                    flush=True,
                )
                for damage in report.damage:
                    print(f"  {damage.key}: {damage.what}", flush=True)
    if as_json:
        print_json(
            {
                "uri": store.uri,
                "checkpoints": [
                    {
                        **inventory.ref_json(report.ref),
                        "objects": report.objects,
                        "bytes": report.nbytes,
                        "damage": [asdict(damage) for damage in report.damage],
                    }
                    for report in reports
                ],
            }
        )
    raise typer.Exit(JOB_FAILED if any(report.damage for report in reports) else 0)


@command(app)
def diff(
    uri: Uri,
    before: Name,
    after: Name,
    other: Annotated[
        str | None, typer.Option("--other", help="The store of the second one, if another.")
    ] = None,
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Compare two checkpoints: tensors, shapes and meta, from their manifests."""
    from rekindle.checkpoint.difference import difference
    from rekindle.checkpoint.format.encoding import encode
    from rekindle_cli.checkpoints import inventory
    from rekindle_cli.output import tables
    from rekindle_cli.output.wording import count

    with (
        opened(uri, options, beside=other) as store,
        opened(other or uri, options, beside=uri) as second,
    ):
        pair = [(store, before), (second, after)]
        old, new = (where.read(inventory.resolve(where, name)) for where, name in pair)
        found = difference(old, new)
    if as_json:
        print_json(
            {
                "before": inventory.ref_json(old.ref),
                "after": inventory.ref_json(new.ref),
                "tensors": [asdict(change) for change in found.tensors],
                "same": found.same,
                "meta": {path: [encode(v) for v in pair] for path, pair in found.meta.items()},
                "world_size": list(found.world_size),
            }
        )
        return
    if found.tensors:
        rows = [(c.name, str(c.change), c.before or "-", c.after or "-") for c in found.tensors]
        tables.show(("TENSOR", "CHANGE", "BEFORE", "AFTER"), rows, sys.stdout)
        print()
    print(f"{count(len(found.tensors), 'tensor')} differ, {found.same:,} equal.")
    if found.meta:
        print()
        lines = [(path, f"{a!r:.60}", f"{b!r:.60}") for path, (a, b) in found.meta.items()]
        tables.show(("META", "BEFORE", "AFTER"), lines, sys.stdout)


@command(app)
def export(
    uri: Uri,
    step: Name,
    out: Annotated[str, typer.Argument(help="The file to write.", metavar="OUT.safetensors")],
    prefix: Annotated[
        str, typer.Option(help="Only tensors below it, for example 'model.'; it is cut off.")
    ] = "",
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Write one safetensors file, and beside it a JSON file with everything that is no tensor."""
    from rekindle.interop import export as exporting
    from rekindle_cli.checkpoints import inventory
    from rekindle_cli.output.wording import count

    with opened(uri, options) as store:
        commit = store.read(inventory.resolve(store, step))
        written = exporting.export(store.objects, commit, out, prefix=prefix)
        beside = f"{out.removesuffix('.safetensors')}.json"
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(exporting.skeleton(commit), file)
    if as_json:
        print_json(
            {**inventory.ref_json(commit.ref), "tensors": written, "file": out, "json": beside}
        )
    else:
        print(f"{out}: {count(written, 'tensor')} of step {commit.ref.step}; the rest: {beside}")


@command(app, "import")
def import_(
    source: Annotated[
        str, typer.Argument(help="A .ckpt or .pt file, or a DCP directory.", metavar="SOURCE")
    ],
    uri: Uri,
    step: Annotated[
        int | None, typer.Option(min=0, help="Else the step that the file names, else 0.")
    ] = None,
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Make a checkpoint of Lightning's, torch.save's or DCP's files; runs no code from them."""
    from rekindle_cli.checkpoints import importing
    from rekindle_cli.output.wording import count

    with opened(uri, options, new=True):
        pass  # what is wrong with them is said before torch is started
    found = importing.load(source, uri, step=step, options=options)
    if as_json:
        print_json(found)
    else:
        tensors = count(int(found["tensors"]), "tensor")
        print(f"{uri}: step {found['step']} from {found['kind']} {source}, {tensors}")


_BEST = re.compile(r"^(?P<metric>.+):(?P<mode>min|max)(?::(?P<count>[1-9]\d{0,5}))?$")


def _best(texts: list[str]) -> "tuple[Best, ...]":
    from rekindle.checkpoint.retention import Best

    rules = []
    for text in texts:
        match = _BEST.match(text)
        if match is None:
            raise CommandFailure(
                f"--best {text!r} is not understood.",
                "Allowed is METRIC:MODE or METRIC:MODE:COUNT, for example val/f1:max:2; the mode "
                "is min or max.",
            )
        mode: Literal["min", "max"] = "min" if match["mode"] == "min" else "max"
        rules.append(Best(metric=match["metric"], mode=mode, count=int(match["count"] or 1)))
    return tuple(rules)


@command(app)
def prune(
    uri: Uri,
    latest: Annotated[int, typer.Option(min=1, help="Keep so many of the newest.")] = 3,
    best: Annotated[
        list[str] | None, typer.Option(help="Keep the best: METRIC:min|max[:COUNT]; repeatable.")
    ] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Keep multiples of this step.")] = None,
    hourly: Annotated[int, typer.Option(min=0, help="Keep the last of so many hours.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Remove checkpoints that no rule and no pin keeps, and what crashes left behind."""
    from rekindle.checkpoint.cleanup import Cleaner, sweep
    from rekindle.checkpoint.retention import Retention
    from rekindle_cli.checkpoints import inventory
    from rekindle_cli.output.wording import count

    rules = _best(best or [])
    with opened(uri, options) as store:
        policy = Retention(latest=latest, best=rules, every=every, hourly=hourly)
        line = store.line()
        # What the newest attempt resumed from is its way back until it has commits of its own.
        base = store.read(line[0]).base if line else None
        cleaner = Cleaner(store, policy, restored=base)
        plan = cleaner.plan() if dry_run else cleaner.run()
        if not dry_run:
            sweep(store, store.newest_fence())
    if as_json:
        print_json(
            {
                "uri": store.uri,
                "dry_run": dry_run,
                "kept": [inventory.ref_json(ref) for ref in plan.stays],
                "removed": [inventory.ref_json(ref) for ref in plan.goes],
                "left_over": [inventory.ref_json(ref) for ref in plan.left_over],
                "objects": len(plan.keys) + len(plan.goes),
                "bytes": plan.nbytes,
            }
        )
        return
    verb = "would remove" if dry_run else "removed"
    for ref in plan.goes:
        print(f"{verb} step {ref.step} of attempt {ref.fence}")
    for ref in plan.left_over:
        print(f"{verb} what is left of step {ref.step} of attempt {ref.fence}")
    kept = count(len(plan.stays), "checkpoint")
    print(
        f"{kept} kept; {verb} {count(len(plan.goes), 'checkpoint')}, {inventory.size(plan.nbytes)}"
    )


@command(app)
def pin(
    uri: Uri,
    step: Name,
    name: Annotated[str | None, typer.Option(help="Else the checkpoint's own name.")] = None,
    note: Annotated[str, typer.Option(help="Why, for others.")] = "",
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Keep a checkpoint whatever the policy says; a pin of that name moves here."""
    from rekindle_cli.checkpoints import inventory

    with opened(uri, options) as store:
        ref = inventory.resolve(store, step)
        set_ = store.pin(ref, name=name, note=note)
    if as_json:
        print_json({"pin": set_, **inventory.ref_json(ref)})
    else:
        print(f"pin {set_}: step {ref.step} of attempt {ref.fence}")


@command(app)
def unpin(
    uri: Uri,
    name: Annotated[str, typer.Argument(help="Of the pin, or its step.", metavar="NAME")],
    as_json: Json = False,
    *,
    options: Options,
) -> None:
    """Take a pin away; the checkpoint then stays only as long as the policy says."""
    with opened(uri, options) as store:
        pins = store.pins()
        chosen = [pin for pin, content in pins.items() if name in {pin, str(content.ref.step)}]
        if not chosen:
            have = ", ".join(pins) or "none"
            raise CommandFailure(
                f"{store.uri} has no pin {name!r}.", f"It has: {have}.", reason="NotFound"
            )
        for one in chosen:
            store.unpin(one)
    if as_json:
        print_json({"unpinned": chosen})
    else:
        print(f"unpinned {', '.join(chosen)}")
