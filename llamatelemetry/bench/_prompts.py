"""What is asked: texts that were given, or made ones of a known length."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llamatelemetry.api._requests import Messages
from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import ClientError, ConfigurationError

__all__ = ["Given", "Prompts", "given_prompts", "listed", "made_prompts"]

Given = Iterable[str | Messages] | None
Prompts = Callable[[int, int, int], list[Messages]]
"""Returns the prompts of a load: which load, how many prompts were before, how many."""

# Short common words, of which most vocabularies have each as one token.
_WORDS = (  # noqa: SIM905 - 200 pairs of quotes would hide the words
    "about above after again air all also animal answer any ask away back before "
    "begin below between big book both boy bring build call car carry change children "
    "city close come country cut day different does down each earth eat end enough "
    "even every example eye face family far father few find first follow food form "
    "found four girl give good great group grow hand hard head hear help here high "
    "home house idea important keep kind know land large last late learn leave left "
    "letter life light line list little live long look made make many mean might mile "
    "money most mother mountain move much music name near need never new next night "
    "number off often old open other our over own page paper part people picture place "
    "plant play point read really right river run same saw school sea second see seem "
    "sentence set should show side small something sometimes song soon sound spell "
    "start state still stop story study such take talk tell think thought three time "
    "together took tree try turn under until use very walk want watch water way well "
    "went white why without word work world would write year young"
).split()


def listed(given: Iterable[str | Messages]) -> list[Messages]:
    """Return the user's prompts as chats; a generator is read once, and here.

    Raises:
        ConfigurationError: It is no list of texts or chats.
    """
    is_list = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
    # A table's iterator hands out the names of its columns.
    found = list(given) if is_list and getattr(given, "ndim", 1) == 1 else []
    if not found:
        raise ConfigurationError(
            "prompts takes a list of texts, or of chats as chat_completion takes them, "
            f"with one at least; not {given!r}"
        )
    return [_chat(one) for one in found]


def given_prompts(chats: Sequence[Messages]) -> Prompts:
    """Return what hands out the user's prompts in turn, again and again.

    Args:
        chats: As :func:`listed` returns them.
    """

    def take(_load: int, start: int, count: int) -> list[Messages]:
        return [chats[place % len(chats)] for place in range(start, start + count)]

    return take


def made_prompts(
    client: LlamaCppClient, *, tokens: int, shared: int, seed: int
) -> Prompts:
    """Return what makes prompts of common words, each beginning in another way.

    The server says where a text has so many tokens; the chat template adds a few. One
    without ``/tokenize`` gets three words for four tokens, which is about right.

    Args:
        client: Leads to the server.
        tokens: How long they are.
        shared: How many tokens at the beginning are the same in all.
        seed: Equal seeds make equal prompts.
    """
    beginning = _text(client, _chance(f"{seed}"), shared)

    def take(load: int, _start: int, count: int) -> list[Messages]:
        chance = _chance(f"{seed} {load}")
        return [
            _chat(beginning + _text(client, chance, tokens - shared))
            for _ in range(count)
        ]

    return take


def _chance(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - equal seeds have to make equal texts


def _chat(prompt: object) -> Messages:
    if isinstance(prompt, str) and prompt:
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list | tuple) and prompt:
        return list(prompt)
    raise ConfigurationError(
        f"a prompt is {prompt!r}, and must be a text or a list of messages, not empty"
    )


def _text(client: LlamaCppClient, chance: random.Random, tokens: int) -> str:
    if not tokens:
        return ""
    words: list[Any] = chance.choices(_WORDS, k=tokens)
    text = "".join(f"{word} " for word in words)  # a token at least for each word
    try:
        pieces = client.tokenize(text, with_pieces=True).pieces or []
    except ClientError:
        pieces = []
    whole = [
        piece if isinstance(piece, bytes) else piece.encode()
        for piece in pieces[:tokens]
    ]
    if whole:
        return b"".join(whole).decode(errors="replace")
    return "".join(f"{word} " for word in words[: max(1, tokens * 3 // 4)])
