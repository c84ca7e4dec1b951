"""GGUFParser: everything a model file says about itself, in one object."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

from llamatelemetry._units import printable
from llamatelemetry.exceptions import GGUFError
from llamatelemetry.gguf import _summary
from llamatelemetry.gguf.arrays import GGUFArray
from llamatelemetry.gguf.quantization import RECIPES, file_type_name
from llamatelemetry.gguf.reader import GGUFHeader, TensorInfo, read_header

__all__ = ["GGUFParser", "SpecialToken", "TokenizerFacts"]

_SAME_BITS = 0.12
"""How far a file's layers may be from its recipe's bits per weight on an 8B model.

llama-quantize chooses types by the number of layers, heads and experts, and by whether
rows divide into blocks. Dry runs of all recipes over 19 shapes from 0.5B to 47B stay
within it, but for rows that do not divide, where other types take over, and three more
(Q3_K_L of Mamba, IQ1_S and IQ1_M of Qwen3.5): those files are named by their types.
"""
_LEAST_SHARE = 0.2
"""Of the layers' bytes, for the type that a recipe is named after."""
_ONE_TYPE = 0.9
"""Of the layers' bytes, for a file to be named after one type."""
_SHOWN_TYPES = 3
_MOST_ROLES = 32
"""Of special tokens. The constants of the gguf package name fewer than 20."""


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token with a meaning of its own.

    Attributes:
        id: Its number.
        text: Its text, of which a hostile file's may be cut; None where the number
            lies outside the vocabulary.

    Examples:
        >>> from llamatelemetry.gguf import GGUFParser
        >>> GGUFParser("model.gguf").tokenizer.special["eos"]
        SpecialToken(id=2, text='<|im_end|>')
    """

    id: int
    text: str | None


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a header says about the tokenizer.

    Attributes:
        model: "gpt2" (byte pairs), "llama" (SentencePiece), "bert", ...; None if the
            file holds no tokenizer.
        pre: The rules by which text is cut before byte pairs are joined, or None.
        size: Tokens in the vocabulary.
        merges: Rules to join byte pairs.
        special: The tokens with a meaning of their own by their role: "bos", "eos",
            "eot", "padding", ...
        adds_bos: Whether each prompt begins with the bos token; None if not told.
        adds_eos: Whether it ends with the eos token; None if not told.

    Examples:
        >>> from llamatelemetry.gguf import GGUFParser
        >>> facts = GGUFParser("model.gguf").tokenizer
        >>> facts.model, facts.size, facts.merges, facts.adds_bos
        ('gpt2', 1024, 765, False)
    """

    model: str | None
    pre: str | None
    size: int
    merges: int
    special: Mapping[str, SpecialToken]
    adds_bos: bool | None
    adds_eos: bool | None


