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
"""What was given of `_STORE_OPTIONS`: arguments of `rekindle.checkpoint.Store.open`."""

_STORE_OPTIONS = {
    "endpoint_url": Annotated[str | None, typer.Option(help="Of an S3 that is not AWS.")],
    "region": Annotated[str | None, typer.Option(help="Else from the environment or the profile.")],
    "profile": Annotated[str | None, typer.Option(help="Of the shared AWS configuration.")],
    "ca_bundle": Annotated[str | None, typer.Option(help="PEM file of a private CA.")],
    "addressing": Annotated[str | None, typer.Option(help="auto, path or virtual.")],
    "commit": Annotated[
        str | None,
        typer.Option(help="conditional, or lease for servers that ignore conditional writes."),
    ],
}


def command(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of `app` that has all options of a store and hands on those given.

    Typer reads a function's signature, so that is where the options are put: one list of them.
    """

    def wrapped(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **given: Any) -> None:
            values = {option: given.pop(option) for option in _STORE_OPTIONS}
            options = {option: value for option, value in values.items() if value}
            function(*args, **given, options=options)

        signature = inspect.signature(function)
        own = [value for key, value in signature.parameters.items() if key != "options"]
        added = [
            inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            for option, annotation in _STORE_OPTIONS.items()
        ]
        run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {
            parameter.name: parameter.annotation for parameter in (*own, *added)
        } | {"return": None}
        app.command(name)(run)
        return function

    return wrapped


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Errors of the store become messages."""
    from rekindle.checkpoint.checksum import ChecksumUnavailable
    from rekindle.checkpoint.location import InvalidLocation
    from rekindle.checkpoint.manifest import IntegrityError, VersionError
    from rekindle.checkpoint.objects import StoreError

    try:
        yield
    except (
        InvalidLocation,
        IntegrityError,
        VersionError,
        StoreError,
        ChecksumUnavailable,
        ValueError,
    ) as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"{error.filename or 'A file'}: {error.strerror or error}.") from error


def opened(uri: str, options: Options, *, beside: str | None = None) -> "Store":
    """The store; raises what `plain_errors` puts into words, also for options without effect.

    `beside` is another store that the command opens with the same options: one may be of files.
    """
    from rekindle.checkpoint.location import check_options
    from rekindle.checkpoint.store import Store

    if beside is None or not beside.startswith("s3://"):
        check_options(uri, {option: f"--{option.replace('_', '-')}" for option in options})
    return Store.open(uri, **options)


def print_json(document: dict[str, Any]) -> None:
    """One object on standard output."""
    print(json.dumps(document), flush=True)
