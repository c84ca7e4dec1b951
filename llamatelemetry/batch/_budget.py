"""How long a call may take: "8h30m", seconds, or what is left of the session."""

from __future__ import annotations

import math
import os
import re
import time
from datetime import timedelta
from numbers import Real

from llamatelemetry._deadline import Deadline
from llamatelemetry._environment import detect_platform
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server._linux import process_start_time

__all__ = ["deadline_of"]

SESSION_SECONDS = 12 * 3600
"""What Kaggle and Colab let a session last at most:
https://www.kaggle.com/docs/notebooks, https://research.google.com/colaboratory/faq.html
"""

SPARED_SECONDS = 15 * 60
"""Left of it for what comes after: the rest of the notebook, its output's upload."""

_UNITS = {
    **dict.fromkeys(("d", "day", "days"), 86400),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
_FORMS = (
    'budget takes seconds, a timedelta, text like "8h30m", "90s" or "1d", or "session"'
)


def deadline_of(budget: float | str | timedelta | None) -> Deadline:
    """Return when a call that begins now has to end.

    Args:
        budget: Seconds, a time in words, or "session": 15 minutes before the platform
            ends this machine. None: never.

    Raises:
        ConfigurationError: It cannot be read, or nothing is left of it.
    """
    if budget is None:
        return Deadline.after(None)
    if budget == "session":
        return Deadline.after(_session_seconds())
    seconds = _seconds(budget)
    if not 0 < seconds < math.inf:
        raise ConfigurationError(
            f"budget={budget!r} leaves no time; {_FORMS}; None is without end"
        )
    return Deadline.after(seconds)


def _seconds(budget: float | str | timedelta) -> float:
    if isinstance(budget, timedelta):
        return budget.total_seconds()
    if isinstance(budget, Real) and not isinstance(budget, bool):
        return float(budget)
    if not isinstance(budget, str):
        raise ConfigurationError(f"{_FORMS}, not {budget!r}")
    text = budget.strip().lower()
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    known = all(unit in _UNITS for unit in units)
    if not parts or _PART.sub("", text) or not known:
        raise ConfigurationError(f"budget={budget!r} cannot be read; {_FORMS}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _session_seconds() -> float:
    """Return what is left of the session, but for what is spared."""
    platform = detect_platform()
    if platform.name == "local":
        raise ConfigurationError(
            'budget="session" is for Kaggle and Colab, which end a machine after '
            f"{SESSION_SECONDS // 3600} hours; nothing ends this one: give a time"
        )
    age = machine_age()
    if age is None:
        raise ConfigurationError(
            'budget="session": this machine does not tell when it began; give the '
            'time that is left, like "8h30m"'
        )
    left = SESSION_SECONDS - SPARED_SECONDS - age
    if left <= 0:
        raise ConfigurationError(
            f'budget="session": this machine began {age / 3600:.1f} hours ago, of '
            f"{SESSION_SECONDS // 3600} that {platform.title} gives, and the last "
            f"{SPARED_SECONDS // 60} minutes are spared; go on in a new session"
        )
    return left


def machine_age() -> float | None:
    """Return how long this machine runs, or its container, in seconds; None if unknown.

    The age of its first process. Its start is counted on the clock that is asked here:
    in a container that is the host's, which is why the uptime would not do.
    """
    ticks = process_start_time(1)
    if ticks is None:
        return None
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return age if age >= 0 else None
