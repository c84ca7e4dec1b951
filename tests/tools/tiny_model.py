"""Writes a tiny random chat model, small and fast enough for any test.

The model is real in everything but its weights: llama architecture, byte-level BPE
tokenizer that round-trips every text, ChatML template. Its text is noise, so tests
look at shapes and counts, or force the text with a grammar.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, as Qwen and many others use it."""

THINKING_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message.reasoning_content is string %}"
    "{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""ChatML with Qwen3's switch: thinks unless ``enable_thinking`` is false.

llama-server learns from it how reasoning is written, and takes it out of the text.
"""

_MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("t", "h"), ("i", "n")]
_CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_tiny_model(
    path: Path,
    *,
    seed: int = 0,
    context_length: int = 2048,
    layers: int = 2,
    width: int = 64,
    chat_template: str = CHAT_TEMPLATE,
    name: str = "tiny-random",
) -> Path:
    """Write a tiny random llama model in GGUF and return its path.

    Args:
        path: Where to write; an existing file is overwritten.
        seed: Equal seeds give equal files.
        context_length: What the header names as the training context, in tokens.
        layers: Transformer blocks.
        width: Embedding length; a multiple of 32.
        chat_template: The Jinja template of the model.
        name: ``general.name`` of the header.

    Returns:
        ``path``, for use in one expression.
    """
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    vocabulary_size = _add_tokenizer(writer, chat_template)
    feed_forward = width * 2
    writer.add_vocab_size(vocabulary_size)
    writer.add_context_length(context_length)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(width // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tensors(writer, np.random.default_rng(seed), vocabulary_size, layers, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_symbols() -> list[str]:
    """Return the printable stand-in of each of the 256 bytes, as GPT-2 defines it."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    symbols, shift = [], 0
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(256 + shift))
            shift += 1
    return symbols


def _add_tokenizer(writer: gguf.GGUFWriter, chat_template: str) -> int:
    """Describe a byte-level BPE tokenizer and return the size of its vocabulary."""
    merged = ["".join(pair) for pair in _MERGES]
    tokens = [*_byte_symbols(), *merged, *_CONTROL_TOKENS]
    types = [gguf.TokenType.NORMAL] * (256 + len(merged))
    types += [gguf.TokenType.CONTROL] * len(_CONTROL_TOKENS)
    while len(tokens) % 32:  # rows that any block quantization can hold
        tokens.append(f"<|unused{len(tokens)}|>")
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in _MERGES])
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template)
    return len(tokens)


def _add_tensors(
    writer: gguf.GGUFWriter,
    generator: np.random.Generator,
    vocabulary_size: int,
    layers: int,
    width: int,
) -> None:
    """Add random weights; the output matrix is tied to the token embedding."""

    def matrix(name: str, rows: int, columns: int) -> None:
        values = generator.standard_normal((rows, columns)) * columns**-0.5
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))

    matrix("token_embd", vocabulary_size, width)
    norm("output_norm")
    for layer in range(layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        matrix(f"{block}.attn_q", width, width)
        matrix(f"{block}.attn_k", width // 2, width)
        matrix(f"{block}.attn_v", width // 2, width)
        matrix(f"{block}.attn_output", width, width)
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.ffn_gate", width * 2, width)
        matrix(f"{block}.ffn_up", width * 2, width)
        matrix(f"{block}.ffn_down", width, width * 2)
