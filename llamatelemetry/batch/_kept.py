"""Whether the platform keeps a file when the session ends, and where it would."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from llamatelemetry._environment import detect_platform
from llamatelemetry.exceptions import ConfigurationError, SetupWarning

__all__ = ["lost_advice", "warn_if_lost"]

_TABLES = frozenset((".csv", ".tsv", ".parquet", ".pq", ".xlsx"))

_DRIVE_FOLDERS = frozenset(
    ("MyDrive", "My Drive", "Shareddrives", "Shared drives", "Othercomputers")
)
"""What lies in the folder where Drive is mounted, as Colab's ``drive.mount`` does."""


def warn_if_lost(
    path: str | os.PathLike[str], what: str = "out", *, stacklevel: int = 2
) -> None:
    """Warn once if the platform will not keep a file that is going to be written.

    A name that promises a table is refused: what lies there are lines of JSON.

    Args:
        path: The file; neither it nor its folder need exist.
        what: The argument that names it.
        stacklevel: Whose line the warning shows: 1 is the one that calls this, 2 the
            one that called that.

    Raises:
        ConfigurationError: It is named as a table.
    """
    name = Path(path)
    if name.suffix.lower() in _TABLES:
        raise ConfigurationError(
            f"{what}={os.fspath(path)!r} will hold lines of JSON, and no table: name "
            f"it {name.with_suffix('.jsonl').name!r}; results.to_dataframe() makes a "
            "table of it"
        )
    advice = lost_advice(path)
    if advice is not None:
        message = f"{what}={os.fspath(path)!r} is lost with this session: {advice}"
        warnings.warn(message, SetupWarning, stacklevel=stacklevel + 1)


def lost_advice(path: str | os.PathLike[str]) -> str | None:
    """Return where to put a file that would be lost here; None if this one is kept."""
    place = Path(path).expanduser().absolute()
    platform = detect_platform()
    if platform.output is not None:
        # As it is written, and where links lead to: only what lies there is kept.
        if place.resolve().is_relative_to(platform.output.resolve()):
            return None
        better = platform.output / place.name
        return f"Kaggle keeps only {platform.output}; take {str(better)!r}"
    if platform.name != "colab" or _on_drive(place.resolve()):
        return None
    return (
        "Colab keeps only what lies on Drive; run: from google.colab import drive; "
        f"drive.mount('/content/drive'), and take '/content/drive/MyDrive/{place.name}'"
    )


def _on_drive(place: Path) -> bool:
    """Whether a file lies below a folder that only a mounted Drive has."""
    return any(
        parent.name in _DRIVE_FOLDERS and parent.is_dir() for parent in place.parents
    )
