"""What is sent, as values and as it arrives."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pydantic
import pytest
from client_tools import MESSAGES, StandIn, answer
from manager_tools import wait_for

from llamatelemetry.api import _requests
from llamatelemetry.api.client import LlamaCppClient, Message
from llamatelemetry.exceptions import (
    ClientError,
    ConfigurationError,
    RequestTimeoutError,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


class City(pydantic.BaseModel):
    """A format of answers."""

    name: str


def sent_body(stand_in: StandIn, **options: Any) -> dict[str, Any]:
    """Return the body that a chat with these options sends."""
    url = stand_in.url()
    LlamaCppClient(url).chat_completion(MESSAGES, **options)
    body: dict[str, Any] = stand_in.seen(url)[-1]["body"]
    return body


def test_the_defaults_of_the_reference_are_sent(stand_in: StandIn) -> None:
    """A bare chat sends the reference's defaults and what streaming needs, no more."""
    assert sent_body(stand_in) == {
        "messages": MESSAGES,
        "max_tokens": 256,
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 40,
        "repeat_penalty": 1.1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "sse_ping_interval": 10,
    }


def test_zero_is_a_value(stand_in: StandIn) -> None:
    """A temperature, seed or limit of 0 is sent as 0 and not left out."""
    body = sent_body(stand_in, temperature=0, seed=0, max_tokens=0, top_k=0, min_p=0.0)

    for name in ("temperature", "seed", "max_tokens", "top_k", "min_p"):
        assert body[name] == 0


def test_every_option_reaches_the_server(stand_in: StandIn) -> None:
    """Options beyond the reference go under the server's names."""
    options: dict[str, Any] = {
        "stop": ["a", "b"],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "required",
        "parallel_tool_calls": True,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": [[1, False]],
        "logprobs": True,
        "top_logprobs": 2,
        "n": 1,
        "grammar": 'root ::= "a"',
        "cache_prompt": False,
        "id_slot": 0,
        "model": "m",
    }

    body = sent_body(stand_in, **options)

    assert {key: body[key] for key in options} == options


def test_thinking_is_a_switch_of_the_template(stand_in: StandIn) -> None:
    """True and False reach the template, None leaves it alone."""
    assert sent_body(stand_in, thinking=False)["chat_template_kwargs"] == {
        "enable_thinking": False
    }
    assert "chat_template_kwargs" not in sent_body(stand_in, thinking=None)


def test_extra_body_wins(stand_in: StandIn) -> None:
    """What the caller puts in goes out as it is, over everything else."""
    body = sent_body(stand_in, extra_body={"mirostat": 2, "top_k": 7})

    assert (body["mirostat"], body["top_k"]) == (2, 7)


def test_an_earlier_answer_can_be_sent_back(stand_in: StandIn) -> None:
    """A Message of a response is a message of the next request."""
    url = stand_in.url()
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    LlamaCppClient(url).chat_completion(
        [
            Message(role="assistant", content="Hi", reasoning_content="hm"),
            Message(role="assistant", content=None, tool_calls=[call]),
        ]
    )

    assert stand_in.seen(url)[0]["body"]["messages"] == [
        {"role": "assistant", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]


@pytest.mark.parametrize("messages", ["Hello!", {"role": "user", "content": "Hi"}])
def test_messages_that_are_no_list_are_refused(messages: Any) -> None:
    """A bare text or message is answered with the line to write."""
    with pytest.raises(ConfigurationError, match="messages takes a list"):
        LlamaCppClient().chat_completion(messages)


def test_an_unknown_option_is_refused() -> None:
    """llama-server would drop a misspelt name in silence; the client does not."""
    with pytest.raises(ConfigurationError, match="no option repetition_penalty"):
        LlamaCppClient().chat_completion(MESSAGES, repetition_penalty=1.1)  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [math.nan, {1}, object()])
def test_what_is_no_json_is_refused(value: Any) -> None:
    """A value that JSON cannot hold is an error of the caller, told before sending."""
    with pytest.raises(ConfigurationError, match="cannot be written as JSON"):
        LlamaCppClient().chat_completion(MESSAGES, extra_body={"x": value})


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (SCHEMA, SCHEMA),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "schema": SCHEMA}, SCHEMA),
        (City, City.model_json_schema()),
    ],
)
def test_a_schema_goes_where_the_server_looks(given: Any, sent: Any) -> None:
    """Bare, wrapped, misplaced or as a pydantic class: the schema arrives."""
    assert _requests.openai_format(given)["json_schema"]["schema"] == sent


def test_a_json_object_format_is_left_as_it_is() -> None:
    """OpenAI's other formats are passed on."""
    given = {"type": "json_object"}

    assert _requests.openai_format(given) == given


@pytest.mark.parametrize("given", [int, "json", 5])
def test_a_format_that_is_none_is_refused(given: Any) -> None:
    """A class that is no pydantic model, or a word, is named in the error."""
    with pytest.raises(ConfigurationError, match="response_format"):
        _requests.openai_format(given)


@pytest.mark.parametrize(
    ("timeout", "interval"), [(30, 10), (300, 10), (9, 3), (1, 1), (0.2, 1)]
)
def test_pings_come_three_times_within_the_timeout(
    stand_in: StandIn, timeout: float, interval: int
) -> None:
    """A shorter timeout asks for more frequent pings, down to one a second."""
    url = stand_in.url()
    with contextlib.suppress(RequestTimeoutError):  # on a machine that is busy
        LlamaCppClient(url, timeout=timeout).completion("x")
    wait_for(lambda: bool(stand_in.seen(url)), 30)

    assert stand_in.seen(url)[0]["body"]["sse_ping_interval"] == interval


def test_a_completion_sends_what_it_is_given(stand_in: StandIn) -> None:
    """Keyword arguments reach the server under their names; None is left out."""
    url = stand_in.url()
    LlamaCppClient(url).completion(
        "Once", 5, 0.0, ["."], top_k=3, seed=None, extra_body={"n_keep": 1}
    )

    body = stand_in.seen(url)[0]["body"]
    assert body["prompt"] == "Once"
    assert (body["max_tokens"], body["temperature"], body["stop"]) == (5, 0, ["."])
    assert (body["top_k"], body["n_keep"]) == (3, 1)
    assert "seed" not in body


def test_a_completion_names_its_streaming_twin() -> None:
    """`stream=True` is answered with the method to call."""
    with pytest.raises(ConfigurationError, match="completion_stream"):
        LlamaCppClient().completion("x", stream=True)


def test_answers_are_parsed_where_they_are_whole() -> None:
    """JSON becomes an object of the format; cut off or plain text stays None."""
    for text, response_format, parsed in [
        ('{"name": "Bonn"}', City, City(name="Bonn")),
        ('{"a": 1}', SCHEMA, {"a": 1}),
        ("plain", {"type": "text"}, None),
        ("plain", None, None),
        ("", SCHEMA, None),
    ]:
        response = answer(message=Message(role="assistant", content=text))
        _requests.fill_parsed(response, response_format)
        assert response.choices[0].message.parsed == parsed
    half = answer(
        message=Message(role="assistant", content='{"na'), finish_reason="length"
    )
    _requests.fill_parsed(half, City)
    assert half.choices[0].message.parsed is None


@pytest.mark.parametrize("response_format", [City, SCHEMA])
def test_a_whole_answer_of_another_format_is_an_error(
    stand_in: StandIn, response_format: Any
) -> None:
    """A build that ignores the schema does not go unnoticed, and the text is shown."""
    with pytest.raises(ClientError, match="w0 w1 w2"):
        stand_in.client().chat_completion(MESSAGES, response_format=response_format)
