"""Arguments and options that commands on a checkpoint store share, and its errors as messages."""

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekindle_cli.output.failure import CommandFailure

if TYPE_CHECKING:
    from rekindle.checkpoint.store import Store

Uri = Annotated[str, typer.Argument(help="s3://bucket/prefix or file:///directory.", metavar="URI")]
Name = Annotated[
    str,
    typer.Argument(help="A step, STEP-ATTEMPT, the name of a pin, or 'latest'.", metavar="STEP"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Options = dict[str, str]
"""What was given of the options of a store, by the names that `Store.open` has for them."""


_ALLOWED = {"addressing": ("auto", "path", "virtual"), "commit": ("conditional", "lease")}


def _given(
    *,
    endpoint_url: Annotated[str | None, typer.Option(help="Of an S3 that is not AWS.")] = None,
    region: Annotated[
        str | None, typer.Option(help="Else from the environment or the profile.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Of the shared AWS configuration.")] = None,
    ca_bundle: Annotated[str | None, typer.Option(help="PEM file of a private CA.")] = None,
    addressing: Annotated[str | None, typer.Option(help="auto, path or virtual.")] = None,
    commit: Annotated[
        str | None,
        typer.Option(help="conditional, or lease for servers that ignore conditional writes."),
    ] = None,
) -> Options:
    """The options of a store, as each command has them."""
    return {option: value for option, value in locals().items() if value}


def command(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of `app` that takes the options of `_given` and gets what they return.

    Typer has no groups of options: what a command takes is what its function's signature says. So
    the function is wrapped into one whose signature has `_given`'s parameters for `options`.
    """
    added = inspect.signature(_given).parameters

    def wrapped(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            options = _given(**{option: given.pop(option) for option in added})
            function(**given, options=options)

        own = inspect.signature(function)
        kept = [one for one in own.parameters.values() if one.name != "options"]
        signature = own.replace(parameters=[*kept, *added.values()])
        run.__signature__ = signature  # type: ignore[attr-defined]
        # Typer resolves annotations by these, and takes everything else from the signature.
        run.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        app.command(name)(run)
        return function

    return wrapped


@contextlib.contextmanager
def opened(
    uri: str, options: Options, *, beside: str | None = None, new: bool = False
) -> Iterator["Store"]:
    """The store; raises Failure for whatever goes wrong with it, also in the body.

    A place where nothing is, is no store, unless the command is about to make one (`new`). Options
    that the store has no use for are refused. `beside` is another store that the command opens with
    the same ones: one of both may be of files.
    """
    from rekindle.checkpoint.format.checksum import ChecksumUnavailable
    from rekindle.checkpoint.format.manifest import IntegrityError, VersionError
    from rekindle.checkpoint.objects.interface import StoreError
    from rekindle.checkpoint.objects.location import check_options
    from rekindle.checkpoint.store import Store

    for option, allowed in _ALLOWED.items():
        if options.get(option, allowed[0]) not in allowed:
            raise CommandFailure(
                f"--{option} is {options[option]!r}.", f"Allowed are {', '.join(allowed)}."
            )
    try:
        if beside is None or not beside.startswith("s3://"):
            check_options(uri, {option: f"--{option.replace('_', '-')}" for option in options})
        store = Store.open(uri, **options)
        if not new:
            _exists(store)
        yield store
    except StoreError as error:
        raise CommandFailure(str(error), reason=_reason(error)) from error
    except (IntegrityError, VersionError, ChecksumUnavailable, ValueError) as error:
        raise CommandFailure(str(error)) from error
    except OSError as error:
        raise CommandFailure(f"{error.filename or 'A file'}: {error.strerror or error}.") from error


def _exists(store: "Store") -> None:
    """Raises Failure when nothing is there, which an object store shows by listing nothing."""
    from rekindle.checkpoint.objects import location

    where = location.parse(store.uri)
    if where.scheme == "file":
        if Path(where.path).is_dir():
            return
        what = "is no directory" if Path(where.path).exists() else "does not exist"
        raise CommandFailure(
            f"{store.uri} {what}.",
            "The URI of a job's checkpoints is in spec.checkpoint.uri; file:// names a directory "
            "on this machine.",
            reason="NotFound",
        )
    if not store.listed() and not store.objects.list(""):
        raise CommandFailure(
            f"{store.uri} does not exist: no object of the bucket begins with it.",
            "The URI of a job's checkpoints is in spec.checkpoint.uri.",
            reason="NotFound",
        )


def _reason(error: Exception) -> str:
    """The reason of a Failure for an error of the store, by its class."""
    from rekindle.checkpoint.objects import interface

    reasons: dict[type[Exception], str] = {
        interface.NotFound: "NotFound",
        interface.NoSuchBucket: "NotFound",
        interface.AccessDenied: "Forbidden",
        interface.InvalidCredentials: "Unauthorized",
        interface.Unreachable: "Unreachable",
        interface.Conflict: "Conflict",
        interface.PreconditionFailed: "Conflict",
    }
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "Invalid")


def print_json(document: dict[str, Any]) -> None:
    """One object on standard output."""
    print(json.dumps(document), flush=True)
