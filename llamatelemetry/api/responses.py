"""What the server answers, as typed values.

The fields that the API reference names come first; what llama-server says beyond them
follows. Keys that no field is made for are kept in ``extra``. Times are in the unit
their name says: ``_ms`` milliseconds, ``_per_second`` tokens per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

__all__ = [
    "ChatCompletionChunk",
    "ChatCompletionResponse",
    "Choice",
    "ChunkChoice",
    "CompletionChoice",
    "CompletionResponse",
    "Delta",
    "DetokenizeResponse",
    "Embedding",
    "EmbeddingResponse",
    "EmbeddingUsage",
    "LoraAdapter",
    "Message",
    "Model",
    "ModelList",
    "PromptProgress",
    "RerankResponse",
    "RerankResult",
    "SlotAction",
    "Timings",
    "TokenizeResponse",
    "Usage",
]

_SHOWN_CHARACTERS = 60


class _Response:
    """A response whose repr leaves out what the server did not say."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = []
        for item in fields(self):  # type: ignore[arg-type] # every subclass is one
            value = getattr(self, item.name)
            if value is None or value is False or value in ({}, ""):
                continue
            if isinstance(value, float):
                value = round(value, 2)
            shown.append(f"{item.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(slots=True, kw_only=True, repr=False)
class Usage(_Response):
    """How many tokens a request took.

    Attributes:
        prompt_tokens: Tokens of the prompt, cached ones included.
        completion_tokens: Tokens generated, reasoning included.
        total_tokens: Both together.
        prompt_tokens_details: More on the prompt's tokens, or None.
        estimated: True where the answer was cut off before the server could count:
            then one token is counted for each piece of text that came.
        extra: Keys of the server without a field here.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> answer = client.chat_completion(messages, temperature=0)
        >>> answer.usage.prompt_tokens, answer.usage.completion_tokens
        (14, 45)
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    estimated: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that were still in the slot's cache; None if not told."""
        return (self.prompt_tokens_details or {}).get("cached_tokens")


@dataclass(slots=True, kw_only=True, repr=False)
class Timings(_Response):
    """What llama-server measured for one request; None where it did not say.

    Attributes:
        cache_n: Prompt tokens taken from the cache.
        prompt_n: Prompt tokens processed.
        prompt_ms: Time for them, in milliseconds.
        prompt_per_token_ms: Milliseconds for each.
        prompt_per_second: Prompt tokens per second.
        predicted_n: Tokens generated.
        predicted_ms: Time for them, in milliseconds.
        predicted_per_token_ms: Milliseconds for each.
        predicted_per_second: Generated tokens per second.
        extra: Keys of the server without a field here.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> answer = client.chat_completion(messages, temperature=0)
        >>> answer.timings.predicted_n, answer.timings.predicted_per_second > 0
        (45, True)
    """

    cache_n: int | None = None
    prompt_n: int | None = None
    prompt_ms: float | None = None
    prompt_per_token_ms: float | None = None
    prompt_per_second: float | None = None
    predicted_n: int | None = None
    predicted_ms: float | None = None
    predicted_per_token_ms: float | None = None
    predicted_per_second: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class PromptProgress(_Response):
    """How far the server is in reading the prompt.

    Attributes:
        total: Tokens of the prompt.
        cache: Tokens that were in the cache.
        processed: Tokens done, cached ones included.
        time_ms: Milliseconds since it began.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> steps = []
        >>> answer = client.chat_completion(messages, on_progress=steps.append)
        >>> steps[-1].processed, steps[-1].total
        (14, 14)
    """

    total: int
    cache: int
    processed: int
    time_ms: float


@dataclass(slots=True, kw_only=True, repr=False)
class Message(_Response):
    """A message of the assistant.

    Attributes:
        role: "assistant".
        content: The text; None where the model called tools instead.
        reasoning_content: What the model thought before, or None.
        tool_calls: The tools it calls, as OpenAI shapes them, or None.
        parsed: The object that ``response_format`` asked for, or None.
        extra: Keys of the server without a field here.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> answer = client.chat_completion(messages, temperature=0)
        >>> answer.choices[0].message.role
        'assistant'
        >>> messages.append(answer.choices[0].message)  # and the chat can go on
    """

    role: str
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    parsed: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class Choice(_Response):
    """One answer.

    Attributes:
        index: Its position where several were asked for.
        message: The answer.
        finish_reason: "stop", "length", "tool_calls"; "cancelled" after ``cancel()``;
            "error" in the partial answer of a StreamError.
        logprobs: Log probabilities as the server gives them, where asked for.
        extra: Keys of the server without a field here.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> answer = client.chat_completion(messages, temperature=0)
        >>> answer.choices[0].finish_reason
        'stop'
    """

    index: int
    message: Message
    finish_reason: str
    logprobs: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def cut_off_in_reasoning(self) -> bool:
        """Whether max_tokens ended it while it thought, before any answer."""
        message = self.message
        return bool(
            self.finish_reason == "length"
            and message.reasoning_content
            and not message.content
            and not message.tool_calls
        )


@dataclass(slots=True, kw_only=True, repr=False)
class ChatCompletionResponse(_Response):
    """A whole chat answer.

    Attributes:
        id: The server's name for the request.
        object: "chat.completion".
        created: Seconds since 1970.
        model: The model's alias.
        choices: The answers; one, unless ``n`` asked for more.
        usage: How many tokens it took.
        system_fingerprint: The server's build, or None.
        timings: What the server measured, or None.
        extra: Keys of the server without a field here.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> client.chat_completion(messages, temperature=0)
        ChatCompletionResponse("GGUF is a file format ... 14 + 45 tokens, ... tokens/s)
    """

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = None
    timings: Timings | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = ", ".join(_shown_choice(choice) for choice in self.choices)
        return f"ChatCompletionResponse({shown}, {_shown_cost(self)})"


@dataclass(slots=True, kw_only=True, repr=False)
class Delta(_Response):
    """What a chunk adds to a message.

    Attributes:
        role: In the first chunk, "assistant".
        content: More text, or None.
        reasoning_content: More thinking, or None.
        tool_calls: More of the tool calls, or None.
        extra: Keys of the server without a field here.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> chunks = list(client.chat_completion_stream(messages, temperature=0))
        >>> chunks[1].choices[0].delta
        Delta(content='G')
    """

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class ChunkChoice(_Response):
    """What a chunk adds to one answer.

    Attributes:
        index: The answer's position.
        delta: What is added.
        finish_reason: In an answer's last chunk, why it ended; else None.
        logprobs: Log probabilities of the added tokens, where asked for.
        extra: Keys of the server without a field here.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> chunks = list(client.chat_completion_stream(messages, temperature=0))
        >>> chunks[-1].choices[0].finish_reason
        'stop'
    """

    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class ChatCompletionChunk(_Response):
    """A piece of a streamed chat answer.

    Attributes:
        id: The server's name for the request; equal in all its chunks.
        object: "chat.completion.chunk".
        created: Seconds since 1970.
        model: The model's alias.
        choices: What is added; may be empty.
        usage: How many tokens it took, in a chunk at the end, else None.
        timings: What the server measured, in a chunk at the end, else None.
        prompt_progress: How far the prompt is read, before the first token.
        system_fingerprint: The server's build, or None.
        extra: Keys of the server without a field here.

    Example:
        >>> messages = [{"role": "user", "content": "What is GGUF?"}]
        >>> chunks = list(client.chat_completion_stream(messages, temperature=0))
        >>> "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        "GGUF is a file format ..."
    """

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
    system_fingerprint: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class CompletionChoice(_Response):
    """One text, or in a streamed chunk what is added to it.

    Attributes:
        index: Its position where several were asked for.
        text: The text.
        finish_reason: As in :class:`Choice`; None while it goes on.
        logprobs: Log probabilities in the shape of chat, where asked for.
        extra: Keys of the server without a field here.

    Example:
        >>> answer = client.completion("The KV cache", max_tokens=8, temperature=0)
        >>> answer.choices[0].finish_reason  # max_tokens were written
        'length'
    """

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class CompletionResponse(_Response):
    """A whole text completion, or one chunk of a streamed one.

    Attributes:
        id: The server's name for the request.
        object: "text_completion".
        created: Seconds since 1970.
        model: The model's alias.
        choices: The texts; one, unless ``n`` asked for more.
        usage: How many tokens it took; None in all chunks but the last.
        system_fingerprint: The server's build, or None.
        timings: What the server measured, or None.
        prompt_progress: In a chunk before the first token, else None.
        extra: Keys of the server without a field here.

    Example:
        >>> answer = client.completion("The KV cache", max_tokens=8, temperature=0)
        >>> answer.choices[0].text, answer.usage.completion_tokens
        (' keeps the attention keys and values', 8)
    """

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{_shown_text(choice.text)}, finish_reason={choice.finish_reason!r}"
            for choice in self.choices
        )
        return f"CompletionResponse({shown}, {_shown_cost(self)})"


