"""Reading a manifest, and what has to change in it so that it runs on this machine.

The same file runs on a laptop and on a cluster, so nothing in it may be specific to either; what
differs is put in here, in memory, and said in one line each:

- an image name means "this Python environment", in the folder of the manifest (or of the bundled
  examples, the WORKDIR of the real runtime image);
- an ``s3://`` URI means the embedded object store: its endpoint and credentials replace those of
  the manifest, unless ``--real-s3`` is given. A credential in the manifest is never sent there.
  Pods that use their own identity have it from the image (`stack`).

What is wrong with a spec is not judged here: the API server does, by the schema. So these
functions take any tree of YAML values without complaint and leave what they do not understand.
"""

import base64
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rekindle import api
from rekindle_cli.output.failure import CommandFailure

Manifest = dict[str, Any]
"""One object of the Kubernetes API."""

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The documents of one file: exactly one TrainingJob, and what it needs."""

    job: Manifest
    others: tuple[Manifest, ...] = ()
    folder: Path

    @property
    def namespace(self) -> str:
        """Where the job belongs."""
        found = _at(self.job, "metadata", "namespace")
        return found if isinstance(found, str) and found else DEFAULT_NAMESPACE

    @property
    def name(self) -> str:
        """Name of the job; may be empty, which the API server refuses."""
        found = _at(self.job, "metadata", "name")
        return found if isinstance(found, str) else ""


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """Where the embedded object store is, and how to get in."""

    endpoint: str
    access_key: str
    secret_key: str


@dataclass(frozen=True, kw_only=True)
class Localised:
    """A bundle that runs here, and what was changed for that."""

    bundle: Bundle
    notes: tuple[str, ...] = ()
    """What differs from the file, one line each."""


def load(path: Path) -> Bundle:
    """Read a file; raises Failure that says what is wrong with it and where."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommandFailure(
            f"{path}: there is no such file.",
            "Give the path of a manifest with a TrainingJob.",
            reason="NotFound",
        ) from None
    except IsADirectoryError:
        raise CommandFailure(f"{path} is a directory; name the manifest in it.") from None
    except UnicodeDecodeError as error:
        raise CommandFailure(
            f"{path} is no text file (byte {error.start} is not UTF-8); a manifest is YAML."
        ) from None
    except OSError as error:
        raise CommandFailure(f"{path} cannot be read: {error.strerror}.") from None
    return read(text, str(path), path.resolve().parent)


def read(text: str, name: str, folder: Path) -> Bundle:
    """Take the documents of a manifest apart; `name` is what messages call it."""
    try:
        documents = [entry for entry in yaml.safe_load_all(text) if entry is not None]
    except yaml.YAMLError as error:
        raise CommandFailure(_yaml_message(error, name)) from None
    for index, entry in enumerate(documents):
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            raise CommandFailure(
                f"{name}: document {index + 1} is no Kubernetes object: it has no 'kind'.",
                "Every document begins with apiVersion, kind and metadata.",
            )
    jobs = [entry for entry in documents if entry["kind"] == api.KIND]
    if len(jobs) != 1:
        kinds = ", ".join(entry["kind"] for entry in documents) or "nothing"
        raise CommandFailure(
            f"{name} holds {len(jobs)} documents of kind {api.KIND}, must be exactly one "
            f"(found: {kinds}).",
            "Put each job into a file of its own; Secrets and ConfigMaps that it needs may be "
            "in the same file."
            if jobs
            else f"Begin one with 'apiVersion: {api.GROUP}/{api.VERSION}' and 'kind: {api.KIND}'.",
        )
    expected = f"{api.GROUP}/{api.VERSION}"
    if jobs[0].get("apiVersion") != expected:
        raise CommandFailure(
            f"{name}: apiVersion is {jobs[0].get('apiVersion')!r}, must be {expected} for a "
            f"{api.KIND}."
        )
    others = tuple(entry for entry in documents if entry["kind"] != api.KIND)
    return Bundle(job=jobs[0], others=others, folder=folder)


