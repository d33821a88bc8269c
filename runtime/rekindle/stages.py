"""What a trainer is doing, in Lightning's words: how far it has come, in which call, at what."""

from dataclasses import dataclass

from rekindle.enumeration import LightningEnum


class TrainerStatus(LightningEnum):
    """How far it has come."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """Whether nothing runs any more."""
        return self in (TrainerStatus.FINISHED, TrainerStatus.INTERRUPTED)


class TrainerFn(LightningEnum):
    """Which of the trainer's calls runs, or ran last."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class RunningStage(LightningEnum):
    """What is going on within that call."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        """Whether something is measured, and nothing trained."""
        measured = (RunningStage.VALIDATING, RunningStage.TESTING, RunningStage.SANITY_CHECKING)
        return self in measured

    @property
    def dataloader_prefix(self) -> str:
        """What the names of this stage's loaders begin with."""
        if self in (RunningStage.VALIDATING, RunningStage.SANITY_CHECKING):
            return "val"
        return self.value


@dataclass
class TrainerState:
    """All three."""

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None

    @property
    def finished(self) -> bool:
        """Whether the call has ended well."""
        return self.status == TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        """Whether the call has ended."""
        return self.status.stopped


_STAGES = {
    "training": RunningStage.TRAINING,
    "validating": RunningStage.VALIDATING,
    "testing": RunningStage.TESTING,
    "predicting": RunningStage.PREDICTING,
}
_BEGINS_WITH = {
    TrainerFn.FITTING: RunningStage.TRAINING,
    TrainerFn.VALIDATING: RunningStage.VALIDATING,
    TrainerFn.TESTING: RunningStage.TESTING,
    TrainerFn.PREDICTING: RunningStage.PREDICTING,
}


def state_of(phase: str, call: str | None, *, sanity: bool) -> TrainerState:
    """The state in a phase of `training.lifecycle`, in a call, maybe in the sanity check."""
    fn = None if call is None else TrainerFn(call)
    if fn is None:
        return TrainerState()
    if phase == "done":
        return TrainerState(TrainerStatus.FINISHED, fn)
    if phase == "failed":
        return TrainerState(TrainerStatus.INTERRUPTED, fn)
    stage = RunningStage.SANITY_CHECKING if sanity else _STAGES.get(phase, _BEGINS_WITH[fn])
    return TrainerState(TrainerStatus.RUNNING, fn, stage)
