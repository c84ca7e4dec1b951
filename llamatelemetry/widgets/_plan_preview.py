"""What a server would need, before it is started: the newest question's answer only."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from llamatelemetry._demo import DEMO_MODEL, is_demo_mode
from llamatelemetry._units import GIB, format_memory
from llamatelemetry.exceptions import DownloadError, LLCudaError, OfflineError
from llamatelemetry.gguf import _plan_view
from llamatelemetry.gguf._cards import GPU, GPUMemory
from llamatelemetry.gguf.memory import MemoryPlan
from llamatelemetry.gguf.reader import GGUFHeader, read_header
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus
from llamatelemetry.placement import Placement
from llamatelemetry.server._linux import available_memory
from llamatelemetry.setup._search import look_for
from llamatelemetry.setup._wanted import read_wanted
from llamatelemetry.setup.catalog import CatalogModel, catalog
from llamatelemetry.setup.models import local_model
from llamatelemetry.setup.recommend import may_fit
from llamatelemetry.widgets._model_choices import DEMO
from llamatelemetry.widgets._server_options import ServerOptions
from llamatelemetry.widgets._server_state import first_line, given_back, host_given_back

if TYPE_CHECKING:
    from llamatelemetry.session import Session

__all__ = [
    "Headers",
    "Newest",
    "Preview",
    "cards_here",
    "drawn",
    "look_ahead",
    "look_ahead_from",
    "with_room",
]

_MOST_HEADERS = 4  # one of a large vocabulary takes some 30 MB
_LEAST_CONTEXT = 256

Question = TypeVar("Question")


class Newest(Generic[Question]):
    """Does work for the newest of many questions, and shows nothing older.

    A question waits a moment for the next one. Work that has begun goes on beside newer
    work, since nothing can interrupt a server that does not answer; its answer is
    dropped.

    Args:
        work: Answers a question, in a thread.
        show: Is given question and answer under ``lock``.
        start: Starts a thread: `Panel._in_background`.
        lock: What who asks may hold.
        closing: Set when nothing is wanted any more.
        moment: Seconds without another question before the work begins.
    """

    def __init__(
        self,
        work: Callable[[Question], Any],
        show: Callable[[Question, Any], object],
        *,
        start: Callable[[Callable[[], object], str], object],
        lock: Any,  # an RLock, whose type is a function before Python 3.13
        closing: threading.Event,
        moment: float = 0.25,
    ) -> None:
        self._work = work
        self._show = show
        self._start = start
        self._lock = lock
        self._closing = closing
        self._moment = moment
        self._number = 0
        self._question: Question | None = None
        self._waits = False

    def ask(self, question: Question) -> None:
        """Have a question answered instead of all before it."""
        with self._lock:
            self._number += 1
            self._question = question
            if self._waits:
                return
            self._waits = True
        self._start(self._run, "plan")

    def _run(self) -> None:
        number = -1
        while number != self._number:  # another one has come in that moment
            number = self._number
            if self._closing.wait(self._moment):
                return
        with self._lock:
            number, question = self._number, self._question
            self._waits = False
        answer = self._work(question)  # type: ignore[arg-type] # asked before
        with self._lock:
            if number == self._number and not self._closing.is_set():
                self._show(question, answer)  # type: ignore[arg-type] # the same


@dataclass(frozen=True, slots=True)
class Preview:
    """What is known of a start before it.

    Attributes:
        state: "looking"; "fits" and "too large", by a plan; "estimated", by size only;
            "problem".
        sentence: The verdict, in words.
        can_start: Whether Start makes sense.
        html: The plan, drawn.
        text: The plan as text.
        nearest: The largest context for each request that would fit, where what was
            asked for does not; None if none would.
    """

    state: Literal["looking", "fits", "too large", "estimated", "problem"]
    sentence: str
    can_start: bool = True
    html: str = ""
    text: str = ""
    nearest: int | None = None

    @property
    def mark(self) -> str:
        """The state as a symbol and a word."""
        return {
            "looking": "… looking",
            "fits": "✔ fits",
            "too large": "✖ does not fit",
            "estimated": "≈ estimated",
            "problem": "✖ cannot be planned",
        }[self.state]


class Headers:
    """The last few headers that were read, so that options change at no cost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, object], GGUFHeader] = OrderedDict()

    def get(self, model: str, *, ask_hub: bool = True) -> GGUFHeader:
        """Return a model's header, read from this machine or by HTTP ranges.

        Args:
            model: The model.
            ask_hub: Whether it may be read from the Hub.

        Raises:
            LLCudaError: The name is none, the file is none, the Hub cannot be asked.
        """
        path = _path_of(model)
        key = (model if path is None else str(path), _stamp(path))
        with self._lock:
            kept = self._kept.get(key)
        asked = ask_hub or is_demo_mode()  # in which headers come with the package
        if kept is None and path is None and not asked:
            raise OfflineError("the model is not on this machine yet.")
        if kept is None:
            kept = read_header(model if path is None else path)
        with self._lock:
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST_HEADERS:
                self._kept.popitem(last=False)
        return kept


