"""The client against real servers; the same tests run on both engines."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pydantic
import pytest

from llamatelemetry.api.client import LlamaCppClient, PromptProgress, RequestRecord
from llamatelemetry.exceptions import (
    ClientError,
    ContextLengthError,
    NotSupportedError,
    StreamError,
)

MESSAGES = [{"role": "user", "content": "What is GGUF?"}]
WORDS = 'root ::= "one " "two " "three"'
SLOW: dict[str, Any] = {
    # Hundreds of tokens, each with the probabilities of a thousand others.
    "max_tokens": 900,
    "extra_body": {"ignore_eos": True, "logprobs": True, "top_logprobs": 1000},
}


def wait_until_freed(client: LlamaCppClient) -> None:
    """Wait until all slots are idle, and none of them by the end of a slow answer."""
    decoded = 0
    while busy := [slot for slot in client.get_slots() if slot["is_processing"]]:
        decoded = max(decoded, *(one["next_token"][0]["n_decoded"] for one in busy))
        time.sleep(0.005)
    assert decoded < 850


def test_a_chat_is_answered_with_all_that_the_server_says(
    client: LlamaCppClient,
) -> None:
    """Text, usage, timings and the model's alias are there and agree."""
    response = client.chat_completion(MESSAGES, max_tokens=40, temperature=0)

    assert response.choices[0].message.role == "assistant"
    assert response.choices[0].message.content
    assert response.choices[0].finish_reason in ("stop", "length")
    assert response.object == "chat.completion"
    assert response.usage.total_tokens == (
        response.usage.prompt_tokens + response.usage.completion_tokens
    )
    assert response.timings is not None
    assert response.timings.predicted_n == response.usage.completion_tokens
    assert response.model == client.list_models().data[0].id
    assert response.id.startswith("chatcmpl-")


def test_a_stream_says_the_same_as_a_whole_answer(client: LlamaCppClient) -> None:
    """Greedy, streamed and whole answers are equal, text for text."""
    options: dict[str, Any] = {
        "max_tokens": 40,
        "temperature": 0,
        "repeat_penalty": 1.0,
        "cache_prompt": False,
    }
    whole = client.chat_completion(MESSAGES, **options)
    with client.chat_completion_stream(MESSAGES, **options) as stream:
        chunks = list(stream)

    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert stream.result().usage == whole.usage


def test_a_grammar_forces_the_text(client: LlamaCppClient) -> None:
    """A grammar holds in chat and in text completion."""
    chat = client.chat_completion(MESSAGES, grammar=WORDS)
    text = client.completion("Count:", grammar=WORDS, logprobs=2)

    assert chat.choices[0].message.content == "one two three"
    assert text.choices[0].text == "one two three"
    assert text.object == "text_completion"
    assert text.usage is not None
    assert text.usage.completion_tokens > 0
    assert text.choices[0].logprobs is not None
    assert len(text.choices[0].logprobs["content"]) >= 3


def test_progress_is_told_up_to_the_whole_prompt(client: LlamaCppClient) -> None:
    """The server tells how far it has read, and the last word is all of it."""
    told: list[PromptProgress] = []
    response = client.chat_completion(
        MESSAGES, max_tokens=2, cache_prompt=False, on_progress=told.append
    )

    assert told[-1].processed == told[-1].total == response.usage.prompt_tokens


def test_pydantic_models_come_back_as_objects(client: LlamaCppClient) -> None:
    """With a model class the answer is its object; with a schema, a dict."""

    class Verdict(pydantic.BaseModel):
        good: bool
        kind: str = pydantic.Field(pattern="^(red|blue)$")

    for response_format in (Verdict, Verdict.model_json_schema()):
        choice = client.chat_completion(
            MESSAGES, max_tokens=200, response_format=response_format, seed=1
        ).choices[0]
        assert choice.finish_reason == "stop", choice
        assert isinstance(choice.message.parsed, (Verdict, dict))
        verdict = Verdict.model_validate(choice.message.parsed)
        assert verdict.kind in ("red", "blue")