@dataclass(slots=True, kw_only=True, repr=False)
class Embedding(_Response):
    """The vector of one input.

    Attributes:
        object: "embedding".
        embedding: The vector; llama-server makes its length 1.
        index: The input's position.

    Example:
        >>> client.embeddings("What is GGUF?").data[0]
        Embedding(index=0, 192 dimensions)
    """

    object: str = "embedding"
    embedding: list[float]
    index: int

    def __repr__(self) -> str:
        return f"Embedding(index={self.index}, {len(self.embedding)} dimensions)"


@dataclass(slots=True, kw_only=True, repr=False)
class EmbeddingUsage(_Response):
    """How many tokens the inputs have.

    Attributes:
        prompt_tokens: Tokens of all inputs.
        total_tokens: The same; an embedding generates none.

    Example:
        >>> client.embeddings(["What is GGUF?", "GGUF"]).usage
        EmbeddingUsage(prompt_tokens=6, total_tokens=6)
    """

    prompt_tokens: int
    total_tokens: int


@dataclass(slots=True, kw_only=True, repr=False)
class EmbeddingResponse(_Response):
    """The vectors of all inputs.

    Attributes:
        object: "list".
        data: One embedding for each input, in the inputs' order.
        model: The model's name.
        usage: How many tokens the inputs have.
        extra: Keys of the server without a field here.

    Example:
        >>> answer = client.embeddings(["What is GGUF?", "What is a T4?"])
        >>> vectors = [item.embedding for item in answer.data]
        >>> [round(sum(x * x for x in vector), 3) for vector in vectors]
        [1.0, 1.0]
    """

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class Model(_Response):
    """A model that the server has.

    Attributes:
        id: Its alias.
        object: "model".
        created: Seconds since 1970; llama-server gives the time of the request.
        owned_by: "llamacpp".
        meta: What the file says: ``n_params``, ``n_ctx_train``, ``size`` in bytes.
        extra: Keys of the server without a field here.

    Example:
        >>> model = client.list_models().data[0]
        >>> model.meta["n_params"]
        1771200
    """

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class ModelList(_Response):
    """The models that the server has.

    Attributes:
        object: "list".
        data: The models.

    Example:
        >>> client.list_models().data[0].id
        'model'
    """

    object: str = "list"
    data: list[Model]


