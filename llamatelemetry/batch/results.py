"""What a batch has answered: read from its file when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from llamatelemetry import _tables
from llamatelemetry.batch import _results_view as view
from llamatelemetry.batch._places import Place, Places
from llamatelemetry.batch._rows import label_of
from llamatelemetry.batch._schema import SchemaMismatchError

__all__ = ["ResultRow", "Results", "Tally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One row's answer, or why there is none.

    Attributes:
        id: What names the row.
        position: Its place among the rows, from 0.
        answer: The text; None where it failed before there was any.
        value: With a schema, what the text stands for: plain JSON values, or an object
            of the pydantic model.
        tool_calls: The tools that the model calls, as OpenAI shapes them, or None.
        error: Why it failed, as ``{"type": ..., "message": ...}``; None if it did not.
            An answer that fits the schema no more, since a validator was changed, has
            "SchemaError" when it is looked at, and is counted as it was.
        finish_reason: Why the answer ended, "stop" or "length".
        model: The model's alias.
        prompt_tokens: Tokens of the prompt, cached ones included.
        cached_tokens: Those of them that were in the server's cache.
        completion_tokens: Tokens generated. None like those above where it is not told.
        seconds: How long it took, from being asked.
        time_to_first_token: Seconds until the first text, or None.
        attempts: How often it was asked.
        repaired: Whether a first answer did not fit the schema.
        server: Who answered.
        time: When, in seconds since 1970.

    Examples:
        >>> from llamatelemetry.batch import map_prompts
        >>> results = map_prompts(
        ...     ["What is GGUF?"], "{row}", to=client, temperature=0, progress=False
        ... )
        >>> results[0].finish_reason, results[0].error
        ('stop', None)
    """

    id: str | int
    position: int
    answer: str | None = None
    value: Any = None
    tool_calls: list[dict[str, Any]] | None = None
    error: dict[str, str] | None = None
    finish_reason: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    time_to_first_token: float | None = None
    attempts: int | None = None
    repaired: bool = False
    server: str | None = None
    time: float | None = None

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return self.error is not None


_COLUMNS = tuple(item.name for item in fields(ResultRow))
_TABLE = tuple(name for name in _COLUMNS if name not in {"id", "position", "error"})


@dataclass(frozen=True, slots=True)
class Tally:
    """What one call has done.

    Attributes:
        rows: Rows answered, or failed.
        seconds: How long it took.
        prompt_tokens: Tokens of their prompts.
        completion_tokens: Tokens generated for them.
        kept: Rows that earlier calls had answered.
    """

    rows: int
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    kept: int


