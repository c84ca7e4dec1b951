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

_PROMPT_WORDS = 150  # some 200 tokens, as of a short chat with a system prompt
_ANSWER_TOKENS = 48
_ANSWERS_IN_TURN = 3
_ROUNDS = 2
"""Requests for each slot, so that a slot that becomes free is used again."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one placement did.

    Attributes:
        placement: What was started.
        seconds: For one answer to a request alone; the median of three.
        tokens_per_second: Of all requests together, as many at once as there are
            slots; read ones of an embedding model, else written ones.
    """

    placement: Placement
    seconds: float
    tokens_per_second: float

    def __str__(self) -> str:
        slots = self.placement.slots
        return (
            f"{self.placement.kind}: {self.seconds:.2f} s for an answer alone, "
            f"{self.tokens_per_second:.0f} tokens/s with {slots} at once"
        )


def choose_by_probe(
    candidates: Sequence[Placement], goal: Goal, engine: EngineLike | None
) -> Placement:
    """Start each placement, measure it, and return the best for the goal.

    One that cannot be started is told in ``measured`` and not chosen.

    Args:
        candidates: The placements; at least one.
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
    if goal == "latency":
        best = min(done, key=lambda one: one.seconds)
    else:
        best = max(done, key=lambda one: one.tokens_per_second)
    reason = (
        f"the best for {goal} of {len(candidates)} that were measured here "
        f"({best.placement.reason})"
    )
    return replace(best.placement, measured=tuple(told), reason=reason)


def measure(placement: Placement, engine: EngineLike | None) -> Measurement:
    """Start a placement on free ports, measure it, and stop it again.

    Raises:
        LLCudaError: It cannot be started, or does not answer.
    """
    configs = tuple(one.replace(port=0, notes=one.notes) for one in placement.configs)
    with ServerPool(replace(placement, configs=configs), engine=engine) as pool:
        client = pool.make_client(timeout=120)
        asker = _Asker(client, embeds=configs[0].embeddings)
        slots = placement.slots
        with ThreadPoolExecutor(slots, "llamatelemetry-probe") as threads:
            list(threads.map(asker.ask, range(len(configs))))  # the first are slow
            alone = [asker.ask(number).seconds for number in range(_ANSWERS_IN_TURN)]
            began = time.monotonic()
            answers = list(threads.map(asker.ask, range(_ROUNDS * slots)))
            took = time.monotonic() - began
    tokens = sum(answer.tokens for answer in answers)
    return Measurement(placement, statistics.median(alone), tokens / took)


@dataclass(frozen=True, slots=True)
class _Answer:
    seconds: float
    tokens: int


class _Asker:
    """Asks for answers of one length, with a prompt that no cache has seen."""

    def __init__(self, client: PoolClient, *, embeds: bool) -> None:
        self._client = client
        self._embeds = embeds

    def ask(self, number: int) -> _Answer:
        """Ask once; the number makes prompts differ from their first word on."""
        began = time.monotonic()
        prompt = f"{number} {began} " + "word " * _PROMPT_WORDS
        if self._embeds:
            tokens = self._client.embeddings(prompt).usage.prompt_tokens
        else:
            reply = self._client.completion(
                prompt, max_tokens=_ANSWER_TOKENS, temperature=0, ignore_eos=True
            )
            tokens = (
                _ANSWER_TOKENS
                if reply.usage is None
                else (reply.usage.completion_tokens)
            )
        return _Answer(time.monotonic() - began, tokens)
