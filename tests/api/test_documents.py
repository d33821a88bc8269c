"""Documents that travel between the planes: what is read is a document or a ValueError."""

import contextlib
import json
import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle import api
from rekindle.api import (
    AgentPhase,
    AgentReport,
    CheckpointReport,
    Directive,
    DirectiveKind,
    Hang,
    Member,
    Outcome,
    Progress,
    RankReport,
    RestoredFrom,
    Rollback,
    Round,
    Suspect,
    Timings,
    View,
    document,
    pod_path,
)
from rekindle_operator.incidents.incidents import stamp

MEMBER = Member(pod="digits-0", uid="u0", address="10.0.0.1", store_port=29400, nproc=2)
ROUND = Round(
    number=3,
    members=(MEMBER, replace(MEMBER, pod="digits-1", uid="u1", nproc=3)),
    reason="first round",
    formed_at=1.5,
)
OUTCOME = Outcome(cause="UserError", code=1, message="no", step=7, rank=0, traceback="...")
REPORT = AgentReport(
    pod="digits-0",
    uid="u0",
    address="10.0.0.1",
    store_port=29400,
    nproc=2,
    phase=AgentPhase.RUNNING,
    round=ROUND,
    notice="SIGTERM",
    notice_seconds=30.0,
    progress=Progress(step=7, loss=0.5, metrics={"val/loss": 0.1}, round_steps=2),
    checkpoint=CheckpointReport(step=5, committed_at=9.0, uri="s3://b/r"),
    restored=RestoredFrom(step=5, source="s3://b/r", skipped=("damaged",)),
    outcome=OUTCOME,
    failed_for=0.25,
    timings=Timings(stopped=0.01, started=0.05, stepped=0.2, running=0.2),
    ranks=(RankReport(rank=0, step=7, phase="training", idle=0.1, busy=0.02),),
    hang=Hang(rank=0, step=7, phase="training", idle=90.0, timeout=60.0, stacks="in f"),
    rollback=Rollback(at_step=9, to_step=5, reason="the loss is not finite", at=3.0),
    reach_port=40001,
    unreachable=("u1",),
    useful_world=6,
    least_world=2,
    waits="s3://b/r is in use by ann on a1 (pid 7)",
)
SAVE = Directive(kind=DirectiveKind.SAVE, round=3, reason="r", seconds=20.0)
SUSPECT = Suspect(pod="digits-1", uid="u1", address="10.0.0.2", reach_port=40002)
VIEW = View(version="v", round=ROUND, directive=SAVE, suspects=(SUSPECT,))
DOCUMENTS = [MEMBER, ROUND, OUTCOME, REPORT, SAVE, VIEW, SUSPECT]
DOCUMENTS += [REPORT.progress, REPORT.checkpoint, REPORT.restored]
DOCUMENTS += [REPORT.timings, *REPORT.ranks, REPORT.hang, REPORT.rollback]
KINDS = [type(document) for document in DOCUMENTS]

# All that UTF-8 holds, as by default; but that is found out of the codec, in more than a second.
UNICODE = st.characters(exclude_categories=["Cs"])

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(UNICODE, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(UNICODE, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: type(d).__name__)
def test_a_document_survives_the_wire(document):
    text = json.dumps(document.to_json(), allow_nan=False)
    assert type(document).from_json(json.loads(text)) == document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: type(d).__name__)
def test_fields_of_a_newer_version_are_ignored(document):
    newer = {**document.to_json(), "colour": "blue"}
    assert type(document).from_json(newer) == document


def places(body, above=()):
    """The paths of all values in a document."""
    items = body.items() if isinstance(body, dict) else enumerate(body)
    for key, value in items:
        yield (*above, key)
        if isinstance(value, (dict, list, tuple)):
            yield from places(value, (*above, key))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@settings(max_examples=80)
@given(data=st.data())
def test_hostile_json_is_a_document_or_a_value_error(kind, data):
    """Some fields of a good document are replaced by anything that JSON can hold, or left out."""
    body = json.loads(json.dumps(DOCUMENTS[KINDS.index(kind)].to_json()))
    path = data.draw(st.sampled_from(sorted(places(body), key=str)))
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[path[-1]] = data.draw(anything)
    else:
        del holder[path[-1]]
    try:
        found = kind.from_json(json.loads(json.dumps(body)))
    except ValueError:
        return
    assert isinstance(found, kind)
    use(found)


