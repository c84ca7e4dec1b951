"""The client's methods that turn text into numbers and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llamatelemetry.api import _parsing
from llamatelemetry.api._requests import Messages, message_list
from llamatelemetry.api._transport import Transport
from llamatelemetry.api.responses import (
    DetokenizeResponse,
    EmbeddingResponse,
    RerankResponse,
    TokenizeResponse,
)


class TextTools:
    """Embeddings, ranking, tokens and templates."""

    _transport: Transport

    def embeddings(
        self,
        input: str | Sequence[str],  # noqa: A002 -- the API reference's name
        model: str | None = None,
    ) -> EmbeddingResponse:
        """Return one vector of length 1 for each text.

        Args:
            input: A text, or several.
            model: Only looked at by a router.

        Raises:
            NotSupportedError: The server was started without ``--embeddings``.
            ClientError: Its model has no pooling (start with ``--pooling mean``), or
                a text has more tokens than the server's ``n_ubatch``.
        """
        texts = input if isinstance(input, str) else list(input)
        body = {"input": texts, **_named(model)}
        return self._transport.call(
            "embeddings",
            "POST",
            "/v1/embeddings",
            _parsing.embedding_response,
            json=body,
        )

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        model: str | None = None,
    ) -> RerankResponse:
        """Return how well documents fit a query, the best first.

        Args:
            query: What is looked for.
            documents: The texts to rank.
            top_n: Return only this many; None for all.
            model: Only looked at by a router.

        Raises:
            NotSupportedError: The server was started without ``--rerank``.
        """
        body: dict[str, Any] = {"query": query, "documents": list(documents)}
        if top_n is not None:
            body["top_n"] = top_n
        body.update(_named(model))
        return self._transport.call(
            "rerank", "POST", "/v1/rerank", _parsing.rerank_response, json=body
        )

    def tokenize(
        self,
        text: str,
        *,
        add_special: bool = False,
        parse_special: bool = True,
        with_pieces: bool = False,
    ) -> TokenizeResponse:
        """Return the tokens of a text.

        Args:
            text: The text.
            add_special: Whether to put the tokens around it that begin and end one.
            parse_special: Whether ``<|im_start|>`` and its like are one token each.
            with_pieces: Whether to return each token's text too.
        """
        body = {
            "content": text,
            "add_special": add_special,
            "parse_special": parse_special,
            "with_pieces": with_pieces,
        }
        return self._transport.call(
            "tokenize", "POST", "/tokenize", _parsing.tokenize_response, json=body
        )

    def detokenize(self, tokens: Sequence[int]) -> DetokenizeResponse:
        """Return the text of tokens, special tokens included."""
        return self._transport.call(
            "detokenize",
            "POST",
            "/detokenize",
            lambda data: DetokenizeResponse(content=data["content"]),
            json={"tokens": list(tokens)},
        )

    def apply_template(self, messages: Messages) -> str:
        """Return the prompt that the model's chat template makes of messages."""
        return self._transport.call(
            "apply_template",
            "POST",
            "/apply-template",
            lambda data: str(data["prompt"]),
            json={"messages": message_list(messages)},
        )

    def count_tokens(self, text: str | Messages) -> int:
        """Return how many tokens a prompt has.

        Args:
            text: A text; or chat messages, counted with what the template adds.
        """
        prompt = text if isinstance(text, str) else self.apply_template(text)
        return len(self.tokenize(prompt, add_special=True).tokens)


def _named(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}
