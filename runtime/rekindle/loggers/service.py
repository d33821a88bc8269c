"""What loggers of tracking services share: one record on the server through all attempts.

A service keeps a record (a run, an experiment) under an id. Each attempt of a run goes on with the
same record, so the id is in the checkpoints: a script may give one, else this process chooses one
before the first checkpoint, else the service gives one when the record is made. An id that the
script gives always wins over the one in a checkpoint.
"""

from typing import Any, ClassVar

from rekindle.loggers.logger import Attempt, Logger, Mute, required


class ServiceLogger(Logger):
    """A logger whose records go to a service, through the service's own package."""

    ID: ClassVar[str]
    """What a checkpoint calls the id."""

    def __init__(
        self, package: str, *, given: str | None, prefix: str | None, log_model: object = False
    ) -> None:
        """`given` is the script's id of the record, `log_model` what it said of that.

        Raises ModuleNotFoundError when the package is not installed, ValueError for a true
        `log_model`.
        """
        name = type(self).__name__
        if log_model:
            raise ValueError(
                f"{name}(log_model={log_model!r}) is not supported: checkpoints stay in the run's "
                f"root, where `rekindle.Store` reads them"
            )
        self._module = required(package, package, name)
        self._given = self._id = given or None
        self._record: Any = None
        """What the package gives to write to, once it is open."""
        self.prefix = f"{prefix}{self.LOGGER_JOIN_CHAR}" if prefix else ""

    @property
    def version(self) -> str | None:
        """The record's id; None before it is known."""
        return self._id

    @property
    def experiment(self) -> Any:
        """What the service's package gives to write to; mute on ranks that do not write."""
        return self._record if self.ready() else Mute()

    def new_id(self) -> str | None:
        """An id for a new record; None when the service gives one in `open`."""
        return None

    def goes_on(self, attempt: Attempt) -> bool:
        """Whether there may be a record of that id already."""
        return attempt.resumed or self._given is not None

    def prepare(self, attempt: Attempt) -> None:
        """Choose an id, so that the first checkpoint can name it."""
        if self._given is None and not (attempt.resumed and self._id):
            self._id = self.new_id()

    def state_dict(self) -> dict[str, Any]:
        """The record's id."""
        return {} if self._id is None else {self.ID: self._id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same record, unless the script names one."""
        self._id = self._given or state_dict.get(self.ID)
