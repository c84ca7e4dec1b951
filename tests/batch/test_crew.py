"""The workers, their supply and their pace: how a run goes on, and how it ends."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from client_tools import StandIn
from manager_tools import wait_for

from llamatelemetry._deadline import Deadline
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.batch import _post
from llamatelemetry.batch._asks import Ask
from llamatelemetry.batch._crew import Crew, Job, Outcome, _share
from llamatelemetry.batch._foreman import oversee
from llamatelemetry.batch._order import SideBySide
from llamatelemetry.batch._pace import Pace
from llamatelemetry.batch._post import Post
from llamatelemetry.batch._rows import Row
from llamatelemetry.batch._supply import Supply, Task, Waiting
from llamatelemetry.batch._targets import Lane, Sign, open_lanes
from llamatelemetry.exceptions import (
    AuthenticationError,
    BatchError,
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    ContextLengthError,
    RequestTimeoutError,
    ServerNotRunningError,
)

_NAME = "llamatelemetry-batch-"


class Notes:
    """What a crew recorded."""

    def __init__(self) -> None:
        self.outcomes: dict[Any, Outcome[Any]] = {}
        self.threads: set[str] = set()

    def record(self, item: Any, outcome: Outcome[Any]) -> None:
        """Keep one outcome; a second one of an item is a failure."""
        assert item not in self.outcomes
        self.outcomes[item] = outcome
        self.threads.add(threading.current_thread().name)


def crew_of(
    stand_in: StandIn,
    items: Any,
    work: Callable[[Job[Any]], Any],
    notes: Notes,
    *,
    lanes: int = 1,
    **options: Any,
) -> Crew[Any, Any]:
    """Return a crew at so many addresses of the stand-in, which is always there."""
    to = open_lanes([stand_in.url() for _ in range(lanes)])
    return Crew(to, items, work, notes.record, **options)


def batch_threads() -> list[str]:
    """Return the names of the threads that a run leaves behind."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("llamatelemetry-batch")
    ]


# ── the pace ─────────────────────────────────────────────────────────────────────


def feed(pace: Pace, rate: Callable[[int], float], seconds: float) -> None:
    """Let time go by at a server that does so many rows a second at each limit."""
    now = 0.0
    while now < seconds:
        now += 1 / rate(pace.limit)
        pace.answered(now)


def test_the_pace_is_two_for_each_slot_or_what_was_asked_for() -> None:
    """Slots that are known, and a number that was given, are not climbed away from."""
    for pace, limit in (
        (Pace(4), 8),
        (Pace(1), 2),
        (Pace(4, concurrency=3), 3),
        (Pace(None, concurrency=2), 2),
    ):
        feed(pace, float, 50)
        assert pace.limit == limit


def test_an_unknown_server_is_climbed_as_long_as_it_is_worth_it() -> None:
    """From 4 it goes up while rows per second grow by more than a tenth, then back."""
    pace = Pace(None)
    assert pace.limit == 4
    feed(pace, lambda limit: min(limit, 10), 1000)
    assert pace.limit == 13
    at_once = Pace(None)
    feed(at_once, lambda _: 10, 1000)
    assert at_once.limit == 4
    without_end = Pace(None)
    feed(without_end, float, 1000)
    assert without_end.limit == 63


def test_refusals_shrink_it_and_answers_bring_it_back() -> None:
    """All refusals within a second count as one; afterwards it returns step by step."""
    pace = Pace(4)
    for _ in range(5):
        pace.refused(10.0)
    assert pace.limit == 6
    for moment in range(12, 40, 2):
        pace.refused(moment)
    assert pace.limit == 1
    feed(pace, float, 500)
    assert pace.limit == 8


def test_a_refusal_ends_the_climb() -> None:
    """Where an unknown server has refused once, it is not given more than that."""
    pace = Pace(None)
    feed(pace, float, 12)
    top = pace.limit
    pace.refused(100.0)
    assert pace.limit < top
    feed(pace, float, 500)
    assert pace.limit == top


