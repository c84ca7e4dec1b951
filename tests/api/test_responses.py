"""The response classes, and JSON becoming them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from client_tools import answer

from llamatelemetry.api import _parsing, responses
from llamatelemetry.api._assembly import ChatAssembly
from llamatelemetry.api.responses import (
    ChunkChoice,
    CompletionChoice,
    CompletionResponse,
    Delta,
    Embedding,
    Message,
    Timings,
)
from llamatelemetry.exceptions import ClientError

REFERENCE_FIELDS = {
    "ChatCompletionResponse": "id object created model choices usage",
    "Choice": "index message finish_reason",
    "Message": "role content",
    "Usage": "prompt_tokens completion_tokens total_tokens",
    "ChatCompletionChunk": "id object created model choices",
    "ChunkChoice": "index delta finish_reason",
    "Delta": "role content",
    "EmbeddingResponse": "object data model usage",
    "Embedding": "object embedding index",
}


@pytest.mark.parametrize("name", REFERENCE_FIELDS)
def test_the_fields_of_the_reference_come_first(name: str) -> None:
    """Each class begins with the API reference's fields, in its order."""
    wanted = REFERENCE_FIELDS[name].split()
    fields = [field.name for field in dataclasses.fields(getattr(responses, name))]

    assert fields[: len(wanted)] == wanted


@pytest.mark.parametrize("name", responses.__all__)
def test_every_field_is_documented_and_slotted(name: str) -> None:
    """Each public class has slots, keyword-only fields, and says what each one is."""
    response = getattr(responses, name)
    documented = set(re.findall(r"^        (\w+): ", response.__doc__, re.MULTILINE))

    assert not hasattr(response, "__dict__") or "__slots__" in vars(response)
    for field in dataclasses.fields(response):
        assert field.kw_only, field.name
        assert field.name in documented, field.name


def test_a_response_shows_its_text_and_cost() -> None:
    """The repr is one line with text, finish reason, tokens and speed."""
    assert repr(answer()) == (
        "ChatCompletionResponse('Hi.', finish_reason='stop', 12 + 34 tokens, "
        "57.1 tokens/s)"
    )


def test_a_long_text_is_shortened_in_the_repr() -> None:
    """Sixty characters are shown, and how many there are."""
    shown = repr(answer(message=Message(role="assistant", content="x" * 1000)))

    assert "(1000 characters)" in shown
    assert len(shown) < 200


def test_tool_calls_show_in_the_repr() -> None:
    """An answer that calls a tool names it."""
    message = Message(
        role="assistant",
        content=None,
        tool_calls=[{"function": {"name": "look_up", "arguments": "{}"}}],
    )

    assert "None, tool_calls=['look_up']" in repr(answer(message=message))


def test_an_answer_cut_off_in_its_reasoning_says_so() -> None:
    """Empty content after reasoning at the limit names both remedies."""
    message = Message(role="assistant", content="", reasoning_content="thinking...")
    cut_off = answer(message=message, finish_reason="length")

    assert cut_off.choices[0].cut_off_in_reasoning
    assert "max_tokens" in repr(cut_off)
    assert "thinking=False" in repr(cut_off)
    assert not answer(message=message).choices[0].cut_off_in_reasoning
    assert not answer(finish_reason="length").choices[0].cut_off_in_reasoning


def test_other_responses_show_shortly() -> None:
    """A completion shows its text, an embedding its size and not its numbers."""
    completion = CompletionResponse(
        id="1",
        created=0,
        model="m",
        choices=[CompletionChoice(index=0, text="Paris")],
    )

    assert repr(completion) == (
        "CompletionResponse('Paris', finish_reason=None, no usage)"
    )
    assert repr(Embedding(embedding=[0.5] * 64, index=2)) == (
        "Embedding(index=2, 64 dimensions)"
    )


PLAIN = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 5,
    "model": "m",
    "system_fingerprint": "b1",
    "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}],
}


def test_the_short_way_of_reading_a_chunk_agrees_with_the_long_one() -> None:
    """A plain chunk gives the same whether its plainness is noticed or not."""
    long_choice = {
        **PLAIN["choices"][0],  # type: ignore[index, dict-item]
        "delta": {"content": "x", "role": None},
        "logprobs": None,
    }
    long_way = {**PLAIN, "usage": None, "choices": [long_choice]}

    assert _parsing.chat_chunk(PLAIN) == _parsing.chat_chunk(long_way)


