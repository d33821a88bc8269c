"""``rekindle``: the command line. Parsing and printing only; each command's work is elsewhere.

Exit codes: 0 done, 1 the job failed (or the demo found something lost), 2 something has to be
corrected first, 130 ended by Ctrl-C. With ``--json`` standard output has one JSON object, the
answer or the error, and everything for people goes to standard error. That holds for errors of the
command line, too, so they end here as all others do and not in the parser.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from rekindle_cli.checkpoints import auditing, checkpoints
from rekindle_cli.local import training
from rekindle_cli.output import interrupts
from rekindle_cli.output.failure import (
    BUG,
    EXIT_CODES,
    INTERRUPTED,
    JOB_FAILED,
    USAGE,
    CommandFailure,
    unexpected,
    wants_tracebacks,
)

if TYPE_CHECKING:
    from rekindle_cli.jobs.report import JobReport
    from rekindle_cli.jobs.view import ProgressView
    from rekindle_cli.local.stack import LocalStack

app = typer.Typer(
    name="rekindle",
    help="Run PyTorch training on spot capacity as if it never failed.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(checkpoints.app)
auditing.add_to(app)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Let the operator log what it does.")]
Nodes = Annotated[int, typer.Option(min=1, max=64, help="Nodes of the embedded cluster.")]


def _jobs(context: typer.Context, incomplete: str) -> list[str]:
    """Names of jobs, for the shell; without a cluster there are none."""
    from rekindle_cli.jobs import query

    given = context.params
    wanted = query.Query(namespace=given.get("namespace"), kubeconfig=given.get("kubeconfig"))
    try:
        return [name for name in query.names(wanted) if name.startswith(incomplete)]
    except CommandFailure:
        return []


JobName = Annotated[str, typer.Argument(help="Name of the job.", autocompletion=_jobs)]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Else the kubeconfig's, else default.")
]
Kubeconfig = Annotated[
    Path | None, typer.Option(help="Else $KUBECONFIG, else ~/.kube/config.", show_default=False)
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"rekindle {_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command()
def up(
    nodes: Nodes = 3,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the API server; 0: any.")] = 0,
    state_dir: Annotated[
        Path | None, typer.Option(help="Logs, volumes, kubeconfig; else a temporary folder.")
    ] = None,
    workdir: Annotated[
        Path | None, typer.Option(help="Where containers start; else the bundled examples.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Run the embedded cluster and the operator in the foreground, until Ctrl-C."""
    from rekindle_cli.local import foreground
    from rekindle_cli.local.stack import LocalStack

    options = foreground.options(
        nodes=nodes, port=port, state_dir=state_dir, workdir=workdir, verbose=verbose
    )
    view = _view(sys.stderr)
    try:
        with LocalStack(options, view.note) as stack:
            foreground.give_credentials(stack)
            print("\n".join(foreground.greeting(stack)), flush=True)
            interrupts.wait()
    except KeyboardInterrupt:
        view.note("the cluster has ended")