class Results:
    """The results of the rows of one call, in their order.

    They lie in files and are read when they are looked at: a table larger than memory
    is no trouble before ``to_dataframe()``.

    Args:
        places: Where the results lie.
        path: The file of this call.
        tally: What this call has done.
        ended: How it ended.
        left: Rows not reached.
        restore: Makes a value of an answer's text, with a schema.
        once: Whether the rows came from an iterator.

    Attributes:
        path: The file that the call wrote to.
        ended: "done"; "budget" where that was over; "interrupted" or "failed" where an
            error was raised.
        left: Rows not reached; None for an iterator whose end is not known.
        once: Whether the rows came from an iterator, which is used up: the next call
            has to be given them anew.
        kept: Rows that earlier calls had answered.
        asked: Rows that this call has answered, or that failed in it.
        seconds: How long the call took.
        prompt_tokens: Tokens of the prompts that it has asked.
        completion_tokens: Tokens generated in it.

    Examples:
        >>> from llamatelemetry.batch import map_prompts
        >>> rows = [{"name": "a", "about": "GGUF"}, {"name": "b", "about": "KV cache"}]
        >>> results = map_prompts(
        ...     rows,
        ...     "What is {about}?",
        ...     id="name",
        ...     to=client,
        ...     temperature=0,
        ...     progress=False,
        ... )
        >>> len(results), results.done, results.failed, results.left, results.ended
        (2, 2, 0, 0, 'done')
        >>> results.asked, results.kept
        (2, 0)
        >>> [row.id for row in results], results["a"].answer[:21]
        (['a', 'b'], 'GGUF is a file format')
    """

    def __init__(
        self,
        places: Places,
        path: Path,
        tally: Tally,
        *,
        ended: Literal["done", "budget", "interrupted", "failed"],
        left: int | None,
        restore: Callable[[str], Any] | None = None,
        once: bool = False,
    ) -> None:
        self.path = path
        self.ended = ended
        self.left = left
        self.once = once
        self.kept, self.asked = tally.kept, tally.rows
        self.seconds = tally.seconds
        self.prompt_tokens = tally.prompt_tokens
        self.completion_tokens = tally.completion_tokens
        self._places, self._tally, self._restore = places, tally, restore

    @property
    def done(self) -> int:
        """How many rows are answered, by this call or an earlier one."""
        return self._places.done

    @property
    def failed(self) -> int:
        """How many rows have an error."""
        return self._places.failed

    @property
    def rows_per_second(self) -> float | None:
        """Rows in a second, of those that this call came to; None if it had none."""
        return self._rate(self._tally.rows)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens generated in a second by this call; None if it had no row."""
        return self._rate(self._tally.completion_tokens)

    def _rate(self, count: int) -> float | None:
        if not self._tally.rows or not self.seconds:
            return None
        return count / self.seconds

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[ResultRow]:
        records = self._places.records()
        for place, record in zip(self._places, records, strict=True):
            yield self._row(place, record)

    def __getitem__(self, id: Hashable) -> ResultRow:  # noqa: A002 - what users call it
        """Return the result of the row with this id.

        Args:
            id: The row's, or its entry in the DataFrame's index.

        Raises:
            KeyError: There is none.
            TypeError: It is a slice.
        """
        if isinstance(id, slice):
            raise TypeError(
                "results[...] takes a row's id, no slice; list(results) has all rows "
                "in their order"
            )
        place = self._places.find(label_of(id))
        if place is None:
            raise KeyError(self._missing(id))
        return self._row(place, self._places.read(place))

    def _missing(self, id: Any) -> str:  # noqa: A002 - as above
        first = next(iter(self._places), None)
        if first is None:
            return f"no row has the id {id!r}: there are none"
        known = self._places.read(first)["id"]
        return (
            f"no row has the id {id!r}; ids are like {known!r}; list(results)[0] is "
            "the first row"
        )

    def _row(self, place: Place, record: dict[str, Any]) -> ResultRow:
        known = {name: record[name] for name in _COLUMNS if name in record}
        known["position"] = place.position  # the line may be of a call with other rows
        if self._restore and not place.failed and known.get("answer") is not None:
            try:
                known["value"] = self._restore(known["answer"])
            except SchemaMismatchError as mismatch:
                error = {"type": "SchemaError", "message": mismatch.problem}
                known |= {"value": None, "error": error}
        return ResultRow(**known)

    def failures(self, most: int | None = None) -> list[ResultRow]:
        """Return the rows that have failed, in their order.

        Args:
            most: So many at most; None for all.

        Examples:
            >>> from llamatelemetry.batch import map_prompts
            >>> results = map_prompts(
            ...     ["What is GGUF?", ""], "{row}", to=client, progress=False
            ... )
            >>> [(row.id, row.error["type"]) for row in results.failures()]
            [(1, 'TemplateError')]
        """
        failed = (place for place in self._places if place.failed)
        return [
            self._row(place, self._places.read(place)) for place in islice(failed, most)
        ]

    def to_dataframe(self) -> Any:
        """Return all as a ``pandas.DataFrame``, whose index is the ids.

        An error is in the columns ``error`` (its type) and ``error_message``.

        Raises:
            SetupError: pandas is missing.

        Examples:
            >>> from llamatelemetry.batch import map_prompts
            >>> results = map_prompts(
            ...     ["What is GGUF?"], "{row}", to=client, temperature=0, progress=False
            ... )
            >>> results.to_dataframe()["answer"].loc[0][:21]
            'GGUF is a file format'
        """
        columns = ("id", *_TABLE, "error", "error_message")
        return _tables.to_dataframe(map(self._cells, self), columns).set_index("id")

    def _cells(self, row: ResultRow) -> dict[str, Any]:
        error = row.error or {}
        cells = {name: getattr(row, name) for name in _TABLE}
        return {
            "id": row.id,
            **cells,
            "error": error.get("type"),
            "error_message": error.get("message"),
        }

    def plot(self) -> Any:
        """Return a ``matplotlib.figure.Figure``: speed over time, seconds for a row.

        Raises:
            SetupError: matplotlib is missing.

        Examples:
            >>> from llamatelemetry.batch import map_prompts
            >>> results = map_prompts(
            ...     ["What is GGUF?"], "{row}", to=client, temperature=0, progress=False
            ... )
            >>> results.plot().savefig("batch.png")
        """
        from llamatelemetry._batch_chart import Answered, batch_figure  # noqa: PLC0415 - drawn when asked for

        answered = (
            Answered(
                row.time,
                row.seconds,
                row.completion_tokens,
                failed=row.failed,
            )
            for row in self
            if row.time is not None
        )
        return batch_figure(answered, title=view.title(self))

    def __repr__(self) -> str:
        return view.text(self)

    def _repr_html_(self) -> str:
        return view.html(self)