@dataclass(slots=True, kw_only=True, repr=False)
class TokenizeResponse(_Response):
    """The tokens of a text.

    Attributes:
        tokens: Their ids.
        pieces: Their texts where asked for, else None; bytes where a token is no
            whole UTF-8 text.

    Example:
        >>> client.tokenize("What is GGUF?")
        TokenizeResponse(tokens=[273, 276, 334, 33])
    """

    tokens: list[int]
    pieces: list[str | bytes] | None = None


@dataclass(slots=True, kw_only=True, repr=False)
class DetokenizeResponse(_Response):
    """The text of tokens.

    Attributes:
        content: The text, special tokens included.

    Example:
        >>> client.detokenize([273, 276, 334, 33])
        DetokenizeResponse(content='What is GGUF?')
    """

    content: str


@dataclass(slots=True, kw_only=True, repr=False)
class RerankResult(_Response):
    """How well one document fits the query.

    Attributes:
        index: The document's position in the request.
        relevance_score: Higher fits better; a raw score, not a probability.

    Example:
        >>> from llamatelemetry.api.client import RerankResult
        >>> best = RerankResult(index=1, relevance_score=4.2)
        >>> ["A card with 16 GB.", "A file format."][best.index]
        'A file format.'
    """

    index: int
    relevance_score: float