def _path_of(model: str) -> Path | None:
    """Return the file of a model on this machine; None if it is not here yet.

    Raises:
        LLCudaError: The name is none, or the file is no model.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # a name like no path
        path = DEMO_MODEL if model == DEMO else Path(model).expanduser()
        if path.is_file():  # its header is read by who asks
            return path
    local = local_model(model)
    if local is not None:  # the plan is that of the model that it stands for
        return local.path if local.stands_for is None else None
    search = look_for(read_wanted(model))
    if not search.complete:
        return None
    return search.here[search.wanted.files[0].path]


def _stamp(path: Path | None) -> object:
    """Return what changes when a file does."""
    if path is None:
        return None
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    return None


def with_room(cards: Sequence[GPUInfo], given_back: Mapping[int, int]) -> list[GPUInfo]:
    """Return cards with what a server of ours would give back counted as free.

    Args:
        cards: The cards as they are now.
        given_back: Bytes by the cards' indices.
    """
    found = []
    for card in cards:
        free, total = card.free_bytes, card.total_bytes
        more = given_back.get(card.index, 0)
        if free is None or not more:
            found.append(card)
            continue
        room = free + more if total is None else min(free + more, total)
        found.append(replace(card, free_memory_gb=room / GIB))
    return found


def look_ahead(
    options: ServerOptions,
    cards: Sequence[GPU],
    headers: Headers,
    *,
    counting: str = "",
    host_back: int = 0,
    ask_hub: bool = True,
) -> Preview:
    """Return what a start with these options would come to.

    Takes tens of milliseconds; seconds, if a header must be read from the Hub.

    Args:
        options: The options.
        cards: The cards to use, with what is free on them; none for the host.
        headers: Those that are known.
        counting: What is counted as free though it is not yet, in words.
        host_back: Bytes of the host's memory that will be free and are not yet.
        ask_hub: Whether a header may be read from the Hub.
    """
    try:
        header = headers.get(options.model, ask_hub=ask_hub)
    except (DownloadError, OfflineError) as error:
        entry = next((one for one in catalog() if one.id == options.model), None)
        if entry is None:
            return Preview("problem", f"{first_line(error)} Start tries again.")
        return _estimated(entry, options, cards, first_line(error))
    # A name like no path, a home that is none: whatever it is, it is no model.
    except (LLCudaError, OSError, ValueError, RuntimeError) as error:
        return Preview("problem", first_line(error), can_start=False)
    try:
        placement = options.place(header, cards)
    except LLCudaError as error:
        return Preview("problem", first_line(error), can_start=False)
    if placement.kind == "none" and not cards and host_back:
        return _on_the_host(placement, host_back)
    return drawn(placement, counting)


def _on_the_host(placement: Placement, host_back: int) -> Preview:
    """Return whether what the host has no room for now will find it."""
    preview, host = drawn(placement), placement.plans[0].host
    if host.needed > (host.free or 0) + host_back:
        return preview
    said = (
        f"on the CPU, with {format_memory(host.needed)} of memory. Counting what this "
        f"server gives back ({format_memory(host_back)})"
    )
    return replace(preview, state="fits", sentence=said, can_start=True, nearest=None)


def cards_here() -> list[GPUInfo]:
    """Return the cards of this machine as they are now; none without a driver."""
    with contextlib.suppress(LLCudaError):
        return detect_gpus()
    return []


def look_ahead_from(
    session: Session | None,
    options: ServerOptions,
    headers: Headers,
    *,
    ask_hub: bool = True,
) -> Preview:
    """Return what a start with these options would come to, here and now.

    Args:
        session: The session whose server would be stopped for it, if there is one.
        options: The options.
        headers: Those that are known.
        ask_hub: Whether a header may be read from the Hub.
    """
    back = {} if session is None else given_back(session)
    cards = with_room(cards_here(), back)
    chosen: Sequence[GPU] = options.chosen(cards)
    if options.gpus is None and session is not None and _sees_none(session):
        chosen = []
    return look_ahead(
        options,
        chosen,
        headers,
        counting=_counting(back),
        host_back=0 if session is None else host_given_back(session),
        ask_hub=ask_hub,
    )


def _sees_none(session: Session) -> bool:
    """Whether a session's engine was given no card, though it might have had any."""
    return session.options.gpus is None and not any(session.plan.gpus)


