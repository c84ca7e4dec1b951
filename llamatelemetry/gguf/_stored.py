"""Headers of catalog models that come with the package: plans without a connection.

``stored_headers.json`` has the shapes and where they come from. They stand in for the
real headers while ``LLAMATELEMETRY_DEMO`` is set; what they lack is the vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from struct import pack
from typing import Any

from llamatelemetry.exceptions import ModelError
from llamatelemetry.gguf._source import Source
from llamatelemetry.gguf._values import ARRAY, NUMBER_TYPES, STRING
from llamatelemetry.gguf.quantization import GGML_TYPES, find_recipe, tensor_bytes
from llamatelemetry.setup.catalog import CatalogModel

__all__ = ["StoredSource", "stored_names"]

_ALIGNMENT = 32
_LAYERS = re.compile(r"\{([\d,-]+)\}")
_VALUE_TYPES = {kind.name: number for number, kind in NUMBER_TYPES.items()}


@cache
def _models() -> dict[str, dict[str, Any]]:
    place = Path(__file__).with_name("stored_headers.json")
    found: dict[str, dict[str, Any]] = json.loads(place.read_text(encoding="utf-8"))
    return found["models"]


def stored_names() -> tuple[str, ...]:
    """Return the names of the catalog whose headers are stored."""
    return tuple(_models())


class StoredSource:
    """The header of a catalog model, written from its stored shape.

    Args:
        entry: The model.
        path: The file that runs in its place, if there is one.

    Raises:
        ModelError: Its header is not stored.
    """

    file_name = ""  # of several shards too: the header is that of the whole model

    def __init__(self, entry: CatalogModel, path: str | None = None) -> None:
        if entry.id not in _models():
            raise ModelError(
                f"{entry.id}: LLAMATELEMETRY_DEMO is set, so no header is fetched, and "
                f"that of this model is not stored; stored are: "
                f"{', '.join(stored_names())}."
            )
        self.name = path or f"stored://{entry.id}"
        self.size: int | None = entry.total_bytes
        self._data = _header(entry, _models()[entry.id])

    def fetch(self, offset: int, length: int, expected: int) -> bytes:
        """Return bytes from an offset on; see :class:`Source`."""
        return self._data[offset : offset + max(length, expected)]

    def sibling(self, name: str) -> Source:
        """Refuse: there is nothing beside it."""
        raise ModelError(f"{self.name}: {name} is not stored.")

    def close(self) -> None:
        """Do nothing."""


def _header(entry: CatalogModel, stored: dict[str, Any]) -> bytes:
    architecture = stored["architecture"]
    tensors = list(_tensors(stored["tensors"]))
    keys = {
        "general.architecture": architecture,
        "general.name": entry.id,
        "general.file_type": find_recipe(entry.quantization or "F16").file_type,
        f"{architecture}.vocab_size": stored["vocabulary"],
        **{f"{architecture}.{key}": one for key, one in stored["metadata"].items()},
    }
    written = [b"GGUF", pack("<IQQ", 3, len(tensors), len(keys))]
    written += [_text(key) + _value(one) for key, one in keys.items()]
    offset = 0
    for name, kind, shape in tensors:
        ggml_type = GGML_TYPES[kind]
        sizes = pack(f"<I{len(shape)}Q", len(shape), *shape)
        written.append(_text(name) + sizes + pack("<IQ", ggml_type.id, offset))
        size = tensor_bytes(ggml_type, shape) or 0
        offset += size + -size % _ALIGNMENT
    return b"".join(written)


def _tensors(table: dict[str, Any]) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, type and shape of each tensor; a name may stand for many layers."""
    for name, (kind, shape) in table.items():
        found = _LAYERS.search(name)
        for part in found[1].split(",") if found else [""]:
            first, _, last = part.partition("-")
            for layer in range(int(first or 0), int(last or first or 0) + 1):
                yield _LAYERS.sub(str(layer), name), kind, shape


def _text(text: str) -> bytes:
    data = text.encode()
    return pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Return a value as a header has it, its type before it."""
    if isinstance(value, str):
        return pack("<I", STRING) + _text(value)
    if isinstance(value, list):
        kind, code = _number_type(value[0])
        counted = pack("<IIQ", ARRAY, kind, len(value))
        return counted + pack(f"<{len(value)}{code}", *value)
    kind, code = _number_type(value)
    return pack(f"<I{code}", kind, value)


def _number_type(value: float) -> tuple[int, str]:
    name = {bool: "bool", int: "uint32", float: "float32"}[type(value)]
    kind = _VALUE_TYPES[name]
    return kind, NUMBER_TYPES[kind].code
