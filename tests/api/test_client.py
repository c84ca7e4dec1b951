"""The client beside generation: errors, health, tokens, slots, options."""

from __future__ import annotations

from typing import Any

import pytest
from client_tools import MESSAGES, StandIn

from llamatelemetry.api.client import (
    LlamaCppClient,
    LoraAdapter,
    RequestRecord,
    RerankResult,
    SlotAction,
)
from llamatelemetry.exceptions import (
    AuthenticationError,
    ClientError,
    ConfigurationError,
    ConnectionFailedError,
    ContextLengthError,
    NotSupportedError,
)


def test_a_wrong_key_says_what_to_do(stand_in: StandIn) -> None:
    """401 is an AuthenticationError that names the argument and shows no key."""
    client = LlamaCppClient(stand_in.url(status=401), api_key="sk-wrong")
    for call in (client.list_models, lambda: client.chat_completion(MESSAGES)):
        with pytest.raises(AuthenticationError, match="api_key") as caught:
            call()
        assert "sk-wrong" not in repr(caught.value) + repr(client)
        assert caught.value.status == 401
        assert caught.value.type == "authentication_error"
        assert caught.value.message == "Invalid API Key"


def test_a_prompt_too_long_carries_the_numbers(stand_in: StandIn) -> None:
    """The tokens asked for and the room there is are attributes."""
    client = stand_in.client(status=400, error="exceed_context_size_error")
    with pytest.raises(ContextLengthError, match="context_size") as caught:
        client.chat_completion(MESSAGES)

    assert (caught.value.prompt_tokens, caught.value.context_size) == (6002, 512)


def test_what_is_turned_off_names_its_flag(stand_in: StandIn) -> None:
    """501 is a NotSupportedError with the flag to start the server with."""
    with pytest.raises(NotSupportedError) as caught:
        stand_in.client(status=501).embeddings("x")

    assert caught.value.flag == "--embeddings"
    assert "ServerConfig(embeddings=True)" in str(caught.value)
    with pytest.raises(ClientError, match="no llama-server answers") as stranger:
        stand_in.client(status=501, answer="html").embeddings("x")
    assert not isinstance(stranger.value, NotSupportedError)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temprature": 0}, "did you mean temperature"),
        ({"max_completion_tokens": 4}, "did you mean max_tokens"),
        ({"bananas": 3}, "no option bananas; what only"),
    ],
    ids=str,
)
def test_a_misspelt_option_is_named_with_the_right_one(
    stand_in: StandIn, options: dict[str, Any], words: str
) -> None:
    """A typing error does not end up in extra_body, where nobody would notice."""
    with pytest.raises(ConfigurationError, match=words):
        stand_in.client().chat_completion(MESSAGES, **options)


@pytest.mark.parametrize("wrong", [8080, None, ["http://127.0.0.1"]], ids=str)
def test_an_address_that_is_no_text_is_refused(wrong: Any) -> None:
    """A port or a manager in place of the URL is an error that says what to write."""
    with pytest.raises(ConfigurationError, match="server.get_url"):
        LlamaCppClient(wrong)
    with pytest.raises(ConfigurationError, match="api_key takes text"):
        LlamaCppClient(api_key=5)  # type: ignore[arg-type]


def test_nothing_to_answer_is_refused(stand_in: StandIn) -> None:
    """llama-server would answer an empty list of messages, with anything."""
    with pytest.raises(ConfigurationError, match="messages is empty"):
        stand_in.client().chat_completion([])


def test_a_broken_connection_is_a_short_story() -> None:
    """The error for a refused connection has no chain of library errors behind it."""
    client = LlamaCppClient("http://127.0.0.1:9")
    with pytest.raises(ConnectionFailedError) as caught:
        client.health()
    cause = caught.value.__cause__

    assert isinstance(cause, ConnectionError)
    assert cause.__suppress_context__
    assert cause.__cause__ is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"status": 503}, r"Loading model \(HTTP 503\); wait until health"),
        ({"status": 302}, r"points to http://elsewhere.invalid/: use that"),
        ({"status": 404}, r"GET /props: File Not Found \(HTTP 404\)"),
        ({"status": 500, "answer": "html"}, "<html>proxy error"),
        ({"status": 502, "answer": "empty"}, r"Bad Gateway \(HTTP 502\)"),
        ({"status": 599, "answer": "empty"}, r"unknown status \(HTTP 599\)"),
        ({"status": 500, "answer": "texterror"}, "plain words"),
        ({"status": 500, "answer": "list"}, r"\[1, 2\]"),
        ({"answer": "list"}, "another shape"),
        ({"answer": "garbage"}, "is not JSON"),
    ],
)
def test_a_refusal_says_why(
    stand_in: StandIn, options: dict[str, Any], words: str
) -> None:
    """Whatever answers, the error names the request, the cause and the status."""
    with pytest.raises(ClientError, match=words):
        stand_in.client(**options).get_props()


