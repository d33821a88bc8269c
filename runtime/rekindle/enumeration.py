"""Enumerations whose members equal their texts, whatever the case of the letters."""

import warnings
from enum import Enum
from typing import Literal, Self


class LightningEnum(str, Enum):  # noqa: UP042 - `str()` of a member is not its value
    """Base class: a member equals the text of its value in any case."""

    @classmethod
    def from_str(cls, value: str, source: Literal["key", "value", "any"] = "key") -> Self:
        """The member of that name (``key``), value, or either; ValueError when there is none."""
        for name, member in cls.__members__.items():
            if source in ("key", "any") and name.lower() == value.lower():
                return member
        for member in cls.__members__.values():
            if source in ("value", "any") and member == value:
                return member
        raise ValueError(f"{value!r} is not known; allowed are {', '.join(cls._texts(source))}")

    @classmethod
    def try_from_str(
        cls, value: str, source: Literal["key", "value", "any"] = "key"
    ) -> Self | None:
        """As `from_str`, with a warning and None instead of an error."""
        try:
            return cls.from_str(value, source)
        except ValueError as error:
            warnings.warn(str(error), UserWarning, stacklevel=2)
            return None

    @classmethod
    def _texts(cls, source: str) -> list[str]:
        keys = list(cls.__members__) if source in ("key", "any") else []
        values = [member.value for member in cls] if source in ("value", "any") else []
        return keys + values

    def __eq__(self, other: object) -> bool:
        text = other.value if isinstance(other, Enum) else other
        return bool(self.value.lower() == str(text).lower())

    def __hash__(self) -> int:
        return hash(self.value.lower())
