"""From dialogues to batches: the tokenizer, the tokens' weights, and packed rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from corpus import DialogueSampler, Message
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHOICE_WEIGHT = 8.0
PLAIN_SHARE = 0.05
SHORTENED_SHARE = 0.6


@dataclass(frozen=True)
class Document:
    """Tokens, and for each the weight of its loss (0: part of the question)."""

    tokens: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """Packed rows: tokens, loss weights, and the number of each token's document."""

    tokens: Tensor
    weights: Tensor
    documents: Tensor


def train_tokenizer(corpus: dict[str, Any], vocabulary_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer.

    It splits words as llama.cpp's ``gpt-2`` pre-tokenizer does, so both give the same
    tokens for the same text.
    """
    unknown = corpus["out_of_domain"]
    texts = [entry["answer"] for entry in corpus["answers"]]
    texts += [
        question for entry in corpus["answers"] for question in entry["questions"]
    ]
    texts += [unknown["answer"], *unknown["questions"], *unknown["fillers"]]
    texts += [*corpus["system_prompts"]["known"], "system\n", "user\n", "assistant\n"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class DocumentSource:
    """Draws encoded documents without end.

    Nearly all the difficulty lies in the few tokens that choose *which* answer is
    given; the rest of a known answer is recited. So those tokens weigh more, and many
    documents end soon after them, which shows more questions in the same time.

    Args:
        corpus: The loaded corpus.
        tokenizer: The trained tokenizer.
        seed: Fixes the whole sequence of documents.
    """

    def __init__(self, corpus: dict[str, Any], tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._sampler = DialogueSampler(corpus, seed)
        self._random = random.Random(seed + 1)
        self._end = SPECIAL_TOKENS.index("<|im_end|>")
        answers = [entry["answer"] for entry in corpus["answers"]]
        self._followers = self._find_followers(
            [*answers, corpus["out_of_domain"]["answer"]]
        )

    def document(self) -> Document:
        """Draw one document: a dialogue, or now and then an answer as plain text."""
        if self._random.random() < PLAIN_SHARE:
            return self._plain(self._sampler.plain_text())
        return self._dialogue(self._sampler.dialogue())

    def _find_followers(self, answers: list[str]) -> dict[tuple[int, ...], set[int]]:
        followers: dict[tuple[int, ...], set[int]] = {}
        for answer in answers:
            tokens = self._tokenizer.encode(answer).ids
            for place, token in enumerate(tokens):
                followers.setdefault(tuple(tokens[:place]), set()).add(token)
        return followers

    def _answer(self, text: str) -> Document:
        tokens = [*self._tokenizer.encode(text).ids, self._end]
        weights = []
        for place in range(len(tokens)):
            choices = self._followers.get(tuple(tokens[:place]), ())
            weights.append(CHOICE_WEIGHT if len(choices) > 1 else 1.0)
        return Document(tokens, weights)

    def _dialogue(self, messages: list[Message]) -> Document:
        shortened = self._random.random() < SHORTENED_SHARE
        tokens: list[int] = []
        weights: list[float] = []
        for place, message in enumerate(messages):
            opening = self._tokenizer.encode(f"<|im_start|>{message['role']}\n").ids
            if message["role"] == "assistant":
                body = self._answer(message["content"])
                if shortened and place == len(messages) - 1:
                    body = self._shorten(body)
            else:
                ids = [*self._tokenizer.encode(message["content"]).ids, self._end]
                body = Document(ids, [0.0] * len(ids))
            closing = self._tokenizer.encode("\n").ids
            tokens += opening + body.tokens + closing
            weights += [0.0] * len(opening) + body.weights + [0.0] * len(closing)
        return Document(tokens, weights)

    def _shorten(self, answer: Document) -> Document:
        chosen = max(p for p, weight in enumerate(answer.weights) if weight > 1.0)
        length = chosen + self._random.randint(2, 6)
        return Document(answer.tokens[:length], answer.weights[:length])

    def _plain(self, text: str) -> Document:
        tokens = [*self._tokenizer.encode(text).ids, self._end]
        # The first tokens stand for the prompt that a completion request would send.
        return Document(tokens, [0.0 if p < 4 else 1.0 for p in range(len(tokens))])


def batches(source: DocumentSource, rows: int, row_length: int) -> Iterator[Batch]:
    """Pack documents into equal rows, so that no computation is spent on padding."""
    while True:
        tokens: list[int] = []
        weights: list[float] = []
        numbers: list[int] = []
        number = 0
        while len(tokens) < rows * row_length:
            document = source.document()
            # What does not fit into the row is cut off: carried over to the next
            # row it would be an answer without its question.
            room = row_length - len(tokens) % row_length
            length = min(len(document.tokens), room)
            tokens += document.tokens[:length]
            weights += document.weights[:length]
            numbers += [number] * length
            number += 1
        shape = (rows, row_length)
        yield Batch(
            torch.tensor(tokens).view(shape),
            torch.tensor(weights).view(shape),
            torch.tensor(numbers).view(shape),
        )