# ── the supply ───────────────────────────────────────────────────────────────────


def test_only_a_few_items_are_taken_ahead() -> None:
    """An endless source is walked no farther than needed, and no more once closed."""
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    waiting: Waiting[int] = Waiting(8)
    supply = Supply(source(), waiting)
    supply.start()
    wait_for(lambda: len(waiting) == 8)
    tasks = [supply.take(5) for _ in range(4)]
    wait_for(lambda: len(waiting) >= 3)  # beside the four that are ready
    supply.close()
    supply.join(5)
    assert len(taken) <= 4 + 8 + 1
    assert not supply.over.is_set()
    for task in tasks:
        assert task is not None
        supply.finish(task)
    assert supply.over.is_set()
    assert not supply.complete
    assert supply.take(5) is None


@pytest.mark.parametrize("kind", [Waiting, SideBySide])
def test_a_source_that_pauses_holds_nothing_up(kind: type[Waiting[Any]]) -> None:
    """What it gave before is handed out while the next item does not come."""
    go_on = threading.Event()

    def source() -> Iterator[Ask]:
        for number in range(4):
            if number == 3:
                go_on.wait(20)
            text = [{"role": "user", "content": str(number)}]
            yield Ask(Row(number, number, number), text, "")

    supply: Supply[Ask] = Supply(source(), kind())
    supply.start()
    given = [supply.take(10) for _ in range(3)]
    assert [task and task.item.row.id for task in given] == [0, 1, 2]
    assert supply.take(0.01) is None
    assert not supply.over.is_set()
    go_on.set()
    last = supply.take(10)
    assert last is not None
    for task in [*given, last]:
        assert task is not None
        supply.finish(task)
    assert supply.over.wait(10)
    assert supply.complete


def test_what_waits_is_put_in_order_together() -> None:
    """Those with one beginning come one after the other, and few are read ahead."""
    texts = [letter * 100 + str(number) for number in range(4) for letter in "ab"]
    read: list[str] = []

    def source() -> Iterator[Ask]:
        for text in texts:
            read.append(text)
            yield Ask(Row(0, 0, 0), [{"role": "user", "content": text}], "")

    waiting: Waiting[Ask] = SideBySide(4)
    supply: Supply[Ask] = Supply(source(), waiting)
    supply.start()
    order = ""
    for _ in range(2):
        wait_for(lambda: len(waiting) == 4)
        for _ in range(4):
            task = supply.take(10)
            assert task is not None
            order += task.item.messages[0]["content"][0]
            assert len(read) <= len(order) + 5
    assert order == "aabb" + "bbaa"
    supply.close()
    supply.join(5)


def test_an_item_that_lost_its_server_twice_is_asked_alone() -> None:
    """While it runs nobody else gets one, so that others are not taken for it."""
    supply = Supply(range(3), Waiting())
    supply.start()
    first, second = supply.take(5), supply.take(5)
    assert first is not None
    assert second is not None
    first.losses = 2
    supply.again(first)
    assert supply.take(0.01) is None  # the second one still runs
    supply.finish(second)
    assert supply.take(5) is first
    assert supply.take(0.01) is None
    supply.finish(first)
    third = supply.take(5)
    assert third is not None
    supply.again(third)
    assert supply.take(5) is third
    supply.finish(third)
    assert supply.over.wait(10)
    assert supply.complete


def test_what_is_tried_again_comes_first() -> None:
    """Before those that were not tried yet."""
    supply = Supply(range(3), Waiting())
    supply.start()
    task = supply.take(5)
    supply.join(5)
    assert task is not None
    supply.again(task)
    assert supply.take(5) is task


