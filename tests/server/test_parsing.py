"""Parsing: llama-server's arguments, old and new, become a ServerConfig."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server import ServerConfig
from llamatelemetry.server.flags import build_arguments
from llamatelemetry.server.parsing import parse_arguments


def test_what_is_not_said_is_the_default() -> None:
    """llama-server's own defaults do not count, ServerConfig's do."""
    assert ServerConfig("model.gguf") == parse_arguments("-m model.gguf")


def test_a_typical_command_line() -> None:
    """Short and long flags set the fields they stand for."""
    config = parse_arguments(
        "-m 'my model.gguf' -ngl 99 -c 8192 -fa on -ts 0.5,0.5 -sm row -np 2 --port 0 "
        "--host 0.0.0.0 -b 1024 -ub 256 -t 2 -tb 3 -ctk q8_0 --embedding --no-slots"
    )

    assert config == ServerConfig(
        "my model.gguf",
        n_gpu_layers=99,
        context_size=8192,
        flash_attn=True,
        tensor_split="0.5,0.5",
        split_mode="row",
        parallel=2,
        port=0,
        host="0.0.0.0",
        n_batch=1024,
        n_ubatch=256,
        threads=2,
        threads_batch=3,
        cache_type_k="q8_0",
        embeddings=True,
        slots=False,
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-fa", "--flash-attn on"),
        ("-fa -ngl 3", "-ngl 3 -fa 1"),
        ("--flash-attn -c 512", "-c 512 -fa true"),
        ("--mlock", "--load-mode mmap+mlock"),
        ("--no-mmap", "-lm none"),
        ("--mlock --no-mmap", "--load-mode mlock"),
        ("--mmap", "--load-mode auto"),
        ("--ctx_size 512", "--ctx-size 512"),
        ("--lora a --lora b", "--lora a,b"),
        ("--gpu-layers all", "-ngl 99"),
        ("-ngl -2", "-ngl all"),
        ("--reranking", "--rerank"),
        ("--embedding", "--embeddings"),
        ("-a model", ""),
        ("-fit off", "--fit 0"),
        ("--no-webui", ""),
    ],
)
def test_old_and_new_spellings_are_equal(old: str, new: str) -> None:
    """A line written for an older build gives the same configuration."""
    assert parse_arguments(f"{new} -m model.gguf") == parse_arguments(
        f"-m model.gguf {old}"
    )


@pytest.mark.parametrize(
    "extra",
    [
        ["--temp", "-1"],
        ["--grammar", "-m"],
        ["--chat-template-kwargs", '{"a": "-c 5"}'],
        ["--control-vector-layer-range", "1", "3"],
        ["--no-warmup", "--props"],
        ["--flag-of-tomorrow", "1", "two", "--top-k", "3"],
        ["--alias", "two,names"],
        ["--load-mode", "dio"],
        ["-np", "-1"],
        ["--cache-ram", "-1"],
        ["--webui"],
    ],
)
def test_what_has_no_field_is_passed_on(extra: list[str]) -> None:
    """Flags without a field, and values no field can hold, go on unchanged."""
    config = parse_arguments(["-m", "model.gguf", *extra, "-c", "512"])

    assert tuple(extra) == config.extra_args
    assert config.replace(extra_args=()) == ServerConfig("model.gguf", context_size=512)
    assert build_arguments(config)[-len(extra) :] == extra


def test_as_many_layers_as_fit() -> None:
    """``-ngl auto`` is passed on, and turns fitting on, which finds the number."""
    config = parse_arguments("-m model.gguf -ngl auto")
    arguments = build_arguments(config)

    assert config.fit
    assert arguments[-2:] == ["-ngl", "auto"]
    assert "--n-gpu-layers" not in arguments


def test_attention_as_the_engine_likes() -> None:
    """``-fa auto`` is passed on, and counts as on: a quantized cache goes with it."""
    config = parse_arguments("-m model.gguf -fa auto -ctv q8_0")
    arguments = build_arguments(config)

    assert config.flash_attn
    assert arguments[-2:] == ["-fa", "auto"]
    assert "--flash-attn" not in arguments


def test_the_key_is_moved() -> None:
    """``--api-key`` becomes the field, which travels in the environment."""
    config = parse_arguments("-m model.gguf --api-key sesame")

    assert config.api_key == "sesame"
    assert "sesame" not in " ".join(build_arguments(config))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "name no model"),
        ("-c 512", "name no model"),
        ("-hf owner/repo", "name no model"),
        ("-m", "-m needs a value"),
        ("-m model.gguf -c", "-c needs a value"),
        ("-m model.gguf -c many", "-c cannot be 'many'.* whole number"),
        ("-m model.gguf -ngl some", "-ngl cannot be 'some'"),
        ("-m model.gguf -fit maybe", "write on or off"),
        ("-m model.gguf --port=8080", "does not take --port=.*write --port 8080"),
        ("-m model.gguf --port 99999", "port cannot be 99999"),
        ("-m model.gguf -sm up", "split_mode cannot be 'up'"),
        ("-m model.gguf --help", "--help prints something"),
        ("-m model.gguf --list-devices", "--list-devices prints something"),
        ("llama-server -m model.gguf", "'llama-server' belongs to no flag"),
        ("-m model.gguf 'open", "cannot be split"),
    ],
)
def test_mistakes_are_named(line: str, message: str) -> None:
    """What cannot be understood is an error that says which word and why."""
    with pytest.raises(ConfigurationError, match=message):
        parse_arguments(line)


def test_a_mistake_does_not_show_the_key() -> None:
    """A key written the wrong way is not repeated by the error."""
    with pytest.raises(ConfigurationError) as caught:
        parse_arguments("-m model.gguf --api-key=sesame")

    assert "sesame" not in str(caught.value)


CHOICES: dict[str, Sequence[Any]] = {
    "model_path": ["m.gguf", "a folder/my model-Q4.gguf", "-dash.gguf"],
    "host": ["127.0.0.1", "0.0.0.0", "::1"],
    "port": [0, 1, 8080, 65535],
    "n_gpu_layers": [0, 1, 99],
    "main_gpu": [0, 1, 15],
    "tensor_split": [None, "0.5,0.5", "1/2/3"],
    "split_mode": ["none", "layer", "row"],
    "context_size": [0, 2048, 131072],
    "n_batch": [512, 2048],
    "n_ubatch": [1, 128, 512],
    "flash_attn": [False, True],
    "embeddings": [False, True],
    "threads": [1, 4, 96],
    "threads_batch": [None, 1, 8],
    "parallel": [1, 4],
    "lora_path": [None, "one.gguf", ("one.gguf", "with space.gguf")],
    "mmproj_path": [None, "mmproj.gguf"],
    "mlock": [False, True],
    "no_mmap": [False, True],
    "cache_type_k": ["f16", "q8_0", "bf16"],
    "cache_type_v": ["f16", "f32"],
    "pooling": [None, "rank"],
    "rerank": [False, True],
    "alias": [None, "name", "another name"],
    "slots": [False, True],
    "jinja": [False, True],
    "reasoning_format": [None, "none", "deepseek", "auto"],
    "slot_save_path": [None, "slots", "folder/with space/"],
    "device": [None, "none", "CUDA0,CUDA1"],
    "fit": [False, True],
    "cache_ram": [None, 0, 1024],
    "extra_args": [(), ("--props",), ("--temp", "-0.5", "--flag-of-tomorrow", "x")],
}


def test_every_configuration_survives_being_written_and_read() -> None:
    """parse(build(config)) is config again, as text too; metrics and key aside."""
    chance = random.Random(20261122)
    for _ in range(500):
        values = {name: chance.choice(few) for name, few in CHOICES.items()}
        config = ServerConfig(**values)

        assert config == parse_arguments(build_arguments(config))
        assert config == parse_arguments(config.to_cli_args())


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("--embeddings -np 4 --kv-unified", ()),
        ("--kv-unified --embeddings -np 4 --props", ("--props",)),
        ("--embeddings --kv-unified", ("--kv-unified",)),
        ("-np 4 --kv-unified", ("--kv-unified",)),
        ("--embeddings -np 4 -no-kvu", ("-no-kvu",)),
        ("--embeddings -np 4 --kv-unified -no-kvu", ("--kv-unified", "-no-kvu")),
    ],
)
def test_a_cache_that_is_shared_anyway_is_not_kept(
    arguments: str, extra: tuple[str, ...]
) -> None:
    """--kv-unified goes where the configuration says it itself, and only there."""
    assert parse_arguments(f"-m model.gguf {arguments}").extra_args == extra


def test_every_field_is_in_the_round_trip() -> None:
    """The round trip leaves out four fields only: arguments cannot tell them."""
    fields = set(ServerConfig("model.gguf").to_dict()) | {"api_key"}

    cannot_tell = {"metrics", "api_key", "visible_devices", "notes"}
    assert cannot_tell == fields - set(CHOICES)


@pytest.mark.parametrize("count", ["-1", "0"])
def test_as_many_threads_as_there_are_is_a_value(count: str) -> None:
    """llama-server's -1 becomes the most; what is passed later is what can be used."""
    config = parse_arguments(f"-m model.gguf -t {count} -tb {count}")

    assert (config.threads, config.threads_batch) == (4096, 4096)
    assert config.extra_args == ()


@pytest.mark.parametrize("wrong", [None, b"-m model.gguf", ["-m", 7], 5])
def test_arguments_that_are_no_text_are_refused(wrong: object) -> None:
    """What is neither a text nor a list of texts is an error that says so."""
    with pytest.raises(ConfigurationError, match="must be text"):
        parse_arguments(wrong)  # type: ignore[arg-type]
