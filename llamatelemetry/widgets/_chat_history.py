"""A conversation: questions and their answers, sent, stopped, asked again, cleared.

No widgets: a panel shows it, and in a plain terminal it works alone. All methods may be
called from any thread; the panel's lock holds them apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamatelemetry._deadline import Deadline
from llamatelemetry.api.client import LlamaCppClient, RequestRecord
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.widgets._answer import AnswerView
from llamatelemetry.widgets._generation import Generation, Progress
from llamatelemetry.widgets._transcript import Turn, messages_for

__all__ = ["Exchange", "History"]

_FINISH_OF_STATE = {"stopping": "cancelled", "stopped": "cancelled", "failed": "error"}


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """One question and its answer, which may still be coming.

    Attributes:
        question: What was asked.
        generation: What asks for the answer and takes it in.
        sampling: What it was asked with.
        changed: Set whenever the answer has changed.
    """

    question: Turn
    generation: Generation
    sampling: Mapping[str, Any]
    changed: threading.Event

    @property
    def progress(self) -> Progress:
        """How far the answer is."""
        return self.generation.progress

    @property
    def answer(self) -> Turn:
        """The answer so far."""
        progress = self.progress
        text, reasoning = _parted(progress)
        sampling = {
            **{key: value for key, value in self.sampling.items() if value is not None},
            "max_tokens": progress.max_tokens,
            "seed": progress.seed,
        }
        return Turn(
            role="assistant",
            content=text,
            reasoning=reasoning,
            model=progress.model or None,
            sampling=sampling,
            prompt_tokens=progress.prompt_tokens,
            completion_tokens=progress.completion_tokens,
            context_size=progress.context_size,
            seconds_to_first_token=progress.first_token_seconds,
            tokens_per_second=progress.tokens_per_second,
            finish_reason=_FINISH_OF_STATE.get(progress.state, progress.finish_reason),
        )

    @property
    def turns(self) -> list[Turn]:
        """Question and answer."""
        return [self.question, self.answer]


class History:
    """The questions and answers so far with one server.

    Args:
        client: Returns the client to ask with; called for each question.
        measured: Returns in words what is known of a request that is over.
    """

    def __init__(
        self,
        client: Callable[[], LlamaCppClient],
        measured: Callable[[RequestRecord], str] = lambda _: "",
    ) -> None:
        self._client, self._measured = client, measured
        self._exchanges: list[Exchange] = []
        self._cleared: list[Exchange] = []
        self.system = ""
        self.sampling: dict[str, Any] = {}

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """All questions with their answers, oldest first."""
        return tuple(self._exchanges)

    @property
    def last(self) -> Exchange | None:
        """The last question; None before the first."""
        return self._exchanges[-1] if self._exchanges else None

    @property
    def is_answering(self) -> bool:
        """Whether text of an answer may still come."""
        return self.last is not None and self.last.generation.takes_text

    @property
    def can_undo(self) -> bool:
        """Whether what was cleared can be had again."""
        return bool(self._cleared)

    @property
    def turns(self) -> list[Turn]:
        """Everything said, also what failed."""
        return [turn for exchange in self._exchanges for turn in exchange.turns]

    @property
    def said(self) -> list[Turn]:
        """What the next question is sent after: no questions that failed."""
        return _said(self._exchanges)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What the next question is sent after."""
        return messages_for(self.said, self.system)

    def send(self, text: str, images: Sequence[Mapping[str, Any]] = ()) -> Exchange:
        """Ask something; returns at once.

        Raises:
            ConfigurationError: There is nothing to send, or an answer is being given.
        """
        self._require_quiet()
        exchange = self._ask(_question(text, images), self._exchanges)
        _leave(self._cleared)
        self._cleared = []
        return exchange

    def ask_again(self) -> Exchange:
        """Ask the last question anew; its answer so far is dropped.

        Raises:
            ConfigurationError: There is none, or its answer is being given.
        """
        self._require_quiet()
        last = self._require_last()
        return self._ask(last.question, self._exchanges[:-1])

    def replace_last(
        self, text: str, images: Sequence[Mapping[str, Any]] = ()
    ) -> Exchange:
        """Ask something instead of the last question.

        Raises:
            ConfigurationError: There is none, there is nothing to send, or its answer
                is being given.
        """
        self._require_quiet()
        self._require_last()
        return self._ask(_question(text, images), self._exchanges[:-1])

    def drop_oldest(self, count: int) -> None:
        """Forget the oldest questions with their answers; never the last one."""
        place = max(0, min(count, len(self._exchanges) - 1))
        _leave(self._exchanges[:place])
        self._exchanges = self._exchanges[place:]

    def make_room(self) -> None:
        """Forget as many of the oldest as the last question was found to need.

        Those that are not sent any more take no room, and are not counted.
        """
        needed = 0 if self.last is None else self.last.progress.drop or 0
        place = 0
        for exchange in self._exchanges[:-1] if needed else ():
            place += 1
            needed -= bool(_said([exchange]))
            if not needed:
                break
        self.drop_oldest(place)

    def clear(self) -> None:
        """Stop, and forget everything; until the next question it can be undone."""
        if self._exchanges:
            self.stop()
            _leave(self._cleared)
            self._exchanges, self._cleared = [], self._exchanges

    def undo_clear(self) -> None:
        """Have what was cleared last again.

        Raises:
            ConfigurationError: Nothing was, or something was asked since.
        """
        if not self._cleared:
            raise ConfigurationError("nothing was cleared that could be had again")
        self._exchanges, self._cleared = self._cleared, []

    def stop(self) -> None:
        """End the answer that is being given, if one is."""
        if self.last is not None:
            self.last.generation.stop()

    def leave(self) -> None:
        """End everything; for good."""
        _leave((*self._exchanges, *self._cleared))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no answer is being given and no slot is being stopped."""
        deadline = Deadline.after(timeout)
        remaining = None if timeout is None else deadline.remaining
        last = self.last
        return last is None or last.generation.wait(remaining)

    def _ask(self, question: Turn, before: Sequence[Exchange]) -> Exchange:
        messages = messages_for([*_said(before), question], self.system)
        sampling, changed = dict(self.sampling), threading.Event()
        generation = Generation(
            self._client(), messages, sampling, changed.set, self._measured
        )
        exchange = Exchange(question, generation, sampling, changed)
        _leave([one for one in self._exchanges if one not in before])
        self._exchanges = [*before, exchange]
        generation.start()
        return exchange

    def _require_last(self) -> Exchange:
        if self.last is None:
            raise ConfigurationError("there is no question yet; send one first")
        return self.last

    def _require_quiet(self) -> None:
        if self.is_answering:
            raise ConfigurationError(
                "an answer is being given: stop() it, or wait() for its end, first"
            )


def _parted(progress: Progress) -> tuple[str, str]:
    """Return answer and reasoning, also where the server left them together."""
    text, reasoning = progress.text, progress.reasoning
    if not text.lstrip().startswith("<think>"):
        return text, reasoning
    view = AnswerView()
    view.feed(text, reasoning)
    view.finish()
    return view.content, view.reasoning


def _leave(exchanges: Iterable[Exchange]) -> None:
    """End what nobody will look at again, so that no thread asks for it."""
    for exchange in exchanges:
        exchange.generation.leave()


def _question(text: str, images: Sequence[Mapping[str, Any]]) -> Turn:
    if isinstance(images, Mapping) or not all(
        isinstance(image, Mapping) for image in images
    ):
        raise ConfigurationError(
            "images are a list of parts that image_part() made, as in "
            'images=[image_part("cat.png")]'
        )
    if not text.strip() and not images:
        raise ConfigurationError("there is no message to send; write one first")
    return Turn(role="user", content=text, images=tuple(images))


def _said(exchanges: Sequence[Exchange]) -> list[Turn]:
    """Return the turns that belong to the conversation: no questions that failed."""
    turns: list[Turn] = []
    for exchange in exchanges:
        progress = exchange.progress
        if progress.text or progress.state == "done":
            turns += exchange.turns
    return turns