def test_what_is_tried_again_after_the_close_is_dropped() -> None:
    """Nothing begins anew once the run winds up; it is not complete then."""
    supply = Supply([1], Waiting())
    supply.start()
    task = supply.take(5)
    assert task is not None
    supply.join(5)
    supply.close()
    supply.again(task)
    assert supply.over.is_set()
    assert not supply.complete


# ── the crew ─────────────────────────────────────────────────────────────────────


def test_every_item_is_worked_on_once_and_no_thread_is_left(stand_in: StandIn) -> None:
    """All items are recorded, by named threads that are gone afterwards."""
    notes = Notes()
    crew = crew_of(stand_in, range(200), lambda job: job.item * 2, notes, lanes=2)
    assert oversee(crew) == "done"
    assert {one: out.value for one, out in notes.outcomes.items()} == {
        number: 2 * number for number in range(200)
    }
    assert crew.complete
    assert all(name.startswith("llamatelemetry-batch-") for name in notes.threads)
    assert batch_threads() == []


def test_so_many_run_at_once_as_were_asked_for(stand_in: StandIn) -> None:
    """A number given as concurrency is shared out, and all of it is used."""
    together = threading.Barrier(3)
    notes = Notes()

    def work(_: Job[int]) -> int:
        return together.wait(10)

    assert oversee(
        crew_of(stand_in, range(9), work, notes, lanes=2, concurrency=3)
    ) == ("done")
    assert len(notes.outcomes) == 9


def test_concurrency_is_over_all_servers(stand_in: StandIn) -> None:
    """It is dealt out evenly, one at each at least, and no server gets more."""
    shares = [[_share(most, number, 3) for number in range(3)] for most in (1, 3, 8)]
    assert shares == [[1, 1, 1], [1, 1, 1], [3, 3, 2]]
    assert _share("auto", 0, 3) == "auto"
    notes, most = Notes(), threading.Barrier(5)
    crew = crew_of(
        stand_in,
        range(50),
        lambda _: most.wait(10),
        notes,
        lanes=2,
        concurrency=5,
    )
    assert oversee(crew) == "done"
    workers = {thread.name.removeprefix(_NAME) for thread in crew._threads}
    assert workers == {"0-0", "0-1", "0-2", "1-0", "1-1"}


def test_so_many_threads_as_there_is_work_for(stand_in: StandIn) -> None:
    """However many may run at once: one more than items that run together."""
    notes, together = Notes(), threading.Barrier(2)
    crew = crew_of(
        stand_in, range(2), lambda _: together.wait(10), notes, concurrency=2000
    )
    assert oversee(crew) == "done"
    assert len(crew._threads) <= 3

    def one_by_one() -> Iterator[int]:
        for number in range(50):
            yield number
            wait_for(lambda last=number: last in notes.outcomes)  # type: ignore[misc]

    notes = Notes()
    crew = crew_of(stand_in, one_by_one(), lambda _: 1, notes, concurrency=2000)
    assert oversee(crew) == "done"
    assert len(notes.outcomes) == 50
    assert len(crew._threads) < 20  # 3, but where one is held up at its end


def failing(times: int, error: Exception) -> Callable[[Job[int]], str]:
    """Return work whose item 0 fails so many times."""
    left = itertools.count(1)

    def work(job: Job[int]) -> str:
        if job.item == 0 and next(left) <= times:
            raise error
        return "done"

    return work


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (ConnectionFailedError("gone"), 3),
        (ServerNotRunningError("stopped"), 3),
        (RequestTimeoutError("silent"), 2),
        (ClientError("busy", status=503), 2),
        (ClientError("busy", status=429), 2),
        (ClientError("broken", status=500), 2),
        (ClientError("loading", status=503, type="unavailable_error"), 3),
    ],
)
def test_what_may_pass_is_tried_again_and_not_for_ever(
    stand_in: StandIn, error: Exception, most: int
) -> None:
    """With two retries it may fail so often, and once more is a failure of the row."""
    notes = Notes()
    oversee(crew_of(stand_in, range(4), failing(most, error), notes))
    assert notes.outcomes[0].value == "done"
    assert notes.outcomes[0].attempts == most + 1
    notes = Notes()
    oversee(crew_of(stand_in, range(4), failing(most + 1, error), notes))
    assert notes.outcomes[0].error is error
    assert notes.outcomes[0].attempts == most + 1
    assert notes.outcomes[3].value == "done"


