"""Names of a room that are loaded when they are asked for, and not before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["lazy"]


def lazy(
    room: str, homes: Mapping[str, str], rooms: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a room's `__getattr__` and `__dir__`.

    Args:
        room: The package's `__name__`; `dir()` of it is its `__all__`.
        homes: The module in it that each lazy name comes from.
        rooms: The packages and modules in it that are names, too.
    """

    def load(name: str) -> Any:
        if name in rooms:
            return import_module(f"{room}.{name}")
        if name not in homes:
            message = f"module {room!r} has no attribute {name!r}"
            raise AttributeError(message, name=name, obj=sys.modules[room])
        value = getattr(import_module(f"{room}.{homes[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    return load, lambda: sorted([*sys.modules[room].__all__, *rooms])
