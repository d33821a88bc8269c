"""What docs/versions.md says of the versions of the API, of checkpoints and of the wire.

`tests/data/promises.json` is what the newest release has promised: the fields of the resource,
those of the documents that agents and operator exchange, exit codes and variables. All of it has to
be there still, in a form that the other side of that release understands. A release renews it:
``REKINDLE_WRITE_DOCS=1 pytest tests/api/test_versions.py``.
"""

import hashlib
import json
import os
import shutil
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import rekindle as rk
from rekindle import api
from rekindle.api import (
    AgentPhase,
    AgentReport,
    Directive,
    DirectiveKind,
    ExitCode,
    Outcome,
    View,
)
from rekindle.checkpoint import Store, VersionError

ROOT = Path(__file__).parents[2]
PROMISES = ROOT / "tests" / "data" / "promises.json"
FORMAT_1 = ROOT / "tests" / "data" / "format1"
"""A run that format 1 was written with: three steps of a linear layer."""


# The promise


def document(kind, path=""):
    """Path of each field of a document -> whether one without it is refused."""
    found = {}
    for field in fields(kind):
        where = f"{path}{field.name}"
        found[where] = field.default is MISSING and field.default_factory is MISSING
        for inner in parts(get_type_hints(kind)[field.name]):
            if is_dataclass(inner):
                found |= document(inner, f"{where}.")
    return found


def parts(annotation):
    """The types that an annotation is made of."""
    yield annotation
    for inner in get_args(annotation):
        yield from parts(inner)


def resource(schema, path=""):
    """Path of each field of the resource -> its type, and whether it must be given."""
    found = {}
    for name, inner in schema.get("properties", {}).items():
        where = f"{path}{name}"
        kind = "int-or-string" if inner.get("x-kubernetes-int-or-string") else inner.get("type")
        found[where] = {"type": kind, "required": name in schema.get("required", [])}
        found |= resource(inner, f"{where}.")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found |= resource(schema[key], f"{path}*.")
    return found


def present():
    """All that may not be taken back, as it is now."""
    (version,) = yaml.safe_load((ROOT / "crds/trainingjob.yaml").read_text())["spec"]["versions"]
    return {
        "version": version["name"],
        "resource": resource(version["schema"]["openAPIV3Schema"]),
        "report": document(AgentReport),
        "view": document(View),
        "outcome": document(Outcome),
        "phases": sorted(AgentPhase),
        "directives": sorted(DirectiveKind),
        "exit codes": {code.name: int(code) for code in ExitCode},
        "names": sorted(
            value
            for name, value in vars(api).items()
            if name.startswith(("ENV_", "LABEL_", "ANNOTATION_", "ACCESS_"))
        ),
        "path": api.pod_path("NAMESPACE", "JOB", "POD"),
    }


def broken(promised, now):
    """What somebody of the promise's release could not live with, one line each."""
    lines = []
    for key in ("version", "path", "exit codes"):
        if promised[key] != now[key]:
            lines.append(f"{key} was {promised[key]} and is {now[key]}")
    for key in ("phases", "directives", "names"):
        lines += [f"{key}: {gone} is gone" for gone in sorted({*promised[key]} - {*now[key]})]
    for key in ("report", "view", "outcome"):
        lines += [f"{key}: {gone} is gone" for gone in promised[key] if gone not in now[key]]
        lines += [
            f"{key}: {name} is new and has no default: one without it would be refused"
            for name, required in now[key].items()
            if required and name not in promised[key] and above(name) in {"", *promised[key]}
        ]
        lines += [
            f"{key}: {name} could be left out and must not be"
            for name, required in promised[key].items()
            if not required and now[key].get(name)
        ]
    before, after = promised["resource"], now["resource"]
    for name, field in before.items():
        if name not in after:
            lines.append(f"resource: {name} is gone")
        elif after[name]["type"] != field["type"]:
            lines.append(f"resource: {name} was {field['type']} and is {after[name]['type']}")
        elif after[name]["required"] and not field["required"]:
            lines.append(f"resource: {name} could be left out and must not be")
    lines += [
        f"resource: {name} is new and must be given"
        for name, field in after.items()
        if field["required"] and name not in before and above(name) in before
    ]
    return lines


def above(name):
    return name.rpartition(".")[0]


def test_what_was_promised_is_still_there():
    now = present()
    if os.environ.get("REKINDLE_WRITE_DOCS"):
        PROMISES.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    assert broken(json.loads(PROMISES.read_text()), now) == [], (
        "keep these until the next version that may break (docs/versions.md). If no release has "
        "promised them yet: REKINDLE_WRITE_DOCS=1 pytest tests/api/test_versions.py"
    )


