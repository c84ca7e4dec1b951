"""A pool of two real servers on the CPU, with the demo model."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from manager_tools import wait_for

from llamatelemetry._demo import DEMO_QUESTIONS
from llamatelemetry.api.client import LlamaCppClient, RequestRecord
from llamatelemetry.pool import ServerPool
from llamatelemetry.server import Engine, ServerConfig

REQUESTS = 200


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": DEMO_QUESTIONS[number % len(DEMO_QUESTIONS)]}]


def answer(client: LlamaCppClient, number: int) -> str:
    reply = client.chat_completion(question(number), temperature=0, max_tokens=64)
    return reply.choices[0].message.content or ""


@pytest.fixture
def pool(engine: Engine, demo_model: Path) -> Iterator[ServerPool]:
    """Two ready servers without cards."""
    config = ServerConfig(
        demo_model, port=0, context_size=2048, parallel=4, threads=1, metrics=True
    )
    with ServerPool(config, gpus=[[], []], engine=engine, timeout=60) as running:
        yield running


def test_no_request_is_lost_when_a_server_is_killed(pool: ServerPool) -> None:
    """Of 200 requests from eight threads each is answered, right and once.

    One of the two servers is killed half-way. It comes back, and before that the
    other one does its work.
    """
    expected = [answer(pool.client, number) for number in range(len(DEMO_QUESTIONS))]
    records: list[RequestRecord] = []
    half = threading.Event()

    def note(record: RequestRecord) -> None:
        records.append(record)
        if len(records) == REQUESTS // 2:
            half.set()

    def kill() -> None:
        assert half.wait(300)
        pid = pool.servers[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    client = pool.make_client(on_request=note)
    with ThreadPoolExecutor(9) as threads:
        killing = threads.submit(kill)
        answers = list(
            threads.map(lambda number: answer(client, number), range(REQUESTS))
        )
        killing.result()

    assert len(records) == REQUESTS
    assert [record.error for record in records if record.error is not None] == []
    wrong = Counter(
        text
        for number, text in enumerate(answers)
        if text != expected[number % len(expected)]
    )
    assert wrong == Counter()
    wait_for(lambda: pool.status().ready == 2, seconds=30)
    assert pool.status()[0].restarts == 1
    before = pool.status()[0].requests
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: answer(client, number), range(16)))
    assert pool.status()[0].requests > before


def test_idle_servers_share_the_work(pool: ServerPool) -> None:
    """Of 60 different questions, one at a time, each of two idle servers gets half.

    The same question again goes where its prompt is in the cache. With many at once a
    server that answers faster gets more, as it should: it is less busy.
    """
    for number in range(60):
        message = [{"role": "user", "content": f"Number {number}: what is GGUF?"}]
        pool.client.chat_completion(message, temperature=0, max_tokens=2)

    assert [one.requests for one in pool.status()] == [30, 30]
    assert [one.in_flight for one in pool.status()] == [0, 0]


def test_a_next_turn_finds_its_prompt_in_the_cache(pool: ServerPool) -> None:
    """The second turn of each of several conversations reuses what was read before."""
    for number in range(len(DEMO_QUESTIONS)):
        pool.client.chat_completion(question(number), max_tokens=4, temperature=0)
    for number in range(len(DEMO_QUESTIONS)):
        turns = [
            *question(number),
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "Go on."},
        ]
        reply = pool.client.chat_completion(turns, max_tokens=4, temperature=0)
        assert reply.timings is not None
        assert (reply.timings.cache_n or 0) > 0


def test_facts_of_all_servers_are_joined(pool: ServerPool) -> None:
    """Slots are listed with their server; counters are summed up."""
    client = pool.client
    for number in range(4):
        answer(client, number)

    slots = client.get_slots()
    assert Counter(slot["server"] for slot in slots) == {0: 4, 1: 4}
    each = [
        LlamaCppClient(server.get_url()).metrics()["llamacpp:tokens_predicted_total"]
        for server in pool.servers
    ]
    assert sum(each) == client.metrics()["llamacpp:tokens_predicted_total"] > 0
    assert client.health() == {"status": "ok"}
    assert client.count_tokens("What is GGUF?") > 0
    client.set_lora_adapters({})
    assert client.list_lora_adapters() == []
    with client.chat_completion_stream(question(0), max_tokens=8) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