@app.command()
def run(
    manifest: Annotated[
        Path, typer.Argument(help="File with one TrainingJob.", metavar="JOB.yaml")
    ],
    nodes: Nodes = 3,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the cluster up after the end, until Ctrl-C.")
    ] = False,
    workdir: Annotated[
        Path | None, typer.Option(help="Where containers start; else the manifest's folder.")
    ] = None,
    real_s3: Annotated[
        bool,
        typer.Option("--real-s3", help="Leave spec.checkpoint and your AWS settings as they are."),
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a job on this machine: start a cluster, apply the manifest, follow it to its end."""
    from rekindle_cli.jobs.report import as_json as report_json
    from rekindle_cli.local import run as runner
    from rekindle_cli.local.stack import LocalStack

    started = time.monotonic()
    bundle, options = runner.prepare(
        runner.RunRequest(
            path=manifest, nodes=nodes, workdir=workdir, real_s3=real_s3, verbose=verbose
        )
    )
    out = sys.stderr if as_json else sys.stdout
    view = _view(out)
    with LocalStack(options, view.note) as stack:
        report = runner.run_job(stack, bundle, view, started=started, real_s3=real_s3)
        _summary(report, out)
        if report.job.phase == "Failed":
            print("\n".join(runner.last_words(stack.api(), report)), file=out)
        if as_json:
            print(json.dumps(report_json(report)), flush=True)
        if keep:
            _keep(stack, view)
    raise typer.Exit(0 if report.job.phase == "Succeeded" else JOB_FAILED)


@app.command()
def demo(
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the bundled job; else what its manifest says.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Picks moment and victim of the preemption; else random.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train the bundled job, take a node away in the middle, and prove that nothing was lost."""
    from rekindle_cli.jobs.report import as_json as report_json
    from rekindle_cli.local import demo as show

    out = sys.stderr if as_json else sys.stdout
    outcome = show.perform(epochs=epochs, seed=seed, view=_view(out), verbose=verbose)
    _summary(outcome.report, out)
    for flaw in outcome.flaws:
        print(f"Not as promised: {flaw}.", file=out)
    if as_json:
        document = {**report_json(outcome.report), "seed": outcome.seed, "flaws": outcome.flaws}
        print(json.dumps(document), flush=True)
    raise typer.Exit(JOB_FAILED if outcome.flaws else 0)


@app.command()
def get(
    job: Annotated[
        str | None, typer.Argument(help="Name of a job; else all.", autocompletion=_jobs)
    ] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Of the whole cluster.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow changes until Ctrl-C.")
    ] = False,
    as_json: Json = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List jobs with their progress."""
    from rekindle_cli.jobs import query

    if all_namespaces and namespace is not None:
        raise CommandFailure(
            "-A lists all namespaces and -n names one: give one of them.", reason="Usage"
        )
    wanted = query.Query(
        name=job, namespace=namespace, everywhere=all_namespaces, kubeconfig=kubeconfig
    )
    for text in (
        query.watched(wanted, as_json=as_json) if watch else [query.listed(wanted, as_json=as_json)]
    ):
        print(text, flush=True)


@app.command()
def why(
    job: JobName,
    namespace: Namespace = None,
    as_json: Json = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say in plain words what happened to a job, what it cost, and what to do."""
    from rekindle_cli.jobs import query
    from rekindle_cli.jobs.view import print_sentences

    wanted = query.Query(name=job, namespace=namespace, kubeconfig=kubeconfig)
    found, said = query.explained(wanted)
    if as_json:
        print(json.dumps(query.explained_json(found, said)))
    else:
        print_sentences(said, sys.stdout)


@app.command()
def restart(
    job: JobName,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch",
            help="Begin with step 0 in a new place below the URI, instead of from the newest "
            "checkpoint; nothing is deleted.",
        ),
    ] = False,
    namespace: Namespace = None,
    as_json: Json = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Run a job again that has ended, from its newest checkpoint or from scratch."""
    from rekindle_cli.jobs import query, restarting

    wanted = query.Query(name=job, namespace=namespace, kubeconfig=kubeconfig)
    asked = restarting.restart(wanted, scratch=from_scratch, now=datetime.now(UTC))
    if as_json:
        print(json.dumps(asked.document()))
    else:
        begin = "from scratch" if from_scratch else "from its newest checkpoint"
        print(f"TrainingJob {job} was asked to run again {begin}.")


_HANDED_OVER = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],  # its own help knows the flags and the model's arguments
}


_STAGES = {
    "fit": "Train a model of yours: rekindle fit --config run.yaml module:Class; see --help.",
    "validate": "Run the validation loop of a model once; arguments as for fit.",
    "test": "Run the test loop of a model once; arguments as for fit.",
    "predict": "Run a model over its data; callbacks write what it predicts. Arguments as for fit.",
}


def _handed_over(context: typer.Context) -> None:
    training.hand_over(str(context.info_name), context.args)


for _stage, _help in _STAGES.items():
    app.command(_stage, help=_help, context_settings=_HANDED_OVER)(_handed_over)


@app.command()
def version() -> None:
    """Print the version."""
    print(_version())


def _version() -> str:
    try:
        return installed_version("rekindle")
    except PackageNotFoundError:
        raise CommandFailure("rekindle is not installed, it runs from a checkout.") from None


def _view(stream: IO[str]) -> "ProgressView":
    from rekindle_cli.jobs.view import open_view

    return open_view(stream, live=True)


def _summary(report: "JobReport", stream: IO[str]) -> None:
    from rekindle_cli.jobs.report import summary
    from rekindle_cli.jobs.view import print_rows

    print_rows(summary(report), stream)


def _keep(stack: "LocalStack", view: "ProgressView") -> None:
    from rekindle_cli.local import foreground

    view.note("the cluster stays up until Ctrl-C:")
    print("\n".join(foreground.greeting(stack)), file=sys.stderr, flush=True)
    try:
        interrupts.wait()
    except KeyboardInterrupt:
        view.note("the cluster has ended")


def main() -> None:
    """Entry point of the command."""
    interrupts.install()
    arguments = sys.argv[1:]
    debug = wants_tracebacks(arguments)
    try:
        # Not standalone: the parser would print its own errors, also to who asked for JSON.
        code = app(arguments, prog_name="rekindle", standalone_mode=False)
    except CommandFailure as failure:
        code = _failed(failure)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read this has enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BUG
    except Exception as error:
        # Typer has moved the classes of its errors between releases; what they can do has stayed.
        if hasattr(error, "format_message"):
            code = _misused(error)
        elif debug:
            raise
        else:
            code = _failed(unexpected(error))
    if code == INTERRUPTED and _wants_json():
        print(
            json.dumps(CommandFailure("interrupted", reason="Interrupted").document()), flush=True
        )
    sys.exit(code or 0)


def _wants_json() -> bool:
    given = [argument for argument in sys.argv[1:] if argument != "--debug"]
    own = given[: given.index("--")] if "--" in given else given
    return "--json" in own and given[0] not in _STAGES


def _failed(failure: CommandFailure) -> int:
    print("\n".join(failure.lines), file=sys.stderr)
    if _wants_json():
        print(json.dumps(failure.document()), flush=True)
    return failure.code


def _misused(error: Any) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "rekindle"
    message = str(error.format_message())
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # a group without a command: its help
        return USAGE
    return _failed(CommandFailure(f"{path}: {message}", f"See '{path} --help'.", reason="Usage"))


if __name__ == "__main__":
    main()