def _yaml_message(error: yaml.YAMLError, name: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{name}:{mark.line + 1}:{mark.column + 1}: this is no YAML: {error.problem}."
    return f"{name}: this is no YAML: {' '.join(str(error).split())}"


def images(job: Manifest) -> set[str]:
    """Every image that pods of the job name."""
    spec = _at(job, "spec", "template", "spec")
    found = set()
    for group in ("containers", "initContainers"):
        for container in _entries(spec, group):
            if isinstance(container.get("image"), str):
                found.add(container["image"])
    launcher = _at(job, "spec", "launcher", "image")
    return found | {launcher} if isinstance(launcher, str) else found


def program(job: Manifest) -> str | None:
    """The script that the trainer runs, None for ``-m module`` or when there is none."""
    for container in _entries(_at(job, "spec", "template", "spec"), "containers"):
        if container.get("name") == api.TRAINER_CONTAINER:
            args = container.get("args")
            first = args[0] if isinstance(args, list) and args else None
            return first if isinstance(first, str) and not first.startswith("-") else None
    return None


def working_directory(
    bundle: Bundle,
    examples: Path | None,
    exists: Callable[[Path], bool] = Path.exists,
) -> Path:
    """Where containers start: the manifest's folder, or the examples' if only it has the script."""
    script = program(bundle.job)
    if script is None or examples is None or exists(bundle.folder / script):
        return bundle.folder
    return examples if exists(examples / script) else bundle.folder


def bucket(job: Manifest) -> str | None:
    """The bucket that checkpoints are kept in; None for other places and for nonsense."""
    uri = _at(job, "spec", "checkpoint", "uri")
    if not isinstance(uri, str) or not uri.startswith("s3://"):
        return None
    return uri.removeprefix("s3://").partition("/")[0] or None


def store_options(job: Manifest) -> dict[str, str]:
    """How the job's store is opened, in the words of `rekindle.checkpoint.Store.open`."""
    names = {
        "endpointUrl": "endpoint_url",
        "region": "region",
        "addressing": "addressing",
        "commit": "commit",
    }
    checkpoint = job["spec"]["checkpoint"]
    return {option: checkpoint[name] for name, option in names.items() if checkpoint.get(name)}


def localise(bundle: Bundle, s3: S3Access | None) -> Localised:
    """Point the checkpoints at the embedded object store; without `s3` nothing is changed.

    Raises Failure when the endpoint that it takes the place of holds a password.
    """
    if s3 is None or bucket(bundle.job) is None:
        return Localised(bundle=bundle)
    job = copy.deepcopy(bundle.job)
    checkpoint = job["spec"]["checkpoint"]
    named = _at(checkpoint, "secretRef", "name")
    elsewhere = checkpoint.get("endpointUrl")
    if isinstance(elsewhere, str):
        # It would be replaced, so that the API server never came to refuse it, and shown below.
        _without_credentials(elsewhere)
    if elsewhere is None or isinstance(elsewhere, str):
        checkpoint["endpointUrl"] = s3.endpoint
    if checkpoint.get("addressing") == "virtual":
        checkpoint["addressing"] = "path"  # no bucket has a name in 127.0.0.1
    others = list(bundle.others)
    if isinstance(named, str):
        others = [entry for entry in others if not _is_secret(entry, named, bundle.namespace)]
        others.insert(0, secret(named, bundle.namespace, s3))
    uri = checkpoint["uri"]
    instead = f" instead of {elsewhere}" if isinstance(elsewhere, str) else ""
    note = f"Checkpoints: {uri} is in the embedded object store at {s3.endpoint}{instead}."
    return Localised(
        bundle=replace(bundle, job=job, others=tuple(others)),
        notes=(f"{note} Use --real-s3 for the real one.",),
    )


def _without_credentials(endpoint: str) -> None:
    from rekindle.checkpoint.objects.location import InvalidLocation, without_credentials

    try:
        without_credentials(endpoint, "spec.checkpoint.endpointUrl")
    except InvalidLocation as error:
        raise CommandFailure(str(error)) from None


def _is_secret(entry: Manifest, name: str, namespace: str) -> bool:
    where = _at(entry, "metadata", "namespace") or namespace
    return (
        entry.get("kind") == "Secret"
        and _at(entry, "metadata", "name") == name
        and where == namespace
    )


def secret(name: str, namespace: str, s3: S3Access) -> Manifest:
    """The credentials of the embedded object store, as `spec.checkpoint.secretRef` takes them."""
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()},
    }


def _at(tree: object, *path: str) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _entries(tree: object, key: str) -> Sequence[Mapping[str, Any]]:
    found = tree.get(key) if isinstance(tree, dict) else None
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def with_spec(job: Manifest, fields: Mapping[str, Any]) -> Manifest:
    """A copy with some fields of the spec replaced."""
    return {**job, "spec": {**job.get("spec", {}), **fields}}


def with_argument(job: Manifest, option: str, value: str) -> Manifest | None:
    """A copy whose trainer is given another value of an option; None if it does not have it."""
    changed = copy.deepcopy(job)
    for container in _entries(_at(changed, "spec", "template", "spec"), "containers"):
        args = container.get("args")
        if container.get("name") == api.TRAINER_CONTAINER and isinstance(args, list):
            for index, arg in enumerate(args):
                if arg == option and index + 1 < len(args):
                    args[index + 1] = value
                    return changed
                if isinstance(arg, str) and arg.startswith(f"{option}="):
                    args[index] = f"{option}={value}"
                    return changed
    return None
