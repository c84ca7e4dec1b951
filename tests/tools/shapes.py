"""Model files of real shapes whose data is a hole: an 8B takes 3 MB of disk.

llama.cpp maps such a file and allocates everything beside the weights as for the real
model, which makes it the oracle for memory plans. The shapes are data
(``tests/data/shapes.json``): metadata, and tensors with a range of layers in braces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

SHAPES = Path(__file__).parents[1] / "data" / "shapes.json"


@dataclass(frozen=True)
class Shape:
    """What one model's header says, and whether it was set aside for the last check."""

    name: str
    architecture: str
    aside: bool
    vocabulary: int
    metadata: dict[str, Any]
    tensors: dict[str, tuple[str, list[int]]]

    def tensor_table(self) -> Iterator[tuple[str, str, list[int]]]:
        """Yield the name, type and shape (fastest axis first) of each tensor."""
        for pattern, (kind, shape) in self.tensors.items():
            found = re.search(r"\{(.*)\}", pattern)
            if found is None:
                yield pattern, kind, shape
                continue
            for layer in layers_of(found.group(1)):
                yield pattern.replace(found.group(0), str(layer)), kind, shape


def read_shapes() -> dict[str, Shape]:
    """Return all shapes by name."""
    return {entry["name"]: Shape(**entry) for entry in json.loads(SHAPES.read_text())}


def without_last_layers(shape: Shape, layers: int) -> Shape:
    """Return the shape with its first layers only."""
    tensors = {}
    for pattern, entry in shape.tensors.items():
        found = re.search(r"\{(.*)\}", pattern)
        kept = (
            [number for number in layers_of(found[1]) if number < layers]
            if found
            else []
        )
        if found is None:
            tensors[pattern] = entry
        elif kept:
            tensors[pattern.replace(found[0], f"{{{','.join(map(str, kept))}}}")] = (
                entry
            )
    metadata = {
        key: value[:layers] if isinstance(value, list) else value
        for key, value in shape.metadata.items()
    }
    return replace(shape, tensors=tensors, metadata={**metadata, "block_count": layers})


def write_shape(
    shape: Shape,
    path: Path,
    *,
    metadata: dict[str, Any] | None = None,
    kind: str | None = None,
    tokens: bool = True,
) -> Path:
    """Write the model file with a hole for its data, and return its path.

    Its ``general.type`` is ``kind``, where one is given: "adapter", "mmproj". Without
    ``tokens`` no engine loads it, but its header is there in a tenth of the time.
    """
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    if kind is not None:
        writer.add_type(kind)
    for key, value in {**shape.metadata, **(metadata or {})}.items():
        _add(writer, f"{shape.architecture}.{key}", value)
    if tokens:
        _add_vocabulary(writer, shape)
    for name, stored, axes in shape.tensor_table():
        _add_tensor(writer, name, stored, axes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    end = sum(
        gguf.GGUFWriter.ggml_pad(tensor.nbytes, writer.data_alignment)
        for tensor in writer.tensors[0].values()
    )
    writer.close()
    with path.open("r+b") as file:
        file.seek(0, 2)
        start = gguf.GGUFWriter.ggml_pad(file.tell(), writer.data_alignment)
        file.truncate(start + end)
    return path


def layers_of(ranges: str) -> Iterator[int]:
    """Yield the layers that the braces of a tensor's pattern name: ``0-3,7``."""
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, kind: str, axes: list[int]) -> None:
    raw = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[raw]
    count = int(np.prod(axes))
    shape = [axes[0] // block * size, *axes[1:]]
    floats = {"F32": np.float32, "F16": np.float16}
    if kind in floats:
        shape = axes
    writer.add_tensor_info(
        name,
        shape[::-1],
        np.dtype(floats.get(kind, np.uint8)),
        count // block * size,
        raw_dtype=raw,
    )


def _add_vocabulary(writer: gguf.GGUFWriter, shape: Shape) -> None:
    wordpiece = shape.architecture in ("bert", "nomic-bert")
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if wordpiece else []
    tokens = first + [chr(256 + byte) for byte in range(256)]
    tokens += [f"t{number}" for number in range(shape.vocabulary - len(tokens))]
    writer.add_tokenizer_model("bert" if wordpiece else "gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens[: shape.vocabulary])
    writer.add_token_types([1] * shape.vocabulary)
    if wordpiece:
        types = shape.tensors["token_types.weight"][1][1]
        writer.add_uint32("tokenizer.ggml.token_type_count", types)
        for role, token in (
            ("unknown", "[UNK]"),
            ("seperator", "[SEP]"),  # as the format spells it
            ("padding", "[PAD]"),
            ("cls", "[CLS]"),
            ("mask", "[MASK]"),
        ):
            key = f"tokenizer.ggml.{role}_token_id"
            writer.add_uint32(key, tokens.index(token))
    else:
        writer.add_token_merges(["Ā ā"])
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(0)