def test_health_is_a_state_and_not_an_error(stand_in: StandIn) -> None:
    """Loading and ok are returned; nothing there, or something else, raises."""
    assert stand_in.client().health() == {"status": "ok"}
    assert stand_in.client(status=503).health() == {"status": "loading"}
    with pytest.raises(ClientError, match="HTTP 500"):
        stand_in.client(status=500).health()
    with pytest.raises(ClientError, match="HTTP 503"):
        stand_in.client(status=503, answer="html").health()
    with pytest.raises(ConnectionFailedError):
        LlamaCppClient("http://127.0.0.1:1").health()


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", " "])
def test_the_address_may_end_as_other_clients_want_it(
    stand_in: StandIn, ending: str
) -> None:
    """A `/v1` or slash at the end of base_url does no harm."""
    url = stand_in.url()
    LlamaCppClient(url + ending).completion("x")

    assert stand_in.seen(url)[0]["path"] == "/v1/completions"


@pytest.mark.parametrize(
    ("key", "header"),
    [("sk-1", "Bearer sk-1"), ("sk-1\n", "Bearer sk-1"), ("", None), (None, None)],
)
def test_the_key_is_sent_as_a_bearer(
    stand_in: StandIn, key: str | None, header: str | None
) -> None:
    """With a key it is sent, less the line feed of a key file; without, nothing."""
    url = stand_in.url()
    LlamaCppClient(url, key).health()

    assert stand_in.seen(url)[0]["headers"].get("authorization") == header


@pytest.mark.parametrize("key", ["a\nb", "a\x00", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(key: str) -> None:
    """The error does not show it."""
    with pytest.raises(ConfigurationError, match="api_key") as caught:
        LlamaCppClient(api_key=key)

    assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["timeout", "connect_timeout", "total_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_time_that_is_none_is_refused(name: str, value: float) -> None:
    """Each limit must be a positive number of seconds that a system call takes."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=name):
        LlamaCppClient(**options)


def test_with_options_changes_the_limits_and_shares_the_rest(
    stand_in: StandIn,
) -> None:
    """The other client has its own times, the same address and connections."""
    client = stand_in.client()
    other = client.with_options(timeout=1, total_timeout=2)

    assert (other._transport.timeout, other._transport.total_timeout) == (1, 2)
    assert (client._transport.timeout, client._transport.total_timeout) == (30, None)
    assert client.with_options()._transport == client._transport
    assert other._transport.http is client._transport.http
    assert repr(other) == repr(client) == f"LlamaCppClient({client.base_url!r})"


def test_a_client_is_a_context(stand_in: StandIn) -> None:
    """Leaving the block closes the client."""
    with stand_in.client() as client:
        assert client.health() == {"status": "ok"}
    with pytest.raises(ConnectionFailedError, match="closed"):
        client.health()


def test_embeddings_are_read_as_numbers_or_base64(stand_in: StandIn) -> None:
    """Both spellings give lists of floats, in the order of the inputs."""
    url = stand_in.url()
    response = LlamaCppClient(url).embeddings(("Hello", "World"), model="m")

    assert [item.embedding for item in response.data] == [[1.0, 2.0, 3.0]] * 2
    assert [item.index for item in response.data] == [0, 1]
    assert response.usage.total_tokens == 3
    assert stand_in.seen(url)[0]["body"] == {"input": ["Hello", "World"], "model": "m"}


def test_reranking_is_typed(stand_in: StandIn) -> None:
    """Results come best first, with what was asked for sent along."""
    url = stand_in.url()
    response = LlamaCppClient(url).rerank("q", ["a", "b"], top_n=2, model="m")
    LlamaCppClient(url).rerank("q", ["a"])

    assert response.results[0] == RerankResult(index=1, relevance_score=2.5)
    assert response.usage.prompt_tokens == 9
    bodies = [entry["body"] for entry in stand_in.seen(url)]
    assert bodies[0]["top_n"] == 2
    assert bodies[1] == {"query": "q", "documents": ["a"]}


def test_slot_actions_are_typed(stand_in: StandIn) -> None:
    """Save, restore and erase say what they did, in one shape."""
    client = stand_in.client()
    saved = SlotAction(
        id_slot=1,
        action="save",
        tokens=5,
        filename="a.bin",
        size_bytes=100,
        milliseconds=0.5,
    )

    assert client.save_slot(1, "a.bin") == saved
    assert client.restore_slot(1, "a.bin").action == "restore"
    assert client.erase_slot(1) == SlotAction(id_slot=1, action="erase", tokens=5)


def test_lora_adapters_are_typed(stand_in: StandIn) -> None:
    """Adapters are listed, and set as the server wants them."""
    url = stand_in.url()
    client = LlamaCppClient(url)
    adapter = LoraAdapter(id=0, path="a.gguf", scale=1.0, extra={"task_name": "t"})

    assert client.list_lora_adapters() == [adapter]
    with pytest.raises(ClientError, match="another shape"):
        client.set_lora_adapters({0: 0.5})  # the stand-in answers with the list
    assert stand_in.seen(url)[-1]["body"] == [{"id": 0, "scale": 0.5}]


def test_requests_beside_generation_are_told_too(stand_in: StandIn) -> None:
    """Each has a record with its kind, and usage where there is one."""
    records: list[RequestRecord] = []
    client = LlamaCppClient(stand_in.url(), on_request=records.append)
    client.health()
    client.embeddings("x")
    with pytest.raises(ClientError):
        client.list_models()

    assert [record.kind for record in records] == ["health", "embeddings", "models"]
    assert records[1].usage is not None
    assert records[1].usage.prompt_tokens == 3
    assert isinstance(records[2].error, ClientError)
    assert all(record.duration > 0 for record in records)
