"""Arguments and options that commands on a checkpoint store share, and its errors as messages."""

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rekindle_cli.failure import Failure

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
def opened(uri: str, options: Options, *, beside: str | None = None) -> Iterator["Store"]:
    """The store; raises Failure for whatever goes wrong with it, also in the body.

    Options that the store has no use for are refused. `beside` is another store that the command
    opens with the same ones: one of both may be of files.
    """
    from rekindle.checkpoint.checksum import ChecksumUnavailable
    from rekindle.checkpoint.location import check_options
    from rekindle.checkpoint.manifest import IntegrityError, VersionError
    from rekindle.checkpoint.objects import StoreError
    from rekindle.checkpoint.store import Store

    try:
        if beside is None or not beside.startswith("s3://"):
            check_options(uri, {option: f"--{option.replace('_', '-')}" for option in options})
        yield Store.open(uri, **options)
    except (IntegrityError, VersionError, StoreError, ChecksumUnavailable, ValueError) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"{error.filename or 'A file'}: {error.strerror or error}.") from error


def print_json(document: dict[str, Any]) -> None:
    """One object on standard output."""
    print(json.dumps(document), flush=True)