@pytest.mark.parametrize(
    "error",
    [
        ClientError("no such thing", status=400),
        ContextLengthError("too long", status=400),
        ClientError("not built in", status=501),
        ClientError("this is no llama-server"),
        ConfigurationError("cannot be written as JSON"),
    ],
)
def test_a_rows_own_trouble_is_not_tried_again(
    stand_in: StandIn, error: Exception
) -> None:
    """It is recorded the first time, and the others go on."""
    notes = Notes()
    oversee(crew_of(stand_in, range(4), failing(1, error), notes))
    assert notes.outcomes[0].error is error
    assert notes.outcomes[0].attempts == 1
    assert len(notes.outcomes) == 4


def test_a_key_that_is_wanted_ends_the_run(stand_in: StandIn) -> None:
    """AuthenticationError is raised at once, whatever is left."""
    notes = Notes()
    error = AuthenticationError("a key", status=401)
    with pytest.raises(AuthenticationError):
        oversee(crew_of(stand_in, itertools.count(), failing(1, error), notes))
    assert 0 not in notes.outcomes
    assert batch_threads() == []


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (500, 3)])
def test_a_server_that_refuses_everything_ends_the_run(
    stand_in: StandIn, status: int, tries: int
) -> None:
    """After 20 rows with the same words, all recorded; what may pass is retried."""
    notes = Notes()
    asked: Counter[int] = Counter()

    def work(job: Job[int]) -> None:
        asked[job.item] += 1
        raise ClientError("no such thing", status=status)

    with pytest.raises(BatchError, match="first 20 rows was refused .*no such thing"):
        oversee(crew_of(stand_in, range(200), work, notes, concurrency=1))
    assert len(notes.outcomes) == 20
    assert {out.attempts for out in notes.outcomes.values()} == {tries}
    assert sum(asked.values()) == 20 * tries
    assert batch_threads() == []


@pytest.mark.parametrize("status", [404, 500])
def test_refusals_that_say_nothing_of_the_server_end_nothing(
    stand_in: StandIn, status: int
) -> None:
    """Rows of other words, after an answer, or refused in an earlier run."""

    def refused(job: Job[int]) -> None:
        raise ClientError("no", status=status)

    def refused_in_other_words(job: Job[int]) -> None:
        raise ClientError(f"not {job.item % 4}", status=status)

    def refused_after_an_answer(job: Job[int]) -> None:
        if job.item:
            refused(job)

    def every_other(item: int) -> bool:
        return item % 2 == 0

    for work, counts in (
        (refused_in_other_words, lambda _: True),
        (refused_after_an_answer, lambda _: True),
        (refused, every_other),
        (refused, lambda _: False),
    ):
        notes = Notes()
        crew = crew_of(
            stand_in, range(38), work, notes, concurrency=1, retries=0, counts=counts
        )
        assert oversee(crew) == "done"
        assert len(notes.outcomes) == 38


def test_prompts_that_are_too_long_never_end_the_run(stand_in: StandIn) -> None:
    """Each of them is the row's own trouble, however many there are."""
    notes = Notes()

    def work(_: Job[int]) -> None:
        raise ContextLengthError("too long", status=400)

    assert oversee(crew_of(stand_in, range(40), work, notes)) == "done"
    assert len(notes.outcomes) == 40