def without(key, name):
    def change(now):
        now[key] = {k: v for k, v in now[key].items() if k != name}

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda now: now.update(version="v1"), "version was v1alpha1 and is v1"),
        (lambda now: now["exit codes"].update(SAVED=74), "exit codes was"),
        (lambda now: now["phases"].remove("failed"), "phases: failed is gone"),
        (lambda now: now["names"].remove("REKINDLE_ROUND"), "names: REKINDLE_ROUND is gone"),
        (without("report", "round.members.uid"), "report: round.members.uid is gone"),
        (lambda now: now["view"].update(colour=True), "view: colour is new and has no default"),
        (lambda now: now["outcome"].update(step=True), "outcome: step could be left out"),
        (without("resource", "spec.suspend"), "resource: spec.suspend is gone"),
        (
            lambda now: now["resource"].update(
                {"spec.suspend": {"type": "string", "required": False}}
            ),
            "spec.suspend was boolean and is string",
        ),
        (
            lambda now: now["resource"].update({"spec.x": {"type": "string", "required": True}}),
            "spec.x is new and must be given",
        ),
    ],
)
def test_what_is_taken_back_is_named(change, says):
    now = json.loads(json.dumps(present()))
    change(now)
    (line,) = broken(present(), now)
    assert says in line


def test_what_is_added_breaks_nobody():
    now = json.loads(json.dumps(present()))
    now["report"]["colour"] = False
    now["view"] |= {"colour": False, "colour.red": True}  # within what can be left out
    now["phases"].append("blue")
    now["names"].append("REKINDLE_COLOUR")
    now["resource"] |= {"spec.x": {"type": "object", "required": False}}
    assert broken(json.loads(json.dumps(present())), now) == []


# The wire


def test_the_wire_has_no_version_but_that_of_its_path():
    assert api.pod_path("ns", "j", "p") == "/v1/namespaces/ns/jobs/j/pods/p"
    assert "version" not in {field.name for field in fields(AgentReport)}


LEAST = {"pod": "p", "uid": "u", "address": "1.2.3.4", "store_port": 1, "nproc": 1}


def test_a_reader_takes_what_it_knows_and_does_without_the_rest():
    report = AgentReport.from_json({**LEAST, "phase": "waiting", "colour": "blue"})
    assert report.reach_port == 0, "an agent that has no such port is not asked to be reached"
    assert View.from_json({"version": "v", "colour": "blue"}).round is None


@pytest.mark.parametrize(
    "read",
    [
        lambda: AgentReport.from_json({**LEAST, "phase": "blue"}),
        lambda: View.from_json(
            {"version": "v", "directive": {"kind": "blue", "round": 1, "reason": "r"}}
        ),
    ],
)
def test_a_phase_or_a_directive_that_a_reader_does_not_know_is_refused(read):
    with pytest.raises(ValueError, match="must be one of"):
        read()


def test_a_cause_that_a_reader_does_not_know_is_kept_as_text():
    assert Outcome.from_json({"cause": "Blue", "code": 1, "message": "m"}).cause == "Blue"


def test_only_phases_and_directives_are_closed():
    closed = {
        inner
        for kind in (AgentReport, View, Outcome, Directive)
        for hint in get_type_hints(kind).values()
        for inner in parts(hint)
        if isinstance(inner, type) and issubclass(inner, StrEnum)
    }
    assert closed == {AgentPhase, DirectiveKind}


# Checkpoints


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(FORMAT_1, tmp_path / "run"))


def test_a_checkpoint_of_format_1_is_read(run):
    restored, skipped = Store.open(f"file://{run}").restore(rank=0)
    assert (restored.ref.step, skipped) == (3, [])
    assert restored.meta["cursor"]["order_version"] == 1
    weights = restored.state["model"]
    assert {name: list(value.shape) for name, value in weights.items()} == {
        "layer.weight": [1, 3],
        "layer.bias": [1],
    }


class Net(rk.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.began = None

    def training_step(self, batch, batch_idx):
        if self.began is None:
            self.began = self.trainer.global_step, self.layer.weight.detach().clone()
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(run, **flags):
    x = torch.arange(60.0).reshape(20, 3) / 60
    net = Net()
    trainer = rk.Trainer(root=run, seed=1, enable_progress_bar=False, logger=False, **flags)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 4, shuffle=True)
    trainer.fit(net, data, ckpt_path="last")
    return net, trainer


def test_training_goes_on_from_a_checkpoint_of_format_1(run):
    saved = Store.open(f"file://{run}").restore(rank=0)[0].state["model"]["layer.weight"]
    net, trainer = fit(run, max_steps=5)
    assert net.began[0] == 3
    assert torch.equal(net.began[1], saved)
    assert trainer.global_step == 5


def test_a_newer_format_stops_training_and_is_not_taken_for_damage(run):
    (path,) = (run / "commit").iterdir()
    body = path.read_bytes()[: -len(',"sha256":""}') - 64].replace(
        b'"version":1', b'"version":2', 1
    )
    seal = hashlib.sha256(body + b"}").hexdigest()
    path.write_bytes(body + f',"sha256":"{seal}"}}'.encode())
    with pytest.raises(VersionError, match="R21 .*newer than this trainer"):
        fit(run, max_steps=5)
    assert not (run / "bad").exists(), "nothing is marked, so that the newer software reads it"
