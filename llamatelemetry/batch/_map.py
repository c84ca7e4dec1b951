"""map_prompts(): one prompt for each row, over every slot of every server."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from os import PathLike
from typing import Any, Literal, NoReturn

from llamatelemetry._deadline import Deadline
from llamatelemetry.batch._answer import Asking, answer, error_record
from llamatelemetry.batch._asks import Ask, Asker, RowError
from llamatelemetry.batch._bar import BatchBar, Shown
from llamatelemetry.batch._budget import deadline_of
from llamatelemetry.batch._crew import Crew, Job, Outcome
from llamatelemetry.batch._elsewhere import Elsewhere, ElsewhereRun
from llamatelemetry.batch._foreman import Ended, oversee, warn_of_lost
from llamatelemetry.batch._kept import warn_if_lost
from llamatelemetry.batch._order import SideBySide
from llamatelemetry.batch._pace import Concurrency, check_options
from llamatelemetry.batch._rows import Rows, open_rows
from llamatelemetry.batch._schema import Schema
from llamatelemetry.batch._store import Store, check_apart
from llamatelemetry.batch._targets import Lane, open_lanes
from llamatelemetry.batch.results import Results, Tally
from llamatelemetry.exceptions import SetupWarning

__all__ = ["map_prompts"]

_GRACE = 30.0
"""Seconds that what runs at the budget's end has to come to its own."""

Path = str | PathLike[str]


def map_prompts(
    rows: Any,
    prompt: Any,
    *,
    to: Any,
    id: str | Callable[[Any], str | int] | None = None,  # noqa: A002 - what users call it
    schema: Any = None,
    system: str | None = None,
    concurrency: Concurrency = "auto",
    out: Path = "results.jsonl",
    resume: bool | Path | Sequence[Path] = True,
    budget: float | str | timedelta | None = None,
    retries: int = 2,
    progress: Shown = True,
    **sampling: Any,
) -> Results:
    """Ask a prompt for each row of a table, and keep the answers in a file.

    Every slot of every server has work. Answers are appended to ``out`` as they come;
    killed at any moment, the same call goes on from there and asks nothing twice. A
    changed prompt, schema or option is asked again.

    Args:
        rows: A DataFrame, a list, an iterator, or the path of a CSV, JSONL, JSON or
            Parquet file. They are read as they are needed.
        prompt: A template with the columns' names, ``"Summarise: {text}"``, where
            ``{row}`` is a row that is a plain value; or messages, whose texts are
            templates and whose images pass through; or a function from a row (a dict of
            its columns) to either. A template needs a field.
        to: A session, a ServerPool, a ServerManager, a client, a URL, a list of those,
            or a RayCluster. A server that dies is started again, or waited for.
        id: The column, or a function, that names each row; a whole number in a CSV is
            one. None: a DataFrame's index if it is unique, else the row's place,
            from 0.
        schema: What answers must be: a JSON schema or a pydantic model class. One that
            is not is repaired once.
        system: What the system message says.
        concurrency: Requests at once over all servers. "auto": two for
            each slot.
        out: The file of results, one line of JSON each.
        resume: Whether ``out`` may hold results already, which are kept. A path or
            several, of files or folders: their results are kept too, and only read.
        budget: Seconds from now, a timedelta, or text like "8h30m", after which nothing
            new is begun; "session" ends 15 minutes before Kaggle or Colab does. None:
            no end.
        retries: How often a row is asked again after what may pass: no connection, a
            timeout, an error of the server.
        progress: Whether there is a bar; or a function that is called with how far it
            is, at most five times a second.
        sampling: Options of ``chat_completion``: ``max_tokens``, ``temperature``, …

    Returns:
        The results of these rows. Rows that failed are among them, with their error,
        and are asked again by the next call.

    Raises:
        ConfigurationError: A value cannot work, or two rows have one id.
        AuthenticationError: A server wants an API key: give ``to`` a client with it.
        BatchError: No server is left, or they refuse whatever they are asked.
        DiskSpaceError: The disk is full.
        KeyboardInterrupt: After Ctrl-C, once what runs is answered; at once after two.
            It says what is kept and what is left. Like all that ends a run, it has what
            was answered by then in ``results``.

    Examples:
        >>> from llamatelemetry.batch import map_prompts
        >>> rows = [{"about": "GGUF"}, {"about": "the KV cache"}]
        >>> results = map_prompts(
        ...     rows, "What is {about}?", to=client, temperature=0, progress=False
        ... )
        >>> results.done, results[0].answer[:21]
        (2, 'GGUF is a file format')
    """
    deadline = deadline_of(budget)
    check_options(concurrency, retries, progress)
    check_apart(rows, out, resume)
    table = open_rows(rows, id)
    form = Schema.of(schema)
    asker = Asker(
        prompt, system=system, schema=form, sampling=sampling, names=table.names
    )
    lanes = [] if isinstance(to, Elsewhere) else open_lanes(to)
    warn_if_lost(out)
    try:
        with (
            Store.open(out, resume) as store,
            BatchBar(table.count, shown=progress) as bar,
        ):
            batch = _Batch(table, asker, store, bar)
            asking = Asking(sampling, form)
            run = _make_run(
                batch, to, lanes, asking, concurrency=concurrency, retries=retries
            )
            ended = _oversee(batch, run, deadline, form)
    finally:
        for lane in lanes:
            lane.close()
    warn_of_lost(run.lost)
    results = batch.results(ended, form)
    if ended == "interrupted":
        stopped = KeyboardInterrupt(_kept(results))
        vars(stopped)["results"] = results
        raise stopped
    return results