@pytest.mark.parametrize("where", ["work", "record", "items"])
def test_an_error_that_nobody_expects_ends_the_run(
    stand_in: StandIn, where: str
) -> None:
    """What the work, the record or the source raises comes out, and nothing is left."""
    notes = Notes()

    def fail(place: str, item: int) -> None:
        if place == where and item == 5:
            raise ZeroDivisionError

    def source() -> Iterator[int]:
        for number in range(50):
            fail("items", number)
            yield number

    def work(job: Job[int]) -> int:
        fail("work", job.item)
        return 1

    def record(item: int, outcome: Outcome[int]) -> None:
        fail("record", item)
        notes.record(item, outcome)

    crew = Crew(open_lanes([stand_in.url()]), source(), work, record)
    with pytest.raises(ZeroDivisionError):
        oversee(crew)
    assert batch_threads() == []
    if where == "items":  # what was given before is recorded first
        assert sorted(notes.outcomes) == [0, 1, 2, 3, 4]


def test_the_budgets_end_lets_what_runs_come_to_its_end(stand_in: StandIn) -> None:
    """Nothing new begins, and what ran is recorded."""
    notes, begun, may_end = Notes(), [], threading.Event()

    def work(job: Job[int]) -> int:
        begun.append(job.item)
        may_end.wait(10)
        return 1

    def tick(_: int) -> None:
        if deadline.expired:
            may_end.set()

    crew = crew_of(stand_in, itertools.count(), work, notes, concurrency=2)
    deadline = Deadline.after(0.3)
    assert oversee(crew, deadline=deadline, tick=tick) == "budget"
    assert sorted(notes.outcomes) == sorted(begun)
    assert not crew.complete


def test_the_graces_end_calls_off_what_still_runs(stand_in: StandIn) -> None:
    """What holds a stream has it closed, and nothing of it is recorded."""
    notes, begun, closed = Notes(), threading.Event(), threading.Event()

    class Stream:
        def close(self) -> None:
            closed.set()

    def work(job: Job[int]) -> int:
        job.hold(Stream())
        begun.set()
        closed.wait(10)
        return 1

    def tick(_: int) -> None:
        assert begun.wait(10)

    crew = crew_of(stand_in, range(5), work, notes, concurrency=1)
    deadline = Deadline.after(0.1)
    assert oversee(crew, deadline=deadline, grace=0.1, tick=tick) == "budget"
    assert closed.is_set()
    assert notes.outcomes == {}
    late = Job(1, 1, None, "", Task(1), lambda: True)  # type: ignore[arg-type]
    closed.clear()
    late.hold(Stream())  # one that begins in the moment of the end
    assert closed.is_set()


def test_a_budget_that_all_came_to_is_no_end_before_the_end(stand_in: StandIn) -> None:
    """If nothing was left at the deadline, the run is simply done."""
    notes, may_end = Notes(), threading.Event()

    def work(_: Job[int]) -> bool:
        return may_end.wait(10)

    deadline = Deadline.after(0.2)
    crew = crew_of(stand_in, range(2), work, notes)

    def tick(_: int) -> None:
        if not may_end.is_set():
            wait_for(lambda: crew.running == 2, 10)
        if deadline.expired:
            may_end.set()

    assert oversee(crew, deadline=deadline, tick=tick) == "done"
    assert len(notes.outcomes) == 2


def interrupting(times: int, moment: threading.Event) -> Callable[[int], None]:
    """Return a tick that is struck by Ctrl-C so many times once something runs."""
    left = itertools.count(1)

    def tick(_: int) -> None:
        if moment.is_set() and next(left) <= times:
            raise KeyboardInterrupt

    return tick


def test_one_interrupt_lets_what_runs_come_to_its_end(stand_in: StandIn) -> None:
    """It is recorded, nothing new begins, and the caller is told."""
    notes, begun, struck = Notes(), threading.Event(), threading.Event()
    started: list[int] = []
    strike = interrupting(1, begun)

    def work(job: Job[int]) -> bool:
        started.append(job.item)
        begun.set()
        return struck.wait(10)

    def tick(running: int) -> None:
        try:
            strike(running)
        except KeyboardInterrupt:
            struck.set()
            raise

    crew = crew_of(stand_in, itertools.count(), work, notes)
    assert oversee(crew, tick=tick) == "interrupted"
    assert sorted(notes.outcomes) == sorted(started)