def use(found):
    """What the operator does first with a document must not fail either."""
    if isinstance(found, Round):
        assert found.key
        assert found.world_size >= len(found.members) >= 1
    if isinstance(found, Progress):
        assert found.step + found.round_steps + found.samples + found.epoch >= 0
        assert found.productive_seconds + found.stall_seconds < math.inf
        assert (found.total_steps or 0) >= 0
        assert (found.loss or 0.0) * 2 is not None
    if isinstance(found, CheckpointReport):
        assert stamp(found.committed_at)
        assert 0 <= found.step < 2**63
    if isinstance(found, Outcome):
        assert found.message[:1000] + found.cause is not None
        assert found.at + (found.step or 0) + (found.rank or 0) >= 0
    if isinstance(found, Directive):
        assert (found.seconds or 0) < math.inf
    if isinstance(found, RestoredFrom):
        assert "; ".join(found.skipped) is not None
    if isinstance(found, AgentReport):
        assert f"told to go: {found.notice}".isprintable() or found.notice
        parts = (found.round, found.progress, found.checkpoint, found.outcome, found.restored)
        for part in parts:
            use(part)
    json.dumps(found.to_json() if found else None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@settings(max_examples=20)
@given(body=anything)
def test_anything_at_all_is_a_document_or_a_value_error(kind, body):
    with contextlib.suppress(ValueError):
        assert isinstance(kind.from_json(body), kind)


def test_the_message_names_the_document_and_the_field():
    body = {**MEMBER.to_json(), "nproc": "two"}
    with pytest.raises(ValueError, match="bad Member.*'nproc'.*str"):
        Member.from_json(body)


def test_a_member_without_workers_is_refused():
    with pytest.raises(ValueError, match="nproc is 0"):
        replace(MEMBER, nproc=0)


def test_ranks_follow_the_order_of_members():
    assert ROUND.world_size == 5
    assert [ROUND.first_rank(uid) for uid in ("u0", "u1", "other")] == [0, 2, None]


def test_the_key_tells_rounds_of_one_number_apart():
    other = replace(ROUND, members=ROUND.members[:1])
    again = replace(ROUND, reason="another word", formed_at=99.0)
    assert ROUND.key != other.key
    assert ROUND.key == again.key


def test_the_path_of_a_pod():
    assert pod_path("ml", "digits", "digits-0r1") == "/v1/namespaces/ml/jobs/digits/pods/digits-0r1"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unreachable": ["u"] * 17}, "may have 16"),
        ({"unreachable": ["u" * 65]}, "no more than 64"),
        ({"reach_port": 70_000}, "from 0 to 65535"),
    ],
)
def test_what_is_said_of_peers_is_limited(changes, says):
    with pytest.raises(ValueError, match=says):
        AgentReport.from_json({**REPORT.to_json(), **changes})


def largest(value):
    """A document with all that it may say said a thousand times."""
    if isinstance(value, dict):
        said = {key: largest(inner) for key, inner in value.items()}
        key, one = next(iter(said.items()))
        return said | {f"{key}-{n}": one for n in range(100)}
    if isinstance(value, (list, tuple)):
        return [largest(inner) for inner in value] * 100
    return value * 10**4 if isinstance(value, str) else value


SHORT = ("pod", "uid", "address", "phase", "version", "kind")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: type(d).__name__)
def test_whatever_is_said_a_document_stays_small(document):
    """Names are refused when they are long; everything else is cut."""
    told = document.to_json()
    for key, value in told.items():
        if key in SHORT or not isinstance(value, (str, dict, list, tuple)):
            continue
        body = {**told, key: largest(value)}
        try:
            found = type(document).from_json(body)
        except ValueError as error:
            assert len(str(error)) < 500  # noqa: PT017
            continue
        assert len(json.dumps(found.to_json())) < 40_000, key


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Member, "pod", "p" * 254),
        (Member, "pod", "digits\x1b[2J"),
        (Member, "uid", "\ud800"),
        (Member, "address", "10.0.0.1\n"),
        (Round, "number", 2**63 - 1),
        (Round, "number", -1),
        (Progress, "step", 10**400),
        (Progress, "productive_seconds", math.nan),
        (Progress, "productive_seconds", math.inf),
        (CheckpointReport, "committed_at", 10**400),
        (RankReport, "idle", -1),
        (Outcome, "code", 10**9),
    ],
)
def test_names_and_numbers_out_of_bounds_are_refused(kind, field, value):
    body = {**DOCUMENTS[KINDS.index(kind)].to_json(), field: value}
    with pytest.raises(ValueError, match=field) as refused:
        kind.from_json(body)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("two\r\nlines\tand", "two lines    and"),
        ("a\ud800b", "a\ufffdb"),
        ("\x1b]0;title\x07t\x00", "t\ufffd"),
        ("x" * 2000, "x" * 997 + "..."),
        ("na\u00efve \U0001f600", "na\u00efve \U0001f600"),
    ],
)
def test_words_for_people_are_cleaned_and_cut(said, kept):
    assert replace(OUTCOME, message=said).message == kept
    assert json.dumps(replace(OUTCOME, message=said).message, ensure_ascii=False).encode()


def test_a_loss_that_no_float_holds_is_infinite_and_a_page_keeps_its_lines():
    assert Progress(loss=10**400).loss == math.inf
    assert math.isnan(Progress(loss=math.nan).loss)
    assert replace(OUTCOME, traceback="a\n  b\x1b").traceback == "a\n  b\ufffd"


def test_every_field_of_every_document_states_its_limit():
    kinds = api.Document.__subclasses__()
    assert set(KINDS) <= set(kinds)
    for kind in kinds:
        assert document._rules(kind)

    @dataclass(frozen=True, kw_only=True)
    class Careless(api.Document):
        words: str = ""

    with pytest.raises(TypeError, match="Careless.words has no limit"):
        Careless()
