"""The demo model's corpus: loading it, and varying its questions for training.

A *message* is a ``{"role": ..., "content": ...}`` mapping as in the chat API, so the
same dialogues can be trained on, rendered and sent to a server.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

Message = dict[str, str]

CORPUS_PATH = Path(__file__).with_name("corpus.json")


def load_corpus(path: Path = CORPUS_PATH) -> dict[str, Any]:
    """Read the corpus file."""
    return json.loads(path.read_text(encoding="utf-8"))


def normalise(text: str) -> str:
    """Reduce a question to lower-case words, so that its spellings compare equal."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def held_out_questions(corpus: dict[str, Any]) -> set[str]:
    """The normalised questions that training must never show."""
    questions = [
        question for entry in corpus["answers"] for question in entry["paraphrases"]
    ]
    return {
        normalise(question)
        for question in questions + corpus["out_of_domain"]["unseen"]
    }


def plain_spelling(question: str) -> str:
    """Lower case and without the punctuation at the ends of words."""
    return re.sub(r"[?!,:;]|\.(?=\s|$)", "", question.lower())


class DialogueSampler:
    """Draws training dialogues from the corpus, each question in a varied form.

    Args:
        corpus: The loaded corpus.
        seed: Fixes the whole sequence of dialogues.
    """

    out_of_domain_share = 0.15
    system_prompt_share = 0.35

    def __init__(self, corpus: dict[str, Any], seed: int) -> None:
        self._answers = corpus["answers"]
        self._unknown = corpus["out_of_domain"]
        self._system_prompts = corpus["system_prompts"]["known"]
        self._held_out = held_out_questions(corpus)
        self._variation = corpus["variation"]
        self._rewordings = [
            (re.compile(entry["pattern"]), entry["forms"])
            for entry in self._variation["rewordings"]
        ]
        self._random = random.Random(seed)

    def dialogue(self) -> list[Message]:
        """Draw one dialogue: 60 % have one turn, 30 % two, the others three to five."""
        draw = self._random.random()
        turns = 1 if draw < 0.6 else 2 if draw < 0.9 else self._random.randint(3, 5)
        messages: list[Message] = []
        if self._random.random() < self.system_prompt_share:
            messages.append(
                {"role": "system", "content": self._random.choice(self._system_prompts)}
            )
        for _ in range(turns):
            question, answer = self.question_and_answer()
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return messages

    def question_and_answer(self) -> tuple[str, str]:
        """Draw one question, in a varied form, and its answer."""
        if self._random.random() < self.out_of_domain_share:
            question, answer = self._out_of_domain_question(), self._unknown["answer"]
        else:
            entry = self._random.choice(self._answers)
            question, answer = self._random.choice(entry["questions"]), entry["answer"]
        return self._vary(question), answer

    def plain_text(self) -> str:
        """Draw one answer as running text, as completion requests have no template."""
        return str(self._random.choice(self._answers)["answer"])

    def _out_of_domain_question(self) -> str:
        if self._random.random() < 0.5:
            return str(self._random.choice(self._unknown["questions"]))
        template = self._random.choice(self._unknown["templates"])
        question = template.format(x=self._filler(), y=self._filler())
        return str(question[0].upper() + question[1:])

    def _filler(self) -> str:
        # Invented words teach that an unfamiliar subject, whatever it is, means
        # "I do not know".
        if self._random.random() < 0.3:
            syllables = self._variation["syllables"]
            return "".join(
                self._random.choices(syllables, k=self._random.randint(2, 4))
            )
        return str(self._random.choice(self._unknown["fillers"]))

    def _vary(self, question: str) -> str:
        chance = self._random.random
        if chance() < 0.75:
            reworded = self._reword(question)
            # The rules can arrive at a held-out question: never train on it.
            if normalise(reworded) not in self._held_out:
                question = reworded
        if chance() < 0.15:
            question = self._random.choice(self._variation["prefixes"]) + question
        if chance() < 0.1:
            question = question + self._random.choice(self._variation["suffixes"])
        if chance() < 0.2:
            question = plain_spelling(question)
        elif chance() < 0.15:
            question = question.rstrip("?.!")
        elif chance() < 0.1:
            question = question[0].lower() + question[1:]
        return self._misspell(question) if chance() < 0.06 else question

    def _reword(self, question: str) -> str:
        chance = self._random.random
        if chance() < 0.5:
            question = self._rephrase(question)
        if chance() < 0.5:
            question = self._swap_synonym(question)
        return self._drop_words(question) if chance() < 0.2 else question

    def _rephrase(self, question: str) -> str:
        for pattern, forms in self._rewordings:
            match = pattern.match(question)
            if match:
                return str(self._random.choice(forms).format(**match.groupdict()))
        return question

    def _swap_synonym(self, question: str) -> str:
        found = [
            (word, group)
            for group in self._variation["synonyms"]
            for word in group
            if f" {word}" in question
        ]
        if not found:
            return question
        word, group = self._random.choice(found)
        pattern = rf"(?<= ){re.escape(word)}(?![\w-])"
        return re.sub(pattern, self._random.choice(group), question, count=1)

    def _drop_words(self, question: str) -> str:
        # What is left of a question without its small words is still the question.
        small_words = self._variation["small_words"]
        kept = [
            word
            for word in question.split()
            if self._random.random() > (0.5 if word.lower() in small_words else 0.04)
        ]
        return " ".join(kept) or question

    def _misspell(self, question: str) -> str:
        if len(question) < 12:
            return question
        place = self._random.randrange(1, len(question) - 2)
        if self._random.random() < 0.5:
            return question[:place] + question[place + 1 :]
        return (
            question[:place]
            + question[place + 1]
            + question[place]
            + question[place + 2 :]
        )