def test_log_probabilities_come_for_each_token(client: LlamaCppClient) -> None:
    """Asked for, they are there, one entry per generated token."""
    response = client.chat_completion(
        MESSAGES, max_tokens=5, logprobs=True, top_logprobs=2, temperature=0
    )

    logprobs = response.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs["content"]) >= 4
    assert len(logprobs["content"][0]["top_logprobs"]) == 2


def test_several_answers_in_one_request(client: LlamaCppClient) -> None:
    """With n=2 there are two choices, kept apart."""
    response = client.chat_completion(MESSAGES, n=2, grammar=WORDS)

    assert [choice.index for choice in response.choices] == [0, 1]
    for choice in response.choices:
        assert choice.message.content == "one two three"


def test_embeddings_have_length_one(client: LlamaCppClient) -> None:
    """One unit vector for each text, in order."""
    response = client.embeddings(["Hello", "World"])

    assert [item.index for item in response.data] == [0, 1]
    for item in response.data:
        assert sum(x * x for x in item.embedding) == pytest.approx(1, abs=1e-3)
    assert client.embeddings("Hello").data[0].embedding == pytest.approx(
        response.data[0].embedding, abs=1e-3
    )


def test_tokens_go_there_and_back(client: LlamaCppClient) -> None:
    """Any text survives, and counting agrees with the server's own count."""
    text = "Hello, wörld! 你好"
    tokens = client.tokenize(text, with_pieces=True)
    response = client.chat_completion(MESSAGES, max_tokens=1)

    assert client.detokenize(tokens.tokens).content == text
    assert tokens.pieces is not None
    assert len(tokens.pieces) == len(tokens.tokens)
    assert client.count_tokens(text) >= len(client.tokenize(text).tokens)
    assert client.count_tokens(MESSAGES) == response.usage.prompt_tokens
    assert "GGUF" in client.apply_template(MESSAGES)


def test_the_server_describes_itself(client: LlamaCppClient) -> None:
    """Health, properties, slots, metrics and adapters are answered."""
    assert client.health() == {"status": "ok"}
    assert client.get_props()["total_slots"] == 2
    assert [slot["id"] for slot in client.get_slots()] == [0, 1]
    assert client.metrics()["llamacpp:n_decode_total"] >= 0
    assert client.list_lora_adapters() == []
    client.set_lora_adapters({})
    assert client.list_models().data[0].meta["n_params"] > 0


def test_what_is_not_turned_on_names_its_flag(client: LlamaCppClient) -> None:
    """Ranking and saving slots name the flags that the server was not given."""
    with pytest.raises(NotSupportedError) as ranking:
        client.rerank("q", ["a"])
    with pytest.raises(NotSupportedError) as saving:
        client.save_slot(0, "a.bin")

    assert ranking.value.flag in ("--rerank", "--reranking")
    assert saving.value.flag == "--slot-save-path"


def test_a_prompt_too_long_is_told_with_numbers(client: LlamaCppClient) -> None:
    """More tokens than a slot holds raise ContextLengthError, streamed or not."""
    long = [{"role": "user", "content": "x y z " * 3000}]
    for ask in (client.chat_completion, client.chat_completion_stream):
        with pytest.raises(ContextLengthError) as caught:
            list(ask(long))  # type: ignore[operator, call-overload]
        assert caught.value.prompt_tokens is not None
        assert caught.value.context_size is not None
        assert caught.value.prompt_tokens > caught.value.context_size


@pytest.mark.parametrize(
    "options", [{"grammar": "root ::= ("}, {"extra_body": {"temperature": "hot"}}]
)
def test_a_request_that_cannot_work_is_refused(
    client: LlamaCppClient, options: dict[str, Any]
) -> None:
    """A broken grammar, or a value of the wrong type, is a ClientError."""
    with pytest.raises(ClientError):
        client.chat_completion(MESSAGES, **options)


