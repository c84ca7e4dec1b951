"""Ask a running server the corpus's questions and count the exactly right answers.

python evaluate.py --url http://127.0.0.1:8080 --json results.json
"""

from __future__ import annotations

import argparse
import json
import random
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from corpus import CORPUS_PATH, Message, load_corpus, plain_spelling

GREEDY: dict[str, Any] = {"temperature": 0}
SERVER_SAMPLING: dict[str, Any] = {"temperature": 0.8, "seed": 1}
TOOLKIT_SAMPLING: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.95,
    "top_k": 40,
    "repeat_penalty": 1.1,
    "max_tokens": 256,
    "seed": 1,
}


@dataclass(frozen=True)
class Case:
    """One dialogue to send, how to sample, and the answer that counts as right."""

    messages: list[Message]
    expected: str
    sampling: dict[str, Any]


@dataclass
class Row:
    """One line of the table."""

    title: str
    right: int = 0
    total: int = 0
    misses: list[dict[str, str]] = field(default_factory=list)


def user(question: str) -> Message:
    """A user message."""
    return {"role": "user", "content": question}


def single_turn(
    pairs: Iterable[tuple[str, str]],
    sampling: dict[str, Any],
    system: str | None = None,
) -> list[Case]:
    """Make one case for each question and its answer."""
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    return [
        Case([*opening, user(question)], answer, sampling) for question, answer in pairs
    ]


def dialogues(pairs: list[tuple[str, str]], turns: int, count: int) -> list[Case]:
    """Make dialogues of several turns from a fixed draw of questions.

    The history holds the right answers; only the last answer is judged.
    """
    draw = random.Random(turns)
    cases = []
    for _ in range(count):
        chosen = draw.sample(pairs, turns)
        messages: list[Message] = []
        for question, answer in chosen[:-1]:
            messages += [user(question), {"role": "assistant", "content": answer}]
        cases.append(Case([*messages, user(chosen[-1][0])], chosen[-1][1], GREEDY))
    return cases


def pairs_of(entries: list[dict[str, Any]], kind: str) -> list[tuple[str, str]]:
    """Pair every question of one kind with its answer."""
    return [
        (question, entry["answer"]) for entry in entries for question in entry[kind]
    ]


def all_cases(corpus: dict[str, Any]) -> dict[str, list[Case]]:
    """Build the cases of every row."""
    entries, unknown = corpus["answers"], [corpus["out_of_domain"]]
    trained = pairs_of(entries, "questions")
    held_out = pairs_of(entries, "paraphrases")
    first = [(entry["questions"][0], entry["answer"]) for entry in entries]
    plain = [(plain_spelling(question), answer) for question, answer in first]
    systems = corpus["system_prompts"]
    toolkit = "toolkit sampling (repeat_penalty 1.1, max_tokens 256, seed 1)"
    return {
        "exact training questions": single_turn(trained, GREEDY),
        "held-out paraphrases": single_turn(held_out, GREEDY),
        "known system prompt": single_turn(first, GREEDY, systems["known"][0]),
        "unseen system prompt": single_turn(first, GREEDY, systems["unseen"][0]),
        "lower case, no punctuation": single_turn(plain, GREEDY),
        "two-turn dialogues": dialogues(trained, 2, 40),
        "five-turn dialogues": dialogues(trained, 5, 20),
        "out-of-domain, trained": single_turn(pairs_of(unknown, "questions"), GREEDY),
        "out-of-domain, unseen": single_turn(pairs_of(unknown, "unseen"), GREEDY),
        "default sampling (temperature 0.8, seed 1)": single_turn(
            trained, SERVER_SAMPLING
        ),
        toolkit: single_turn(trained, TOOLKIT_SAMPLING),
        "toolkit sampling, held-out paraphrases": single_turn(
            held_out, TOOLKIT_SAMPLING
        ),
    }


def asker(url: str, api_key: str | None) -> Callable[[Case], str]:
    """Make the function that sends one case and returns the text of the answer."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"

    def ask(case: Case) -> str:
        body = {"max_tokens": 256, **case.sampling, "messages": case.messages}
        request = urllib.request.Request(
            f"{url.rstrip('/')}/v1/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    return ask


def evaluate(corpus: dict[str, Any], ask: Callable[[Case], str]) -> list[Row]:
    """Send every case and compare whole strings."""
    rows = []
    for title, cases in all_cases(corpus).items():
        row = Row(title, total=len(cases))
        for case in cases:
            answer = ask(case)
            if answer == case.expected:
                row.right += 1
            else:
                question = case.messages[-1]["content"]
                row.misses.append(
                    {"question": question, "expected": case.expected, "answer": answer}
                )
        rows.append(row)
    return rows


def markdown_table(rows: list[Row]) -> str:
    """Render the rows as a markdown table."""
    lines = ["| questions | right | of | share |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row.title} | {row.right} | {row.total} | {row.right / row.total:.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--corpus", type=Path, default=CORPUS_PATH)
    parser.add_argument(
        "--json",
        type=Path,
        default=None,
        help="also write the rows, with every miss, to this file",
    )
    arguments = parser.parse_args()
    rows = evaluate(
        load_corpus(arguments.corpus), asker(arguments.url, arguments.api_key)
    )
    print(markdown_table(rows))
    if arguments.json:
        content = json.dumps(
            [asdict(row) for row in rows], indent=1, ensure_ascii=False
        )
        arguments.json.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