@dataclass(slots=True, kw_only=True, repr=False)
class RerankResponse(_Response):
    """How well documents fit a query, the best first.

    Attributes:
        model: The model's name.
        object: "list".
        usage: How many tokens were read.
        results: One result for each document, or the best ``top_n``.
        extra: Keys of the server without a field here.

    Example:
        >>> from llamatelemetry import LlamaCppClient, ServerConfig, ServerManager
        >>> config = ServerConfig("model.gguf", port=0, rerank=True)
        >>> with ServerManager(config) as server:
        ...     ranker = LlamaCppClient(server.get_url())
        ...     answer = ranker.rerank("What is GGUF?", ["A format.", "A card."])
        >>> sorted(result.index for result in answer.results)
        [0, 1]
    """

    model: str
    object: str = "list"
    usage: EmbeddingUsage
    results: list[RerankResult]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, repr=False)
class SlotAction(_Response):
    """What was done to a slot's cache.

    Attributes:
        id_slot: The slot.
        action: "save", "restore" or "erase".
        tokens: Tokens that were saved, restored or erased.
        filename: The file in the server's ``--slot-save-path``; None for "erase".
        size_bytes: The file's size in bytes; None for "erase".
        milliseconds: How long it took; None for "erase".

    Example:
        >>> client.erase_slot(0).action
        'erase'
    """

    id_slot: int
    action: Literal["save", "restore", "erase"]
    tokens: int
    filename: str | None = None
    size_bytes: int | None = None
    milliseconds: float | None = None


@dataclass(slots=True, kw_only=True, repr=False)
class LoraAdapter(_Response):
    """A LoRA adapter that the server has loaded.

    Attributes:
        id: Its number, in the order of the flags.
        path: Its file.
        scale: How strongly it is applied; 0 is not at all.
        extra: Keys of the server without a field here.

    Example:
        >>> adapters = client.list_lora_adapters()
        >>> {adapter.path: adapter.scale for adapter in adapters}  # without --lora
        {}
    """

    id: int
    path: str
    scale: float
    extra: dict[str, Any] = field(default_factory=dict)


def _shown_text(text: str | None) -> str:
    if text is None or len(text) <= _SHOWN_CHARACTERS:
        return repr(text)
    return repr(text[:_SHOWN_CHARACTERS]) + f"... ({len(text)} characters)"


def _shown_choice(choice: Choice) -> str:
    message = choice.message
    if choice.cut_off_in_reasoning:
        return (
            f"{message.content!r}, cut off inside its reasoning after "
            f"{len(message.reasoning_content or '')} characters of it: "
            "give a larger max_tokens, or thinking=False"
        )
    shown = _shown_text(message.content)
    if message.tool_calls:
        names = [call.get("function", {}).get("name") for call in message.tool_calls]
        shown += f", tool_calls={names}"
    return f"{shown}, finish_reason={choice.finish_reason!r}"


def _shown_cost(response: ChatCompletionResponse | CompletionResponse) -> str:
    usage, timings = response.usage, response.timings
    cost = "no usage"
    if usage is not None:
        cost = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"
    if timings is not None and timings.predicted_per_second:
        cost += f", {timings.predicted_per_second:.1f} tokens/s"
    return cost
