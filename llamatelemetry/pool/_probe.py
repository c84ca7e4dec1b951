"""Which placement is best, found by starting each for a moment and measuring it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from llamatelemetry.exceptions import LLCudaError
from llamatelemetry.placement import Goal, Placement
from llamatelemetry.pool.client import PoolClient
from llamatelemetry.pool.server_pool import ServerPool
from llamatelemetry.server.engine import EngineLike
from llamatelemetry.server.events import BufferSize
from llamatelemetry.server.manager import ServerManager

_PROMPT_WORDS = 150  # a short chat with a system prompt
_TOKENS_PER_WORD = 4  # at most, of a small vocabulary
_ANSWER_TOKENS = 48
_ANSWERS_IN_TURN = 3
_ROUNDS = 2
"""Requests for each slot, so that a slot that becomes free is used again."""

_CLEARLY = 1.05
"""By how much another placement must be better than the one that was decided for."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one placement did.

    Attributes:
        placement: What was started.
        seconds: For one answer to a request alone; the median of three.
        tokens_per_second: Of all requests together, as many at once as there are
            slots; read ones of an embedding model, else written ones.
        on_cards: Whether the servers have told of memory on a card.
    """

    placement: Placement
    seconds: float
    tokens_per_second: float
    on_cards: bool

    def __str__(self) -> str:
        slots = self.placement.slots
        said = (
            f"{self.placement.kind}: {self.seconds:.3f} s for an answer alone, "
            f"{self.tokens_per_second:.0f} tokens/s with {slots} at once"
        )
        if any(self.placement.gpus) and not self.on_cards:
            said += " (the engine used no card, so this says nothing about cards)"
        return said

    def score(self, goal: Goal) -> float:
        """Return how good it is for a goal; more is better."""
        return 1 / self.seconds if goal == "latency" else self.tokens_per_second


def choose_by_probe(
    candidates: Sequence[Placement], goal: Goal, engine: EngineLike | None
) -> Placement:
    """Start each placement, measure it, and return the best for the goal.

    The first stays chosen unless another is better by a twentieth: less is noise. One
    that cannot be started is told in ``measured`` and not chosen.

    Args:
        candidates: The placements, the one that was decided for first; at least one.
        goal: "latency" for the shortest answer, "throughput" for the most tokens.
        engine: The engine; None for the one that is found.

    Raises:
        LLCudaError: None of them could be started; the error of the first.
    """
    done: list[Measurement] = []
    told: list[str] = []
    errors: list[LLCudaError] = []
    for placement in candidates:
        try:
            measured = measure(placement, engine)
        except LLCudaError as error:
            errors.append(error)
            told.append(f"{placement.kind}: {str(error).splitlines()[0]}")
        else:
            done.append(measured)
            told.append(str(measured))
    if not done:
        raise errors[0]
    best = done[0]
    for other in done[1:]:
        if other.score(goal) > best.score(goal) * _CLEARLY:
            best = other
    many = "the only one" if len(done) == 1 else f"the best of {len(done)}"
    reason = f"{many} that could be measured, for {goal}: {best.placement.reason}"
    return replace(best.placement, measured=tuple(told), reason=reason)


def measure(placement: Placement, engine: EngineLike | None) -> Measurement:
    """Start a placement on free ports, measure it, and stop it again.

    Raises:
        LLCudaError: It cannot be started, or does not answer.
    """
    configs = tuple(one.replace(port=0, notes=one.notes) for one in placement.configs)
    with ServerPool(replace(placement, configs=configs), engine=engine) as pool:
        client = pool.make_client(timeout=120)
        context = min(plan.slot_context for plan in placement.plans)
        asker = _Asker(client, context, embeds=configs[0].embeddings)
        slots = placement.slots
        with ThreadPoolExecutor(slots, "llamatelemetry-probe") as threads:
            list(threads.map(asker.ask, range(len(configs))))  # the first are slow
            alone = [asker.ask(number).seconds for number in range(_ANSWERS_IN_TURN)]
            began = time.monotonic()
            answers = list(threads.map(asker.ask, range(_ROUNDS * slots)))
            took = time.monotonic() - began
        on_cards = any(_uses_a_card(server) for server in pool.servers)
    tokens = sum(answer.tokens for answer in answers)
    return Measurement(placement, statistics.median(alone), tokens / took, on_cards)


def _uses_a_card(server: ServerManager) -> bool:
    """Whether a server has told of weights or caches that are not on the host."""
    return any(
        isinstance(event, BufferSize) and not event.device.startswith("CPU")
        for event in server.events
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    seconds: float
    tokens: int


class _Asker:
    """Asks for answers of one length, with a prompt that no cache has seen.

    Args:
        client: Whom to ask.
        context: Tokens of a slot, in which prompt and answer must fit.
        embeds: Whether the model embeds, and does not write.
    """

    def __init__(self, client: PoolClient, context: int, *, embeds: bool) -> None:
        self._client = client
        self._embeds = embeds
        self._answer = min(_ANSWER_TOKENS, context // 4)
        room = context - self._answer - context // 4  # for the number, and a template
        self._words = min(_PROMPT_WORDS, room // _TOKENS_PER_WORD)

    def ask(self, number: int) -> _Answer:
        """Ask once; the number makes prompts differ from their first word on."""
        began = time.monotonic()
        prompt = f"{number} {began} " + "word " * self._words
        if self._embeds:
            tokens = self._client.embeddings(prompt).usage.prompt_tokens
        else:
            reply = self._client.completion(
                prompt, max_tokens=self._answer, temperature=0, ignore_eos=True
            )
            usage = reply.usage
            tokens = self._answer if usage is None else usage.completion_tokens
        return _Answer(time.monotonic() - began, tokens)
