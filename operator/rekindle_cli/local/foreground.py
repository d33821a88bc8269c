"""`rekindle up`: what the cluster in the foreground is made of, and what is said about it."""

from pathlib import Path

from rekindle_cli import manifest, places
from rekindle_cli.local.stack import LocalStack, Options
from rekindle_cli.output.failure import CommandFailure

SECRET = "s3-credentials"
"""What `spec.checkpoint.secretRef` names in README and the examples."""


def options(
    *, nodes: int, port: int, state_dir: Path | None, workdir: Path | None, verbose: bool
) -> Options:
    """Every image is this Python environment, and the buckets of the examples exist."""
    examples = places.examples()
    where = workdir or examples or Path.cwd()
    if not where.is_dir():
        raise CommandFailure(f"--workdir {where} is no directory.")
    return Options(
        nodes=nodes,
        port=port,
        state_dir=state_dir.resolve() if state_dir else None,
        workdirs={"*": where.resolve()},
        buckets=_buckets(examples),
        verbose=verbose,
    )


def _buckets(examples: Path | None) -> tuple[str, ...]:
    found = ["rekindle"]
    for path in sorted(examples.glob("*/*.yaml")) if examples else ():
        bucket = manifest.bucket(manifest.load(path).job)
        found += [bucket] if bucket else []
    return tuple(dict.fromkeys(found))


def give_credentials(stack: LocalStack) -> None:
    """Put the secret into the namespace default that manifests for other clusters name.

    Pods here have an identity without it; but a pod whose secret is missing waits for ever.
    """
    secret = manifest.secret(SECRET, manifest.DEFAULT_NAMESPACE, stack.s3)
    stack.api().apply(secret, manifest.DEFAULT_NAMESPACE)


def greeting(stack: LocalStack) -> list[str]:
    """What a person needs to work with the cluster; lines that a shell can take as they are."""
    s3, operator = stack.s3, stack.operator
    lines = [
        f"export KUBECONFIG={stack.kubeconfig}",
        f"# API server {stack.cluster.url}, nodes {', '.join(stack.cluster.node_names())}",
        f"# operator: log in {operator.log if operator else 'none'}",
        f"# S3: {s3.endpoint}; pods need no endpointUrl and no secret; {SECRET} is there all the "
        "same, in namespace default; for your own tools:",
        f"# export AWS_ENDPOINT_URL={s3.endpoint} AWS_ACCESS_KEY_ID={s3.access_key} "
        f"AWS_SECRET_ACCESS_KEY={s3.secret_key}",
    ]
    if problem := stack.cluster.cluster.names_problem:
        lines.append(f"# names of services and pods do not resolve in pods here: {problem}")
    examples = places.examples()
    if examples is not None:
        lines += [
            f"# try: kubectl apply -f {examples / 'digits' / 'job.yaml'}",
            "#      rekindle get --watch",
        ]
    return [*lines, "# Ctrl-C ends it."]