@pytest.mark.parametrize("missing", ["id", "object", "created", "model"])
def test_a_chunk_may_lack_what_is_not_needed(missing: str) -> None:
    """Servers that leave out a key of the head are understood."""
    data = {key: value for key, value in PLAIN.items() if key != missing}
    chunk = _parsing.chat_chunk({**data, "one": 1})

    assert chunk.choices[0].delta.content == "x"
    assert chunk.extra == {"one": 1}


def test_unknown_keys_are_kept() -> None:
    """What no field is made for is in `extra`, at each level."""
    chunk = _parsing.chat_chunk(
        {
            **PLAIN,
            "k1": 1,
            "choices": [{"index": 0, "delta": {"k3": 3}, "k2": 2}],
            "usage": {
                "prompt_tokens": 1,
                "completion_tokens": 2,
                "total_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 1},
                "k4": 4,
            },
            "timings": {"prompt_n": 9, "k5": 5},
        }
    )

    assert chunk.usage is not None
    assert chunk.timings is not None
    assert (chunk.extra, chunk.choices[0].extra) == ({"k1": 1}, {"k2": 2})
    assert chunk.choices[0].delta.extra == {"k3": 3}
    assert (chunk.usage.extra, chunk.usage.cached_tokens) == ({"k4": 4}, 1)
    assert (chunk.timings.extra, chunk.timings.prompt_n) == ({"k5": 5}, 9)


@pytest.mark.parametrize("data", [None, [], 7, {}, {"choices": [{}]}, {"choices": 5}])
def test_json_of_another_shape_is_an_error(data: object) -> None:
    """What is no chunk raises one kind of error, which shows it."""
    with pytest.raises(ClientError, match="another shape"):
        _parsing.parse_with(_parsing.chat_chunk, data, "chunk")


def test_tool_calls_are_put_together() -> None:
    """Two calls whose arguments come bit by bit end whole, in order."""
    assembly = ChatAssembly()
    pieces = [
        {"index": 1, "id": "b", "function": {"name": "g", "arguments": ""}},
        {"index": 0, "id": "a", "type": None, "function": {"name": "f"}},
        {"index": 0, "function": {"name": None, "arguments": '{"x"'}},
        {"index": 1, "function": {"arguments": "{}"}},
        {"index": 0, "function": {"arguments": ":1}"}},
    ]
    for piece in pieces:
        choice = {"index": 0, "delta": {"tool_calls": [piece]}}
        assembly.add(_parsing.chat_chunk({**PLAIN, "choices": [choice]}))

    message = assembly.response("tool_calls").choices[0].message
    assert message.content is None
    assert message.tool_calls == [
        {"id": "a", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_log_probabilities_are_put_together() -> None:
    """Those of each chunk follow one another, and the chunks stay as they were."""
    assembly = ChatAssembly()
    for token in "ab":
        choice = {
            "index": 0,
            "delta": {"content": token, "later": token},
            "logprobs": {"content": [{"token": token}]},
        }
        assembly.add(_parsing.chat_chunk({**PLAIN, "choices": [choice]}))

    whole = assembly.response("stop").choices[0]
    assert whole.logprobs == {"content": [{"token": "a"}, {"token": "b"}]}
    assert whole.message.extra == {"later": "b"}


def test_a_stream_that_said_nothing_still_gives_a_response() -> None:
    """With no chunk at all there is one empty answer and an estimated usage."""
    response = ChatAssembly().response("cancelled")

    assert response.choices[0].message.content == ""
    assert response.choices[0].finish_reason == "cancelled"
    assert response.usage.estimated


def test_prometheus_text_is_read() -> None:
    """Names map to values, labels stay in the name, comments go."""
    text = '# HELP a b\nllamacpp:n_total 12\nwith{le="0.5"} 1e3\n\n'

    assert _parsing.prometheus_values(text) == {
        "llamacpp:n_total": 12.0,
        'with{le="0.5"}': 1000.0,
    }


def test_the_client_module_offers_every_response_class() -> None:
    """What the API reference imports from the client is there, with all the others."""
    from llamatelemetry.api import client

    for name in responses.__all__:
        assert getattr(client, name) is getattr(responses, name)
        assert name in client.__all__
    assert Path(client.__file__).name == "client.py"


def test_a_repr_leaves_out_what_was_not_said() -> None:
    """A chunk printed in a loop is a line, not a paragraph of None and {}."""
    delta = ChunkChoice(index=0, delta=Delta(content="Hi"))
    timings = Timings(predicted_n=3, predicted_per_second=778.0862614723515)

    assert repr(delta) == "ChunkChoice(index=0, delta=Delta(content='Hi'))"
    assert repr(timings) == "Timings(predicted_n=3, predicted_per_second=778.09)"
