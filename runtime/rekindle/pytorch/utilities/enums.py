"""Enumerations whose members equal their texts, whatever the case of the letters."""

from rekindle.enumeration import LightningEnum


class GradClipAlgorithmType(LightningEnum):
    """How gradients are clipped: `Trainer(gradient_clip_algorithm=)`."""

    VALUE = "value"
    NORM = "norm"

    @staticmethod
    def supported_type(val: str) -> bool:
        """Whether there is such an algorithm."""
        return any(kind.value == val for kind in GradClipAlgorithmType)

    @staticmethod
    def supported_types() -> list[str]:
        """The algorithms."""
        return [kind.value for kind in GradClipAlgorithmType]


class Interval(LightningEnum):
    """When a `Timer` looks at the clock."""

    step = "step"
    epoch = "epoch"
