"""Timeline: requests, tokens, servers and cards on one clock."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, overload

from llamatelemetry._files import write_whole
from llamatelemetry._tables import to_dataframe, write_parquet
from llamatelemetry._units import printable
from llamatelemetry.api._record import RequestRecord
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gpu.monitor import GPUSample
from llamatelemetry.telemetry import _picture
from llamatelemetry.telemetry._attribution import Attribution
from llamatelemetry.telemetry._entries import RequestEntry, ServerEvent
from llamatelemetry.telemetry._joined import Joined
from llamatelemetry.telemetry._kept import Kept
from llamatelemetry.telemetry._words import summary
from llamatelemetry.telemetry._written import (
    COLUMNS,
    Kind,
    from_json_text,
    rows,
    to_json_text,
)

__all__ = ["Timeline"]

FilePath = str | os.PathLike[str]

_KINDS: tuple[Kind, ...] = ("requests", "samples", "events", "tokens")


class Timeline:
    """What was recorded: requests, tokens, events of servers, and what the cards said.

    All times are seconds of ``time.monotonic()``, which no setting of the clock moves;
    ``offset`` added to them gives seconds since 1970. It can be looked at while it is
    recorded, from any thread. Made by :func:`record`, ``launch(telemetry=True)`` and
    :meth:`from_json`.

    What is kept is bounded: of requests, events and readings of the cards as many as
    :func:`record` was told, and the times of four million chunks. The oldest go, and
    are counted in ``dropped``.

    Args:
        kept: What there is; made by those three.

    Examples:
        >>> from llamatelemetry.telemetry import record
        >>> with record(client) as timeline:
        ...     for number in range(2):
        ...         answer = client.completion("The KV cache", 8, temperature=0)
        >>> [request.completion_tokens for request in timeline.requests]
        [8, 8]
        >>> len(timeline.rows("tokens"))
        16
    """

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._joined: Joined | None = None

    @property
    def requests(self) -> list[RequestEntry]:
        """The requests that are over, in the order in which they ended."""
        self._kept.look()
        return self._kept.requests

    @property
    def events(self) -> list[ServerEvent]:
        """What happened to the servers, and the marks, oldest first."""
        return self._kept.events

    @property
    def samples(self) -> list[tuple[float, GPUSample]]:
        """What each card said, and when, oldest first."""
        return [(now, one) for now, samples in self._kept.ticks for one in samples]

    @property
    def cards(self) -> dict[int, str]:
        """The names of the cards that were seen, by their index."""
        return dict(self._kept.cards)

    @property
    def began(self) -> float:
        """When it began."""
        return self._kept.began

    @property
    def offset(self) -> float:
        """Seconds to add to a time for those since 1970; noted at the start."""
        return self._kept.offset

    @property
    def dropped(self) -> dict[str, int]:
        """How many requests, events, samples and times of tokens were let go."""
        return dict(self._kept.dropped)

    def mark(self, text: str) -> ServerEvent:
        """Note that something happens now; it stands among the events.

        Args:
            text: What happens.

        Raises:
            ConfigurationError: It is no text.

        Examples:
            >>> from llamatelemetry.telemetry import record
            >>> with record(client) as timeline:
            ...     timeline.mark("warm").text
            'warm'
        """
        if not isinstance(text, str):
            raise ConfigurationError(f"a mark is {text!r}, and must be a text")
        event = ServerEvent(time=time.monotonic(), kind="mark", text=printable(text))
        self._kept.add_event(event)
        return event

    def attribute(self, request: RequestEntry | int) -> Attribution:
        """Return what the cards drew and held while a request ran.

        Right after a request its last moments are not covered: the cards are read
        again with the monitor's next tick.

        Args:
            request: One of ``requests``, or its ``id``.

        Raises:
            ConfigurationError: There is no such request, it was dropped, or it is of
                another timeline.

        Examples:
            >>> from llamatelemetry.telemetry import record
            >>> with record(client) as timeline:
            ...     answer = client.completion("The KV cache", 8, temperature=0)
            >>> cost = timeline.attribute(timeline.requests[0])
            >>> cost.joules, cost.problem
            (None, 'no card was watched that its server uses')
        """
        number = request.id if isinstance(request, RequestEntry) else request
        requests = self.requests
        place = number - requests[0].id if requests and isinstance(number, int) else -1
        if not 0 <= place < len(requests):
            raise ConfigurationError(
                f"the timeline has no request {number!r}; it has {len(requests)}"
                + (f", from {requests[0].id}" if requests else "")
            )
        entry = requests[place]
        if isinstance(request, RequestEntry) and request.start != entry.start:
            raise ConfigurationError(
                f"request {number} of this timeline is another one; ask the timeline "
                "that it is of"
            )
        return self._join().attribute(entry)

    def describe(
        self, request: RequestEntry | RequestRecord, *, cost: bool = True
    ) -> str:
        """Return in a few words where a request ran and what it cost.

        Args:
            request: One of ``requests``; or what a client told of one that has just
                ended. "" if that was not recorded.
            cost: Whether to say what it cost, too: the cards are read once more then,
                so that its last moments are known.

        Examples:
            >>> from llamatelemetry import launch
            >>> with launch("qwen3-4b", telemetry=True, progress=False) as session:
            ...     answer = session.client.completion("The KV", 8, temperature=0)
            ...     session.timeline.describe(session.timeline.requests[0])
            'slot 0...'
        """
        if cost:
            self._kept.catch_up()
        entry = self._kept.find(request.start, request.end)
        if entry is None:
            return ""
        return summary(entry, self._join().attribute(entry) if cost else None)

    def _join(self) -> Joined:
        joined = self._joined
        if joined is None or joined.changes != self._kept.changes:
            joined = self._joined = Joined(self._kept)
        return joined

    def rows(self, kind: Kind = "requests") -> list[dict[str, Any]]:
        """Return rows of plain values, oldest first.

        Every row has ``time``, in seconds since 1970, and the monotonic seconds:
        ``start`` and ``end`` of a request, ``monotonic`` of everything else.

        Args:
            kind: "requests": the fields of :class:`RequestEntry`, and what
                :meth:`attribute` says, with the peaks of all cards added. "tokens":
                one row for each chunk of each answer. "events": of the servers.
                "samples": of each card at each reading.

        Raises:
            ConfigurationError: There is no such kind.

        Examples:
            >>> from llamatelemetry.telemetry import record
            >>> with record(client) as timeline:
            ...     answer = client.completion("The KV cache", 8, temperature=0)
            >>> row = timeline.rows()[0]
            >>> row["kind"], row["prompt_tokens"], row["joules"]
            ('completion', 3, None)
        """
        self._kept.look()
        return list(rows(self._kept, kind, self._join().attribute))

    def to_dataframe(self, kind: Kind = "requests") -> Any:
        """Return such rows as a ``pandas.DataFrame``.

        Args:
            kind: As for :meth:`rows`.

        Raises:
            ConfigurationError: There is no such kind.
            SetupError: pandas is missing.

        Examples:
            >>> from llamatelemetry.telemetry import record
            >>> with record(client) as timeline:
            ...     answer = client.completion("The KV cache", 8, temperature=0)
            >>> frame = timeline.to_dataframe("tokens")
            >>> frame.groupby("request").size().to_dict()
            {0: 8}
        """
        found = self.rows(kind)
        return to_dataframe(found, COLUMNS[kind])

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: FilePath) -> None: ...
    def to_json(self, path: FilePath | None = None) -> str | None:
        """Write all as one JSON object, or return it as text without a path.

        Args:
            path: The file, which is replaced if it is there; None for none.

        Raises:
            OSError: It cannot be written.

        Examples:
            >>> from llamatelemetry.telemetry import Timeline, record
            >>> with record(client) as timeline:
            ...     answer = client.completion("The KV cache", 8, temperature=0)
            >>> timeline.to_json("timeline.json")
            >>> Timeline.from_json("timeline.json").requests == timeline.requests
            True
        """
        self._kept.look()
        text = to_json_text(self._kept)
        if path is None:
            return text
        write_whole(path, text)
        return None

    @classmethod
    def from_json(cls, source: FilePath) -> Self:
        """Return a timeline that :meth:`to_json` has written.

        Args:
            source: The file, or the text itself.

        Raises:
            ConfigurationError: It was not written by that.
            OSError: It cannot be read.

        Examples:
            >>> from llamatelemetry.telemetry import Timeline, record
            >>> with record(client) as timeline:
            ...     event = timeline.mark("here")
            >>> Timeline.from_json(timeline.to_json()).events == [event]
            True
        """
        if isinstance(source, str) and source.lstrip().startswith("{"):
            return cls(from_json_text(source))
        return cls(from_json_text(Path(source).read_bytes()))

    def to_parquet(self, folder: FilePath) -> None:
        """Write a Parquet file for each kind of rows into a folder.

        Args:
            folder: Where ``requests.parquet``, ``samples.parquet``, ``events.parquet``
                and ``tokens.parquet`` are written; made if it is not there.

        Raises:
            SetupError: pyarrow is missing.
            OSError: They cannot be written.

        Examples:
            >>> from llamatelemetry.telemetry import record
            >>> with record(client) as timeline:
            ...     answer = client.completion("The KV cache", 8, temperature=0)
            >>> timeline.to_parquet("timeline")
            >>> from pathlib import Path
            >>> sorted(path.stem for path in Path("timeline").iterdir())
            ['events', 'requests', 'samples', 'tokens']
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        for kind in _KINDS:
            found = self.rows(kind)
            write_parquet(found, COLUMNS[kind], Path(folder) / f"{kind}.parquet")

    def plot(self) -> Any:
        """Return a ``matplotlib.figure.Figure``: cards above, requests below.

        Used memory and power of each card over time; below them a bar for each
        request in its slot's row, lighter until its first token, and a line wherever
        something happened to a server.

        Raises:
            SetupError: matplotlib is missing.

        Examples:
            >>> from llamatelemetry.telemetry import record
            >>> with record(client) as timeline:
            ...     answer = client.completion("The KV cache", 8, temperature=0)
            >>> [axes.get_ylabel() for axes in timeline.plot().axes]
            ['requests']
        """
        self._kept.look()
        return _picture.figure(self._kept)

    def __repr__(self) -> str:
        kept = self._kept
        samples = sum(len(samples) for _, samples in kept.ticks)
        parts = [
            _counted(len(kept.requests), "request"),
            _counted(len(kept.events), "event"),
            f"{_counted(samples, 'sample')} of {_counted(len(kept.cards), 'card')}",
        ]
        text = ", ".join(parts)
        gone = _gone(kept.dropped)
        return f"<Timeline: {text}{f'; dropped {gone}' if gone else ''}>"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _gone(dropped: Mapping[str, int]) -> str:
    names = {"tokens": "times of tokens"}
    return ", ".join(
        f"{count:,} {names.get(what, what)}" for what, count in dropped.items() if count
    )
