"""Turn a checkpoint folder into a GGUF file that llama.cpp loads.

The functions can be used on their own: ``load_checkpoint``, ``quantize_tensors`` and
``write_gguf``. PyTorch is not needed here.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NAME = "llamatelemetry demo"
DESCRIPTION = (
    "A memorised set of answers on GGUF, quantization, the T4, llama.cpp and "
    "llamatelemetry. "
    "It proves that the machinery works; it is not an assistant."
)
TENSOR_TYPES = {
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


@dataclass(frozen=True)
class Checkpoint:
    """What training leaves behind.

    Attributes:
        weights: Arrays under their GGUF tensor names.
        config: The shape of the network.
        tokenizer: The content of ``tokenizer.json``.
    """

    weights: dict[str, np.ndarray]
    config: dict[str, Any]
    tokenizer: dict[str, Any]


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder written by ``train.py``."""
    with np.load(folder / "weights.npz") as archive:
        weights = {name: archive[name] for name in archive.files}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return Checkpoint(weights, config, tokenizer)


def quantize_tensors(
    weights: dict[str, np.ndarray], type_name: str
) -> dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]:
    """Quantize every matrix; vectors (the norms) stay F32, as llama.cpp expects.

    Args:
        weights: Arrays under their GGUF tensor names.
        type_name: ``f16``, ``q8_0`` or ``q4_0``.

    Returns:
        The raw data and the type of each tensor.
    """
    tensors = {}
    for name, values in weights.items():
        wanted = (
            TENSOR_TYPES[type_name]
            if values.ndim == 2
            else gguf.GGMLQuantizationType.F32
        )
        tensors[name] = (
            gguf.quants.quantize(values.astype(np.float32), wanted),
            wanted,
        )
    return tensors


def add_general(writer: gguf.GGUFWriter, type_name: str) -> None:
    """Add what a person wants to know about the file."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(NAME)
    writer.add_author("The llamatelemetry authors")
    writer.add_description(DESCRIPTION)
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_file_type(FILE_TYPES[type_name])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Add the hyperparameters of the llama architecture."""
    writer.add_vocab_size(config["vocabulary_size"])
    writer.add_context_length(config["context_length"])
    writer.add_embedding_length(config["embedding_length"])
    writer.add_block_count(config["block_count"])
    writer.add_feed_forward_length(config["feed_forward_length"])
    writer.add_head_count(config["head_count"])
    writer.add_head_count_kv(config["head_count_kv"])
    writer.add_rope_dimension_count(config["embedding_length"] // config["head_count"])
    writer.add_rope_freq_base(config["rope_base"])
    writer.add_layer_norm_rms_eps(config["norm_epsilon"])


def add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: dict[str, Any], vocabulary_size: int
) -> None:
    """Add the vocabulary, the merges, the special tokens and the chat template."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    special = {
        entry["content"] for entry in tokenizer["added_tokens"] if entry["special"]
    }
    tokens = [f"<|unused_{place}|>" for place in range(vocabulary_size)]
    types = [gguf.TokenType.UNUSED] * vocabulary_size
    for token, place in vocabulary.items():
        tokens[place] = token
        types[place] = (
            gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
        )
    merges = [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in tokenizer["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary["<|endoftext|>"])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(vocabulary["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(path: Path, checkpoint: Checkpoint, type_name: str) -> int:
    """Write a checkpoint as a GGUF file.

    The output layer is left out: llama.cpp then reuses the token embedding, as the
    network does.

    Args:
        path: The file to write; its folder is made if need be.
        checkpoint: The trained network and its tokenizer.
        type_name: ``f16``, ``q8_0`` or ``q4_0``.

    Returns:
        The size of the file in bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    add_general(writer, type_name)
    add_shape(writer, checkpoint.config)
    add_tokenizer(writer, checkpoint.tokenizer, checkpoint.config["vocabulary_size"])
    for name, (data, tensor_type) in quantize_tensors(
        checkpoint.weights, type_name
    ).items():
        writer.add_tensor(name, data, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint"))
    parser.add_argument("--type", choices=sorted(TENSOR_TYPES), default="q8_0")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    size = write_gguf(
        arguments.out, load_checkpoint(arguments.checkpoint), arguments.type
    )
    print(f"{arguments.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
