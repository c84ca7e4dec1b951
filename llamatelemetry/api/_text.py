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
                a text has more tokens than the server's ``n_ubatch`` (with another
                pooling than ``last``), or than its context.

        Example:
            >>> answer = client.embeddings(["What is GGUF?", "What is a T4?"])
            >>> len(answer.data), len(answer.data[0].embedding)
            (2, 192)
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

        Example:
            >>> from llamatelemetry import LlamaCppClient, ServerConfig, ServerManager
            >>> documents = ["A file format.", "A card with 16 GB."]
            >>> config = ServerConfig("model.gguf", port=0, rerank=True)
            >>> with ServerManager(config) as server:
            ...     ranker = LlamaCppClient(server.get_url())
            ...     answer = ranker.rerank("What is GGUF?", documents, top_n=1)
            >>> len(answer.results)
            1
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

        Example:
            >>> client.tokenize("What is GGUF?", with_pieces=True).pieces
            ['What', ' is', ' GGUF', '?']
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
        """Return the text of tokens, special tokens included.

        Args:
            tokens: Their ids.

        Example:
            >>> tokens = client.tokenize("What is GGUF?").tokens
            >>> client.detokenize(tokens).content
            'What is GGUF?'
        """
        return self._transport.call(
            "detokenize",
            "POST",
            "/detokenize",
            lambda data: DetokenizeResponse(content=data["content"]),
            json={"tokens": list(tokens)},
        )

    def apply_template(self, messages: Messages) -> str:
        """Return the prompt that the model's chat template makes of messages.

        Args:
            messages: As :meth:`LlamaCppClient.chat_completion` takes them.

        Example:
            >>> print(client.apply_template([{"role": "user", "content": "Hi"}]))
            <|im_start|>user
            Hi<|im_end|>
            <|im_start|>assistant
        """
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

        Example:
            >>> client.count_tokens("What is GGUF?")
            4
            >>> client.count_tokens([{"role": "user", "content": "What is GGUF?"}])
            14
        """
        prompt = text if isinstance(text, str) else self.apply_template(text)
        return len(self.tokenize(prompt, add_special=True).tokens)


def _named(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}