def test_an_interrupt_between_two_looks_drops_nothing(stand_in: StandIn) -> None:
    """Ctrl-C comes at any moment, also while it is asked whether all is done."""
    notes, begun = Notes(), threading.Event()
    pressed: list[bool] = []

    class Interrupted(Crew[int, bool]):
        @property
        def finished(self) -> bool:
            if not pressed and begun.wait(10):
                pressed.append(True)
                raise KeyboardInterrupt
            return super().finished

    def work(_: Job[int]) -> bool:
        begun.set()
        wait_for(lambda: bool(pressed))
        return True

    to = open_lanes([stand_in.url()])
    crew = Interrupted(to, itertools.count(), work, notes.record, concurrency=1)
    assert oversee(crew) == "interrupted"
    assert len(notes.outcomes) >= 1


def test_two_interrupts_end_what_runs(stand_in: StandIn) -> None:
    """Nothing of it is recorded."""
    notes, begun, called_off = Notes(), threading.Event(), threading.Event()

    class Stream:
        def close(self) -> None:
            called_off.set()

    def work(job: Job[int]) -> bool:
        job.hold(Stream())
        begun.set()
        return called_off.wait(10)

    crew = crew_of(stand_in, itertools.count(), work, notes, concurrency=1)
    assert oversee(crew, tick=interrupting(2, begun)) == "interrupted"
    assert called_off.is_set()
    assert notes.outcomes == {}
    assert batch_threads() == []


def test_an_error_of_who_waits_ends_all_threads_first(stand_in: StandIn) -> None:
    """They are gone when it comes out, however busy they were."""
    notes, begun, called_off = Notes(), threading.Event(), threading.Event()
    never = threading.Event()  # it takes a moment to end

    class Stream:
        def close(self) -> None:
            called_off.set()

    def work(job: Job[int]) -> bool:
        job.hold(Stream())
        begun.set()
        return called_off.wait(10) and not never.wait(0.1)

    def tick(_: int) -> None:
        if begun.is_set():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        oversee(crew_of(stand_in, itertools.count(), work, notes), tick=tick)
    assert batch_threads() == []
    assert notes.outcomes == {}


# ── one server's workers ─────────────────────────────────────────────────────────


class Moody(Lane):
    """A lane that says of itself what it is told to say, the last for ever."""

    def __init__(self, *signs: Sign) -> None:
        super().__init__("moody")
        self.signs = list(signs)
        self.looks = 0

    def _plain_client(self) -> LlamaCppClient:
        return LlamaCppClient("http://127.0.0.1:9")  # nobody sends anything

    def look(self) -> Sign:
        self.looks += 1
        return self.signs.pop(0) if len(self.signs) > 1 else self.signs[0]

    def slots(self) -> int | None:
        return 2


def test_a_server_is_waited_for_in_words() -> None:
    """What is waited for is said, and why, and taken back when it is there."""
    said: list[str] = []
    post = Post(Moody("silent", "coming", "ready"), "auto", lambda: False, said.append)
    assert post.wait_until_ready()
    silent = "waiting for moody (Connection refused)"
    assert said == [silent, "waiting for moody", ""]
    assert [post.begin() for _ in range(4)] == [1, 2, 3, None]