def test_cancel_frees_the_slot(client: LlamaCppClient) -> None:
    """After `cancel()` the slot is idle, long before the answer would have ended."""
    stream = client.chat_completion_stream(MESSAGES, **SLOW)
    for _ in stream:
        if stream.text:
            break
    assert any(slot["is_processing"] for slot in client.get_slots())
    stream.cancel()

    wait_until_freed(client)
    assert stream.result().choices[0].finish_reason == "cancelled"


def test_cancel_from_another_thread_ends_the_loop(client: LlamaCppClient) -> None:
    """A reader blocked on a real stream comes back at once."""
    stream = client.chat_completion_stream(MESSAGES, **SLOW)
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    while not stream.text:
        time.sleep(0.001)
    stream.cancel()
    reader.join(10)

    assert not reader.is_alive()
    wait_until_freed(client)


def test_leaving_a_loop_frees_the_slot(client: LlamaCppClient) -> None:
    """`break` in a loop over a bare stream is enough."""
    for chunk in client.chat_completion_stream(MESSAGES, **SLOW):
        if chunk.choices[0].delta.content:
            break

    wait_until_freed(client)


def test_waiting_for_a_slot_can_be_cancelled(client: LlamaCppClient) -> None:
    """With all slots busy, a third stream waits without a byte and can be ended."""
    busy = [client.chat_completion_stream(MESSAGES, **SLOW) for _ in range(2)]
    for stream in busy:
        next(stream)
    waiting = client.chat_completion_stream(MESSAGES, max_tokens=4)
    reader = threading.Thread(target=lambda: list(waiting))
    reader.start()
    time.sleep(0.02)
    waiting.cancel()
    reader.join(10)

    assert not reader.is_alive()
    for stream in busy:
        stream.cancel()
    wait_until_freed(client)


def test_many_threads_share_a_client(client: LlamaCppClient) -> None:
    """Forty chats on eight threads are all answered right."""

    def ask(number: int) -> str | None:
        answer = client.chat_completion(
            MESSAGES, grammar=f'root ::= "{number}"', max_tokens=8
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(40))) == [str(n) for n in range(40)]


def test_more_requests_than_a_connection_lives_for(server_url: str) -> None:
    """llama-server closes a connection after 100 requests; nobody notices."""
    with LlamaCppClient(server_url) as client:
        for _ in range(120):
            assert client.tokenize("x").tokens
        assert client.completion("x", max_tokens=1).choices


def test_the_openai_address_works(server_url: str) -> None:
    """A base URL with /v1, as the openai SDK wants it, is understood."""
    with LlamaCppClient(server_url + "/v1") as client:
        assert client.chat_completion(MESSAGES, max_tokens=1).id


def test_records_tell_time_and_tokens(server_url: str) -> None:
    """A listener learns the time to the first token and what the server measured."""
    records: list[RequestRecord] = []
    with LlamaCppClient(server_url, on_request=records.append) as client:
        response = client.chat_completion(MESSAGES, grammar=WORDS)

    (record,) = records
    assert record.usage == response.usage
    assert record.time_to_first_token is not None
    assert 0 < record.time_to_first_token < record.duration
    assert record.timings == response.timings
    assert not isinstance(record.error, StreamError)


def test_a_thousand_requests_outlive_their_connections(client: LlamaCppClient) -> None:
    """llama-server closes a connection after 100 requests; no request is lost to that.

    A POST is never sent twice, so it must not be sent on a connection that is at its
    end.
    """
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: client.count_tokens("Hello"), range(1000)))

    assert len(set(counts)) == 1


def test_an_object_that_was_cut_off_is_warned_about(client: LlamaCppClient) -> None:
    """Without its end the JSON is no object: parsed is None, and it is said why."""

    class Answer(pydantic.BaseModel):
        words: list[str]

    with pytest.warns(UserWarning, match="no parsed object"):
        response = client.chat_completion(
            MESSAGES, max_tokens=3, response_format=Answer
        )

    assert response.choices[0].finish_reason == "length"
    assert response.choices[0].message.parsed is None