def _oversee(
    batch: _Batch,
    run: Crew[Ask, dict[str, Any]] | ElsewhereRun,
    deadline: Deadline,
    form: Schema | None,
) -> Ended:
    try:
        ended = oversee(
            run,
            deadline=deadline,
            grace=min(_GRACE, deadline.remaining),
            tick=batch.tick,
            interrupted=batch.bar.wind_up,
        )
        batch.store.close()  # what it raises has the results too
    except BaseException as error:  # noqa: BLE001 - raised again there
        batch.fail(error, form)
    batch.tick(0)
    return ended


def _make_run(
    batch: _Batch,
    to: Any,
    lanes: list[Lane],
    asking: Asking,
    *,
    concurrency: Concurrency,
    retries: int,
) -> Crew[Ask, dict[str, Any]] | ElsewhereRun:
    if isinstance(to, Elsewhere):
        return ElsewhereRun(
            to,
            batch.asks(),
            batch.note,
            asking=asking,
            retries=retries,
            concurrency=concurrency,
        )
    return Crew(
        lanes,
        batch.asks(),
        partial(_answered, asking),
        batch.take,
        concurrency=concurrency,
        retries=retries,
        counts=batch.counts,
        waiting=SideBySide(),
        say=batch.bar.say,
    )


def _answered(asking: Asking, job: Job[Ask]) -> dict[str, Any]:
    return answer(
        job.client,
        job.item,
        asking,
        hold=job.hold,
        attempts=job.attempts,
        server=job.server,
    )


@dataclass(slots=True)
class _Batch:
    """One call's rows on their way into the file, counted."""

    table: Rows
    asker: Asker
    store: Store
    bar: BatchBar
    total: int | None = None
    began: float = field(default_factory=time.monotonic)
    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    models: set[str] = field(default_factory=set)
    warned: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def asks(self) -> Iterator[Ask]:
        """Yield what is to be asked; what was answered before is kept."""
        count = 0
        for row in self.table:
            count += 1
            try:
                ask = self.asker.ask(row)
            except RowError as error:
                self.note(error_record(row, error.key, error))
                continue
            if self.store.claim(row.position, row.id, ask.key):
                self.bar.keep()
            else:
                yield ask
        self.total = count
        self.bar.learn_total(count)

    def counts(self, ask: Ask) -> bool:
        """Whether nothing was answered in earlier runs, and this row not asked."""
        return not self.store.kept and self.store.find(ask.row.id, ask.key) is None

    def take(self, ask: Ask, outcome: Outcome[dict[str, Any]]) -> None:
        """Record what became of a row."""
        record = outcome.value
        if outcome.error is not None:
            record = error_record(
                ask.row,
                ask.key,
                outcome.error,
                attempts=outcome.attempts,
                seconds=outcome.seconds,
                server=outcome.server,
            )
        assert record is not None  # noqa: S101 - there is one of both
        self.note(record)

    def note(self, record: Mapping[str, Any]) -> None:
        """Append a record to the file, and count it; from any thread."""
        self.store.add(record)
        tokens = record.get("completion_tokens") or 0
        with self._lock:
            self.rows += 1
            self.prompt_tokens += record.get("prompt_tokens") or 0
            self.completion_tokens += tokens
            if record.get("model"):
                self.models.add(record["model"])
        failed = record.get("error") is not None
        self.bar.add(record.get("seconds") or 0.0, tokens=tokens, failed=failed)

    def tick(self, running: int) -> None:
        """Show how far it is, and say once that another model answered before."""
        self.bar.tick(running)
        before, now = self.store.models, self.models
        if self.warned or not before or not now or now <= before:
            return
        self.warned = True
        warnings.warn(
            f"the results in {self.store.path.name} that are kept are of "
            f"{', '.join(sorted(before))}, and now {', '.join(sorted(now))} answers; "
            "another out= keeps them apart",
            SetupWarning,
            stacklevel=4,
        )

    def results(self, ended: Ended | Literal["failed"], form: Schema | None) -> Results:
        """Return the results so far."""
        total = self.table.count if self.total is None else self.total
        places = self.store.places
        tally = Tally(
            self.rows,
            time.monotonic() - self.began,
            self.prompt_tokens,
            self.completion_tokens,
            self.store.kept,
        )
        left = None if total is None else max(0, total - len(places))
        restore = None if form is None else form.restore
        return Results(
            places,
            self.store.path,
            tally,
            ended=ended,
            left=left,
            restore=restore,
            once=self.table.once,
        )

    def fail(self, error: BaseException, form: Schema | None) -> NoReturn:
        """Raise what ended the run, with the results so far on it."""
        results = self.results("failed", form)
        vars(error)["results"] = results
        error.add_note(_kept(results))
        raise error


def _kept(results: Results) -> str:
    """Return in words what is kept, and how to go on; an iterator's rows are gone."""
    failed = f", {results.failed:,} failed" if results.failed else ""
    left = "" if results.left is None else f", {results.left:,} are left"
    anew = ", with the rows given anew," if results.once else ""
    return (
        f"{results.done:,} rows are answered and kept in {results.path}{failed}{left}; "
        f"the same call{anew} goes on from there"
    )