@pytest.mark.parametrize(
    ("name", "signs", "words"),
    [
        (
            "PATIENCE_AT_FIRST",
            ["silent"],
            r" s \(Connection refused\); is it the right",
        ),
        ("PATIENCE_WHILE_LOADING", ["coming"], "not ready yet"),
        ("PATIENCE", ["ready", "silent"], r"gave no sign for . s \(Connection refused"),
    ],
)
def test_a_server_is_given_up_after_its_time(
    monkeypatch: pytest.MonkeyPatch, name: str, signs: list[Sign], words: str
) -> None:
    """One that never was there, that loads for ever, or that is gone, has its limit."""
    monkeypatch.setattr(_post, name, 0.2)
    post = Post(Moody(*signs), "auto", lambda: False, lambda _: None)
    with pytest.raises(BatchError, match=words):
        for moment in (1e9, 2e9):
            post.wait_until_ready()
            post.doubt(moment, ConnectionFailedError("gone"))
    assert not Post(Moody("silent"), 1, lambda: True, str).wait_until_ready()


def test_a_server_that_is_lost_again_and_again_is_given_up() -> None:
    """Ten times without one answer in between."""
    post = Post(Moody("ready"), "auto", lambda: False, lambda _: None)
    with pytest.raises(BatchError, match="lost 10 times in a row"):
        for number in range(20):
            post.wait_until_ready()
            post.doubt(1e9 + number, ConnectionFailedError("gone"))
            if number == 4:
                post.answered()
    assert number == 15


def test_nobody_waits_for_a_server_after_the_end() -> None:
    """Neither the one that looks after it, nor those that wait for that one."""
    over, looking, may_look = threading.Event(), threading.Event(), threading.Event()

    class Slow(Moody):
        def look(self) -> Sign:
            looking.set()
            may_look.wait(10)
            return "silent"

    post = Post(Slow("silent"), "auto", over.is_set, lambda _: None)
    ready: list[bool] = []
    first = threading.Thread(target=lambda: ready.append(post.wait_until_ready()))
    second = threading.Thread(target=lambda: ready.append(post.wait_until_ready()))
    first.start()
    looking.wait(10)
    second.start()
    over.set()
    second.join(10)
    assert ready == [False]
    may_look.set()
    first.join(10)
    assert ready == [False, False]


def test_the_budget_ends_while_a_server_is_waited_for() -> None:
    """Nothing runs, so it ends at once."""
    notes = Notes()
    crew = Crew([Moody("silent")], range(3), lambda _: 1, notes.record)
    assert oversee(crew, deadline=Deadline.after(0.2)) == "budget"
    assert notes.outcomes == {}
    assert batch_threads() == []


def test_a_failure_from_before_the_last_look_says_nothing_new() -> None:
    """What all threads meet when a server dies has it looked at, or restarted, once."""
    lane = Moody("ready")
    post = Post(lane, "auto", lambda: False, lambda _: None)
    began = time.monotonic()
    assert post.wait_until_ready()
    post.doubt(began, ConnectionFailedError("gone"))
    assert post.wait_until_ready()
    assert lane.looks == 1
    post.doubt(time.monotonic(), ConnectionFailedError("gone"))
    assert post.wait_until_ready()
    assert lane.looks == 2


def test_a_loss_counts_for_what_was_under_way_alone() -> None:
    """What was sent to a server already known to be gone has not been asked."""
    post = Post(Moody("ready"), "auto", lambda: False, lambda _: None)
    assert post.wait_until_ready()
    before = time.monotonic()
    assert post.doubt(before, ConnectionFailedError("gone"))
    assert post.doubt(before, ConnectionFailedError("gone too"))
    assert not post.doubt(time.monotonic() + 1, ConnectionFailedError("refused"))
    assert post.is_doubted
    crew = Crew([Moody("ready")], range(1), lambda _: 1, Notes().record)
    task: Task[Any] = Task(0, attempts=1)
    late = ConnectionFailedError("refused")
    assert crew._may_pass(post, task, late, time.monotonic() + 1)
    assert (task.attempts, task.losses) == (0, 0)