def _counting(back: Mapping[int, int]) -> str:
    """Say what is counted as free though it is not yet; "" for nothing."""
    told = [f"GPU {card}: {format_memory(size)}" for card, size in back.items() if size]
    return f"Counting what this server gives back ({', '.join(told)})" if told else ""


def drawn(placement: Placement, counting: str = "") -> Preview:
    """Return a placement as it is shown: each card's bar; a table of several cards.

    Its reason and what would fit are the sentence.

    Args:
        placement: The placement.
        counting: What is counted as free though it is not yet, in words.
    """
    fits = placement.kind != "none"
    said = [placement.reason]
    if placement.nearest is not None:
        said.append(f"Nearest: {placement.nearest}")
    if counting:
        said.append(counting)
    sentence = ". ".join(said)
    parts = [
        _plan_view.html(_named(placement, number), judged=False)
        for number in range(len(placement.plans))
    ]
    if sum(len(cards) or 1 for cards in placement.gpus) > 1:
        parts.insert(0, placement._repr_html_())
    return Preview(
        "fits" if fits else "too large",
        sentence,
        can_start=fits,
        html="".join(parts),
        text="\n".join([repr(placement), *filter(None, [counting])]),
        nearest=placement.largest_context or None,
    )


def _named(placement: Placement, number: int) -> MemoryPlan:
    """Return the plan of a server with its cards as they are called here."""
    plan = placement.plans[number]
    cards = placement.gpus[number] if placement.gpus else ()
    places = [
        GPUMemory(card.index, place.free)
        for card, place in zip(cards, plan.devices, strict=False)
    ]
    return plan.replanned(places) if places else plan


def _estimated(
    entry: CatalogModel, options: ServerOptions, cards: Sequence[GPU], why: str
) -> Preview:
    """Return what can be said of a model whose header cannot be had."""
    rooms = [card.free_bytes or 0 for card in cards] or [available_memory() or 0]
    slots = options.parallel or 1
    most = entry.native_context

    def fits(context: int) -> bool:
        return may_fit(
            entry,
            rooms,
            context * slots,
            cache_type_k=options.cache_type_k,
            cache_type_v=options.cache_type_v,
            flash_attn=options.flash_attn,
        )

    asked = options.context_size or most
    good, nearest = fits(asked), None
    told = f"{format_memory(sum(rooms))} are free"
    said = f"Estimated by its size: {entry.id} {'fits' if good else 'does not fit'} "
    said += f"with {asked:,} tokens of context, {told}."
    if not good:
        nearest = _largest(fits, min(asked, most))
        said += f" Up to {nearest:,} would." if nearest else " No context would."
    return Preview(
        "estimated",
        f"{said} Its header could not be read: {why}",
        can_start=good,
        text=said,
        nearest=nearest,
    )


def _largest(fits: Callable[[int], bool], most: int) -> int | None:
    """Return the largest number of halvings of the most that fits; None if none."""
    context = most
    while context >= _LEAST_CONTEXT:
        if fits(context):
            return context // _LEAST_CONTEXT * _LEAST_CONTEXT
        context //= 2
    return None
