import pytest

from rekindle.api import Cause, ExitCode
from rekindle.checkpoint import ProbeError, SaveTimeout
from rekindle.checkpoint.objects import interface
from rekindle.errors.outcome import Preempted, classify
from rekindle.errors.requirement import RequirementError


class DistBackendError(RuntimeError):
    """As torch.distributed names it; recognised without torch."""


def outcome(error):
    return classify(error, step=7, rank=2, now=1000.0)


@pytest.mark.parametrize(
    ("error", "cause", "code", "reason"),
    [
        (ValueError("bad token 7"), Cause.USER_ERROR, ExitCode.USER_ERROR, None),
        (RequirementError("R1 no loss"), Cause.USER_ERROR, 1, "ModelContract/R1"),
        (RequirementError("R5 cannot write"), Cause.CONFIGURATION, 1, "Store/R5"),
        (RequirementError("R12b a stream"), Cause.CONFIGURATION, 1, "DataContract/R12b"),
        (RequirementError("R13 too many"), Cause.CONFIGURATION, 1, "Topology/R13"),
        (OSError("R16 nothing is good"), Cause.INTEGRITY, ExitCode.INTEGRITY, "Store/R16"),
        (OSError("R15 lost the lease"), Cause.PEER_LOST, 1, "Store/R15"),
        (Preempted(7, saved=True), Cause.SAVED, ExitCode.SAVED, None),
        (Preempted(7, saved=False), Cause.PREEMPTED, ExitCode.PREEMPTED, None),
        (DistBackendError("NCCL"), Cause.PEER_LOST, 1, None),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"),
            Cause.PEER_LOST,
            1,
            None,
        ),
        (RuntimeError("shape mismatch"), Cause.USER_ERROR, 1, None),
        (ConnectionResetError("Connection reset by peer"), Cause.USER_ERROR, 1, None),
    ],
)
def test_an_error_has_a_cause_and_a_code(error, cause, code, reason):
    found = outcome(error)
    assert (found.cause, found.code, found.reason) == (cause, code, reason)
    assert (found.step, found.rank, found.at) == (7, 2, 1000.0)


def below(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (interface.Unreachable("no answer"), Cause.STORE_LOST),
        (SaveTimeout("the last checkpoint was not durable by its deadline"), Cause.STORE_LOST),
        (
            below(ProbeError("R5 cannot write"), interface.Unreachable("no answer")),
            Cause.STORE_LOST,
        ),
        (RequirementError("R5 cannot write", transient=True), Cause.STORE_LOST),
        (
            below(RuntimeError("of the script"), interface.Unreachable("no answer")),
            Cause.STORE_LOST,
        ),
        (below(ProbeError("R5 cannot write"), interface.AccessDenied("no")), Cause.CONFIGURATION),
        (below(ProbeError("R5 cannot write"), interface.NoSuchBucket("no")), Cause.CONFIGURATION),
        (interface.AccessDenied("no"), Cause.USER_ERROR),
        (below(OSError("R16 nothing is good"), interface.Unreachable("no")), Cause.INTEGRITY),
        (below(RuntimeError("of the script"), TimeoutError("its own")), Cause.USER_ERROR),
    ],
    ids=repr,
)
def test_a_store_that_gives_no_answer_is_nobodys_mistake_and_one_that_refuses_is(error, cause):
    assert outcome(error).cause == cause


def test_a_lost_peer_is_found_below_another_error():
    error = RuntimeError("validation failed")
    error.__cause__ = DistBackendError("peer")
    assert outcome(error).cause == Cause.PEER_LOST


def test_the_message_is_the_users_own_error_on_one_line():
    assert outcome(KeyError("a\nb")).message == "KeyError: 'a\\nb'"
    assert outcome(ValueError("first\nsecond")).message == "ValueError: first second"


def test_a_long_traceback_keeps_head_and_tail():
    error = ValueError("the end")
    error.__cause__ = ValueError("x" * 3000)
    text = outcome(error).traceback
    assert len(text) <= 2000
    assert text.startswith("ValueError: xxx")
    assert text.rstrip().endswith("the end")


def test_preempted_ends_an_unchanged_script_with_the_code_that_asks_for_a_restart():
    assert Preempted(3, saved=True).code == 75
    assert Preempted(3, saved=False).code == 76