def test_a_server_with_many_workers_is_given_up_once(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its workers leave; the other server does the work."""
    monkeypatch.setattr(_post, "PATIENCE", 0.1)
    notes, gone = Notes(), threading.Event()
    lanes = [*open_lanes(stand_in.url()), Moody("ready", "silent")]

    def work(job: Job[int]) -> bool:
        if job.server == "moody":
            raise ConnectionFailedError("gone")
        return gone.wait(10)

    crew = Crew(lanes, range(40), work, notes.record, concurrency=8)

    def tick(_: int) -> None:
        left = [name for name in batch_threads() if "batch-1-" in name]
        if crew.lost and not left:
            gone.set()

    assert oversee(crew, tick=tick) == "done"
    assert len(crew.lost) == 1
    assert len(notes.outcomes) == 40
    assert all(outcome.value for outcome in notes.outcomes.values())


def test_one_death_counts_once_however_many_workers_there_are() -> None:
    """Idle workers do not try an item in vain at a server that is gone."""
    notes, lane = Notes(), Moody("ready", *["silent"] * 4, "ready")
    work = failing(1, ConnectionFailedError("gone"))
    crew = Crew([lane], range(1), work, notes.record, concurrency=8, retries=0)
    assert oversee(crew) == "done"
    assert (notes.outcomes[0].value, notes.outcomes[0].attempts) == ("done", 2)


def test_a_server_that_was_lost_is_looked_at_before_it_is_asked_again() -> None:
    """The item is tried again once it is there."""
    notes, lane = Notes(), Moody("ready", "silent", "ready")
    crew = Crew(
        [lane], range(1), failing(1, ConnectionFailedError("gone")), notes.record
    )
    assert oversee(crew) == "done"
    assert notes.outcomes[0].value == "done"
    assert lane.looks == 3


def test_one_of_two_servers_that_is_given_up_leaves_its_work_to_the_other(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, and tells which one was lost."""
    monkeypatch.setattr(_post, "PATIENCE_AT_FIRST", 0.1)
    notes, gone = Notes(), threading.Event()
    lanes = [*open_lanes(stand_in.url()), Moody("silent")]

    def work(_: Job[int]) -> bool:
        return gone.wait(10)

    crew = Crew(lanes, range(20), work, notes.record)

    def tick(_: int) -> None:
        if crew.lost:
            gone.set()

    assert oversee(crew, tick=tick) == "done"
    assert "moody" in str(crew.lost[0])
    assert len(notes.outcomes) == 20


def test_one_of_two_servers_that_was_not_there_is_told(stand_in: StandIn) -> None:
    """Also where the run was over long before it would have been given up."""
    notes, looked = Notes(), threading.Event()

    class Absent(Moody):
        def look(self) -> Sign:
            if self.looks:
                looked.set()
            return super().look()

    def work(_: Job[int]) -> bool:
        return looked.wait(10)

    for signs, words in (
        (["silent"], "moody did not answer (Connection refused); is it the right"),
        (["coming"], ""),
    ):
        looked.clear()
        notes = Notes()
        crew = Crew(
            [*open_lanes(stand_in.url()), Absent(*signs)],
            range(5),
            work,
            notes.record,
        )
        assert oversee(crew) == "done"
        assert words in "".join(map(str, crew.lost))
        assert bool(crew.lost) == bool(words)
    alone = Crew([Moody("silent")], range(3), lambda _: 1, Notes().record)
    assert oversee(alone, deadline=Deadline.after(0.1)) == "budget"
    assert alone.lost == []


def test_a_server_that_went_away_and_stayed_away_is_told() -> None:
    """It was there, was lost, and gave no sign when the others were done."""
    lane = Moody("ready", "silent")
    post = Post(lane, "auto", lambda: lane.looks > 2, lambda _: None)
    assert post.wait_until_ready()
    assert post.absence() is None
    post.doubt(time.monotonic(), ConnectionFailedError("gone"))
    assert not post.wait_until_ready()
    words = "moody gave no sign at the end (Connection refused)"
    assert str(post.absence()) == words
