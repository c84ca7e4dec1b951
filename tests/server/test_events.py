"""Log lines of two llama.cpp generations become typed events."""

from __future__ import annotations

import pytest

from llamatelemetry._units import MIB
from llamatelemetry.server.events import (
    BadModel,
    BindFailed,
    BufferSize,
    Event,
    Listening,
    Loading,
    Notice,
    OutOfMemory,
    UnknownFlag,
    read_event,
)

STAMP = "0.00.001.636 I "

LINES: list[tuple[str, Event | None]] = [
    # b11434, as its executable logs
    (STAMP + "srv    load_model: loading model 'm/x y.gguf'", Loading("m/x y.gguf")),
    (
        STAMP + "load_tensors:   CPU_Mapped model buffer size =    16.19 MiB",
        BufferSize("CPU_Mapped", "model", round(16.19 * MIB)),
    ),
    (
        STAMP + "llama_context:        CPU  output buffer size =     0.24 MiB",
        BufferSize("CPU", "output", round(0.24 * MIB)),
    ),
    (
        STAMP + "llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB",
        BufferSize("CUDA0", "KV", 512 * MIB),
    ),
    (
        STAMP + "sched_reserve:        CPU compute buffer size =     1.89 MiB",
        BufferSize("CPU", "compute", round(1.89 * MIB)),
    ),
    (
        STAMP + "srv  llama_server: listening on http://127.0.0.1:18101",
        Listening("http://127.0.0.1:18101"),
    ),
    (
        "0.00.002.000 E srv  start: couldn't bind HTTP server socket, "
        "hostname: 127.0.0.1, port: 18101",
        BindFailed("127.0.0.1", 18101),
    ),
    (
        "0.00.001.000 E gguf_init_from_file: failed to open GGUF file 'no.gguf' "
        "(No such file or directory)",
        BadModel("failed to open GGUF file 'no.gguf' (No such file or directory)"),
    ),
    (
        "E gguf_init_from_reader: tensor 'token_embd.weight' data is not within the "
        "file bounds, model is corrupted or incomplete",
        BadModel(
            "tensor 'token_embd.weight' data is not within the file bounds, "
            "model is corrupted or incomplete"
        ),
    ),
    (
        "E llama_model_load: error loading model: error loading model hyperparameters:"
        " key not found in model: llama.context_length",
        BadModel(
            "error loading model hyperparameters: key not found in model: "
            "llama.context_length"
        ),
    ),
    (
        "error: invalid argument: --bogus",
        UnknownFlag("--bogus", "error: invalid argument: --bogus"),
    ),
    (
        'error while handling argument "-c": stoi',
        UnknownFlag("-c", 'error while handling argument "-c": stoi'),
    ),
    (
        "E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 13824.50 MiB on "
        "device 1: cudaMalloc failed: out of memory",
        OutOfMemory("CUDA1", round(13824.5 * MIB)),
    ),
    ("E llama_model_load: unable to allocate CUDA0 buffer", OutOfMemory("CUDA0", None)),
    ("failed to allocate buffer for kv cache", OutOfMemory(None, None)),
    ("graph_reserve: failed to allocate compute pp buffers", OutOfMemory(None, None)),
    ("CUDA error: out of memory", OutOfMemory(None, None)),
    (
        "W srv    load_model: the slot context (2048) exceeds the training context of "
        "the model (1024) - capping",
        Notice(
            "context: a slot has 1024 tokens and not 2048, which is more than the "
            "model was trained on"
        ),
    ),
    # b7710, without a stamp
    (
        "llama_context:        CPU compute buffer size =    63.50 MiB",
        BufferSize("CPU", "compute", round(63.5 * MIB)),
    ),
    (
        "init: server is listening on http://127.0.0.1:18130 - starting the main loop",
        Listening("http://127.0.0.1:18130"),
    ),
    # Nothing that could be taken for an event
    ("slot print_timing: id  0 | task 0 | prompt eval time = 10.20 ms", None),
    ("srv log_server_r: request: GET /health 127.0.0.1 200", None),
    ("", None),
]


@pytest.mark.parametrize(("line", "event"), LINES)
def test_a_line_says_what_it_says(line: str, event: Event | None) -> None:
    """Each known line gives its event with its figures, any other line none."""
    assert read_event(line) == event
