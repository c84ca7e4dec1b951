"""What a card's cores can do, compared as CUDA counts it."""

from __future__ import annotations

import re
from typing import Self

from llamatelemetry.exceptions import ConfigurationError

__all__ = ["ComputeCapability"]

_SHAPE = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")


class ComputeCapability(str):
    """A compute capability: the text ``7.5``, less than ``10.0``.

    It is equal to the same text and has its hash; order is that of the numbers, beside
    any text of this form. A number is equal to none: 9.1 may be meant as 9.10.



    Raises:
        ConfigurationError: The text is no compute capability.
        TypeError: It is put in order with a text that is none, or with a number.

    Examples:
        >>> from llamatelemetry.gpu import ComputeCapability
        >>> ComputeCapability("7.5") < ComputeCapability("10.0")
        True
        >>> ComputeCapability("7.5").numbers
        (7, 5)
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text.

        Args:
            text: Major and minor number, ``7.5``.
        """
        if not isinstance(text, str) or _SHAPE.fullmatch(text) is None:
            raise ConfigurationError(
                f"{text!r} is no compute capability; it is two numbers: '7.5'"
            )
        return super().__new__(cls, text)

    @property
    def numbers(self) -> tuple[int, int]:
        """Major and minor: ``(7, 5)``."""
        return _numbers(self)

    def __lt__(self, other: str) -> bool:
        return NotImplemented if _foreign(other) else self.numbers < _numbers(other)

    def __le__(self, other: str) -> bool:
        return NotImplemented if _foreign(other) else self.numbers <= _numbers(other)

    def __gt__(self, other: str) -> bool:
        return NotImplemented if _foreign(other) else self.numbers > _numbers(other)

    def __ge__(self, other: str) -> bool:
        return NotImplemented if _foreign(other) else self.numbers >= _numbers(other)


def _foreign(other: object) -> bool:
    """Whether Python is to ask the other side, which may know how to compare.

    A number does not; its error is to say what to write instead.
    """
    if isinstance(other, (int, float)):
        raise TypeError(
            f"a compute capability has no order beside the number {other!r}; compare "
            "with text: '7.5'"
        )
    return not isinstance(other, str)


def _numbers(text: str) -> tuple[int, int]:
    """Return the two numbers of a text.

    An error, and not NotImplemented: Python would then compare both as texts.
    """
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise TypeError(f"{text!r} is no compute capability to compare with")
    return int(found[1]), int(found[2])