class GGUFParser:
    """A model file's header: metadata, tensors, tokenizer.

    The header is read when the parser is made, so a file that is missing or no GGUF is
    an error here; the weights are never read. Large arrays, such as the vocabulary, are
    decoded when somebody looks.

    Args:
        file_path: A path; an http(s) URL or a file on the Hugging Face Hub
            ("owner/repo:file.gguf"), of which only the header is fetched; the bytes of
            a file; or an open binary file. Any one shard stands for all of a split
            model.

    Attributes:
        header: Everything as it was read.

    Raises:
        GGUFError: The bytes are not a GGUF file that can be read.
        ModelError: There is no such file.
        DownloadError: A remote file could not be read.

    Examples:
        >>> from llamatelemetry.gguf import GGUFParser
        >>> model = GGUFParser("model.gguf")
        >>> model.name, model.license, model.size_bytes
        ('llamatelemetry demo', 'MIT', 1917632)
        >>> print(f"{model.bits_per_weight:.2f} bits per weight")
        8.52 bits per weight
    """

    def __init__(
        self, file_path: str | os.PathLike[str] | bytes | bytearray | BinaryIO
    ) -> None:
        self.header: GGUFHeader = read_header(file_path)

    # ── what the API reference names ─────────────────────────────────────────────

    def get_metadata(self) -> dict[str, Any]:
        """Return all metadata as plain Python values; arrays are lists.

        This decodes every array: the 32 MiB that a header may have, a hostile file's
        too, can become several hundred MiB of Python objects. `metadata` has the same
        values and decodes none.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> metadata = GGUFParser("model.gguf").get_metadata()
            >>> metadata["llama.block_count"], metadata["tokenizer.ggml.tokens"][:3]
            (4, ['<|endoftext|>', '<|im_start|>', '<|im_end|>'])
        """
        return {
            key: value.tolist() if isinstance(value, GGUFArray) else value
            for key, value in self.header.metadata.items()
        }

    def get_architecture(self) -> str:
        """Return the model's family as llama.cpp names it ("llama", "qwen3").

        Raises:
            GGUFError: The file does not say.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> GGUFParser("model.gguf").get_architecture()
            'llama'
        """
        architecture = self.header.metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._says_nothing("architecture", "general.architecture")
        return architecture

    def get_parameter_count(self) -> int:
        """Return the number of weights: the sum over all tensors of all shards.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> GGUFParser("model.gguf").get_parameter_count()
            1771200
        """
        return sum(tensor.n_elements for tensor in self.header.tensors)

    def get_quantization_type(self) -> str:
        """Return the recipe the file was made with ("Q4_K_M").

        The header's word is checked against the tensors of the layers. Where it is
        missing or does not agree, the type that nearly all of them have, or the types
        by their share of the bytes: "Q8_0 (header: Q4_K_M)", "mixed (Q4_K 61 %, Q6_K
        39 %; header: Q8_0)". "none" for a file without tensors.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> GGUFParser("model.gguf").get_quantization_type()
            'Q8_0'
        """
        shares = self._type_shares
        if not shares:
            return "none"
        said = self._said_recipe
        if said is not None and self._agrees(said):
            return said
        kind, share = next(iter(shares.items()))
        if share >= _ONE_TYPE:
            return f"{kind} (header: {said})" if said else kind
        types = ", ".join(
            f"{name} {part * 100:.0f} %"
            for name, part in list(shares.items())[:_SHOWN_TYPES]
        )
        return f"mixed ({types}; header: {said})" if said else f"mixed ({types})"

    def get_context_length(self) -> int:
        """Return the context the model was trained for, in tokens.

        Raises:
            GGUFError: The file does not say.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> GGUFParser("qwen3-14b").get_context_length()
            40960
        """
        key = f"{self.get_architecture()}.context_length"
        value = self.header.metadata.get(key)
        if not isinstance(value, int):
            raise self._says_nothing("context length", key)
        return value

    def get_vocab_size(self) -> int:
        """Return the number of tokens.

        Counted in the tokenizer; where the file has none, the header's number, or the
        rows of the token embeddings.

        Raises:
            GGUFError: The file has no vocabulary.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> GGUFParser("model.gguf").get_vocab_size()
            1024
        """
        metadata = self.header.metadata
        tokens = self._array("tokenizer.ggml.tokens")
        if tokens:
            return len(tokens)
        size = metadata.get(f"{metadata.get('general.architecture')}.vocab_size")
        if isinstance(size, int):
            return size
        rows = self.header.tensor("token_embd.weight")
        if rows is not None and len(rows.shape) > 1:
            return rows.shape[1]
        raise self._says_nothing("vocabulary", "tokenizer.ggml.tokens")

    # ── more ─────────────────────────────────────────────────────────────────────

    @property
    def metadata(self) -> Mapping[str, Any]:
        """All metadata; arrays are sequences that decode what is looked at."""
        return self.header.metadata

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors of all shards, in the file's order."""
        return self.header.tensors

    @property
    def name(self) -> str:
        """The model's own name, or the file's where it has none."""
        name = self._text("general.name")
        return name or re.split(r"[/\\:]", self.header.source)[-1]

    @property
    def license(self) -> str | None:
        """The licence as the file names it ("apache-2.0"), or None."""
        return self._text("general.license")

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, of all shards together."""
        if self.header.file_bytes is not None:
            return self.header.file_bytes
        return self.header.header_bytes + self.tensor_bytes

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all weights.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> GGUFParser("model.gguf").tensor_bytes
            1886976
        """
        return sum(tensor.n_bytes for tensor in self.header.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over the whole model; 0.0 without tensors."""
        count = self.get_parameter_count()
        return self.tensor_bytes * 8 / count if count else 0.0

    @property
    def chat_template(self) -> str | None:
        """The Jinja template for chats, or None."""
        return self._text("tokenizer.chat_template")

    @cached_property
    def tokenizer(self) -> TokenizerFacts:
        """What the file says about its tokenizer.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> tokenizer = GGUFParser("model.gguf").tokenizer
            >>> tokenizer.size, tokenizer.special["bos"].text
            (1024, '<|endoftext|>')
        """
        metadata = self.header.metadata
        special: dict[str, SpecialToken] = {}
        for key, value in metadata.items():
            found = re.fullmatch(r"tokenizer\.ggml\.(\w{1,64})_token_id", key)
            if found and isinstance(value, int) and len(special) < _MOST_ROLES:
                special[found.group(1)] = SpecialToken(value, self._token(value))
        return TokenizerFacts(
            model=self._text("tokenizer.ggml.model"),
            pre=self._text("tokenizer.ggml.pre"),
            size=len(self._array("tokenizer.ggml.tokens")),
            merges=len(self._array("tokenizer.ggml.merges")),
            special=special,
            adds_bos=self._switch("tokenizer.ggml.add_bos_token"),
            adds_eos=self._switch("tokenizer.ggml.add_eos_token"),
        )

    def summary(self) -> str:
        """Return what the model is, in lines for a terminal.

        Examples:
            >>> from llamatelemetry.gguf import GGUFParser
            >>> lines = GGUFParser("model.gguf").summary().splitlines()
            >>> lines[0], lines[1].split(" · ")[:3]
            ('llamatelemetry demo', ['llama', '1.77M parameters', 'Q8_0'])
        """
        return _summary.as_text(self._facts())

    def __repr__(self) -> str:
        facts = ", ".join(self._facts().headline)
        return f"<GGUFParser {self.header.source!r}: {facts}>"

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return _summary.as_html(self._facts())

    # ── how ──────────────────────────────────────────────────────────────────────

    @property
    def _said_recipe(self) -> str | None:
        """The recipe that the header names, or None."""
        number = self.header.metadata.get("general.file_type")
        return file_type_name(number) if isinstance(number, int) else None

    @cached_property
    def _matrices(self) -> list[TensorInfo]:
        """The tensors that a recipe is about: the layers' matrices, if there are any.

        Norms stay in F32 in every recipe; embeddings and output have their own types.
        """
        tensors = self.header.tensors
        matrices = [one for one in tensors if len(one.shape) > 1] or list(tensors)
        return [one for one in matrices if one.name.startswith("blk.")] or matrices

    @cached_property
    def _type_shares(self) -> dict[str, float]:
        """Each type's share of the matrices' bytes, the largest first."""
        sizes: Counter[str] = Counter()
        for tensor in self._matrices:
            sizes[tensor.type] += tensor.n_bytes
        total = sizes.total()
        return {kind: size / total for kind, size in sizes.most_common() if size}

    def _agrees(self, name: str) -> bool:
        """Return whether the tensors are what a recipe makes."""
        recipe = RECIPES.get(name)
        if recipe is None:
            return False
        if self._type_shares.get(recipe.tensor_type, 0.0) < _LEAST_SHARE:
            return False
        weights = sum(tensor.n_elements for tensor in self._matrices)
        bits = sum(tensor.n_bytes for tensor in self._matrices) * 8 / weights
        return abs(bits / recipe.layer_bits - 1) <= _SAME_BITS

    def _facts(self) -> _summary.Facts:
        metadata = self.header.metadata
        architecture = self._text("general.architecture")
        context = metadata.get(f"{architecture}.context_length")
        return _summary.Facts(
            name=self.name,
            source=self.header.source,
            architecture=architecture,
            license=self.license,
            parameters=self.get_parameter_count(),
            quantization=self.get_quantization_type(),
            bits_per_weight=self.bits_per_weight,
            size_bytes=self.size_bytes,
            shards=len(self.header.shards),
            context=context if isinstance(context, int) else None,
            layers=metadata.get(f"{architecture}.block_count"),
            tensors=self.header.tensors,
            tokenizer=_tokenizer_rows(self.tokenizer),
            template=self.chat_template,
        )

    def _text(self, key: str) -> str | None:
        value = self.header.metadata.get(key)
        return value if isinstance(value, str) else None

    def _array(self, key: str) -> Sequence[Any]:
        value = self.header.metadata.get(key)
        return value if isinstance(value, GGUFArray) else ()

    def _token(self, number: int) -> str | None:
        tokens = self.header.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, GGUFArray) or not 0 <= number < len(tokens):
            return None
        text = tokens.brief(number)
        return text if isinstance(text, str) else None

    def _switch(self, key: str) -> bool | None:
        value = self.header.metadata.get(key)
        return value if isinstance(value, bool) else None

    def _says_nothing(self, what: str, key: str) -> GGUFError:
        return GGUFError(
            f"{self.header.source} names no {what} ({printable(key)}): it is a part of "
            "a model, such as a projector or an adapter, or was written by a broken "
            "tool",
            path=self.header.source,
        )


def _tokenizer_rows(facts: TokenizerFacts) -> list[tuple[str, str]]:
    if facts.model is None and not facts.size:
        return []
    kind = f"{facts.model} ({facts.pre})" if facts.pre else str(facts.model)
    size = f"{facts.size:,} tokens"
    if facts.merges:
        size += f", {facts.merges:,} merges"
    rows = [("tokenizer", f"{kind}, {size}")]
    rows += [
        (role, f"{token.id}" if token.text is None else f"{token.id} {token.text!r}")
        for role, token in facts.special.items()
    ]
    return rows
