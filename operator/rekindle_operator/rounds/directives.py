"""What agents are asked: to save, to tell where their threads stand, to stop.

A directive is asked again in every plan until it shows an effect, and an agent that is not named is
asked nothing: so none is ever taken back, and none has to be remembered.
"""

from rekindle.api import AgentPhase, Directive, DirectiveKind
from rekindle_operator.observed.observations import Observed
from rekindle_operator.rounds import rounds


def save(observed: Observed, decision: rounds.RoundDecision) -> dict[str, Directive]:
    """Ask every member that still runs to save."""
    current = observed.round
    if decision.save is None or current is None:
        return {}
    return {
        member.uid: Directive(
            kind=DirectiveKind.SAVE,
            round=current.number,
            reason=decision.save,
            seconds=decision.save_seconds,
        )
        for member in current.members
        if rounds.state_of(member, current, observed)
        in {rounds.State.RUNNING, rounds.State.STARTING}
    }


def dump(observed: Observed) -> dict[str, Directive]:
    """Ask every member where its threads stand."""
    current = observed.round
    if current is None:
        return {}
    return {
        member.uid: Directive(
            kind=DirectiveKind.DUMP, round=current.number, reason="a worker does not get on"
        )
        for member in current.members
        if member.uid in observed.agents
    }


def stop(observed: Observed, code: int, message: str) -> dict[str, Directive]:
    """Tell every agent that the job is over."""
    number = observed.round.number if observed.round else 0
    return {
        uid: Directive(
            kind=DirectiveKind.STOP,
            round=number,
            reason="the job has ended",
            code=code,
            message=message,
        )
        for uid, agent in observed.agents.items()
        if agent.report.phase is not AgentPhase.LEAVING
    }
