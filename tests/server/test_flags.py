"""Flags: what each generation of engines accepts, and a configuration in its words."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server import Engine, ServerConfig
from llamatelemetry.server.engine import build_environment
from llamatelemetry.server.flags import (
    FLAG_OF_SPELLING,
    FLAGS,
    TODAY,
    Capabilities,
    build_arguments,
    read_capabilities,
)

HELP_FOLDER = Path(__file__).parents[1] / "data" / "help"
# b7710 has the flags of b7760; b5353 is of May 2025.
GENERATIONS = ("b5353", "b7710", "b9538", "b11434")

CONFIGS = {
    "default": ServerConfig("model.gguf"),
    "two GPUs": ServerConfig(
        "model.gguf", n_gpu_layers=99, tensor_split="0.5,0.5", flash_attn=True
    ),
    "one GPU": ServerConfig("model.gguf", split_mode="none", main_gpu=1),
    "memory": ServerConfig("model.gguf", mlock=True, no_mmap=True, cache_ram=0),
    "embeddings": ServerConfig("model.gguf", embeddings=True, pooling="mean"),
    "little": ServerConfig("model.gguf", metrics=False, slots=False, jinja=False),
    "quantized": ServerConfig(
        "model.gguf", flash_attn=True, cache_type_k="q8_0", cache_type_v="q4_0"
    ),
    "files": ServerConfig(
        "model.gguf",
        lora_path=["a.gguf", "b.gguf"],
        mmproj_path="mmproj.gguf",
        slot_save_path="slots",
        rerank=True,
        reasoning_format="none",
        threads_batch=2,
    ),
}


def capabilities_of(generation: str) -> Capabilities:
    return read_capabilities((HELP_FOLDER / f"{generation}.txt").read_text())


def value_of(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_slots_with_embeddings_share_one_cache(generation: str) -> None:
    """It is said to each engine that can be told; those before have no other."""
    capabilities = capabilities_of(generation)
    config = ServerConfig("model.gguf", embeddings=True, parallel=4)

    arguments = build_arguments(config, capabilities)

    assert ("--kv-unified" in arguments) is capabilities.accepts("--kv-unified")
    assert capabilities.accepts("--kv-unified") is (generation != "b5353")


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig("model.gguf", embeddings=True),
        ServerConfig("model.gguf", parallel=4),
        ServerConfig("model.gguf", rerank=True, parallel=4),
    ],
    ids=["one slot", "no embeddings", "rerank"],
)
def test_other_slots_keep_their_own_cache(config: ServerConfig) -> None:
    """Without several slots and embeddings nothing is said of the cache."""
    assert not config.shares_cache
    assert "--kv-unified" not in build_arguments(config)


@pytest.mark.parametrize(
    ("extra", "shared"),
    [
        (["--kv-unified"], True),
        (["--kv_unified"], True),
        (["-kvu"], True),
        (["-no-kvu"], False),
        (["--no-kv-unified"], False),
        (["--kv-unified", "--no-kv-unified"], False),
    ],
)
@pytest.mark.parametrize("embeddings", [True, False])
def test_what_is_said_of_the_cache_counts(
    extra: list[str], shared: bool, embeddings: bool
) -> None:
    """The user's word is passed as it is, once, and decides."""
    config = ServerConfig(
        "model.gguf", embeddings=embeddings, parallel=4, extra_args=extra
    )

    assert config.shares_cache is shared
    assert [word for word in build_arguments(config) if "kv" in word] == extra


def test_every_spelling_means_one_thing() -> None:
    """No spelling stands twice in the table."""
    spellings = [spelling for flag in FLAGS for spelling in flag.spellings]

    assert sorted(set(spellings)) == sorted(spellings)


def test_every_field_of_the_table_is_a_field() -> None:
    """The table names ServerConfig's fields; three fields are of another kind."""
    named = {flag.field for flag in FLAGS if flag.field is not None}
    fields = {item.name for item in dataclasses.fields(ServerConfig)}

    assert {"extra_args", "visible_devices", "notes"} == fields - named
    assert named <= fields


def test_today_is_the_newest_recorded_help() -> None:
    """TODAY, which comes from the table, equals what b11434's own help says."""
    assert capabilities_of("b11434") == TODAY


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_table_knows_every_recorded_flag(generation: str) -> None:
    """No flag of any recorded generation is missing in the table."""
    assert capabilities_of(generation).flags <= set(FLAG_OF_SPELLING)


@pytest.mark.parametrize("path", sorted(HELP_FOLDER.iterdir()), ids=lambda p: p.stem)
def test_recorded_helps_name_no_machine(path: Path) -> None:
    """A recorded help holds no path of the machine it was recorded on."""
    assert re.findall(r"/(?:home|root|tmp|work|usr)/\S*", path.read_text()) == []


@pytest.mark.parametrize(
    ("generation", "accepted", "refused"),
    [
        ("b5353", "--no-mmap --mlock --slots --no-webui", "--load-mode --fit --ui"),
        ("b7710", "--no-mmap --fit --cache-ram --jinja", "--load-mode --ui"),
        ("b9538", "--no-mmap --ui --sse-ping-interval", "--load-mode --log-jsonl"),
        ("b11434", "--load-mode --log-jsonl --no-webui", "--no-mmap --draft-max"),
    ],
)
def test_flags_are_read(generation: str, accepted: str, refused: str) -> None:
    """What a generation added or dropped is seen in its help."""
    capabilities = capabilities_of(generation)

    assert [f for f in accepted.split() if not capabilities.accepts(f)] == []
    assert [f for f in refused.split() if capabilities.accepts(f)] == []


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ("b5353", (False, False, False, None)),
        ("b7710", (True, False, True, None)),
        ("b9538", (True, True, True, 4)),
        ("b11434", (True, True, True, 4)),
    ],
)
def test_values_are_read(
    generation: str, expected: tuple[bool, bool, bool, int | None]
) -> None:
    """How flags take their values is read too, not only which there are."""
    capabilities = capabilities_of(generation)

    assert expected == (
        capabilities.flash_attention_value,
        "tensor" in capabilities.split_modes,
        capabilities.comma_lists,
        capabilities.memory_verbosity,
    )
    assert "iq4_nl" in capabilities.cache_types


@pytest.mark.parametrize("text", ["", "usage: ls [OPTION]... [FILE]...\n  --model\n"])
def test_another_programs_help_is_refused(text: str) -> None:
    """The help of a program that is no llama-server is told apart."""
    with pytest.raises(ConfigurationError, match="not the --help of a llama-server"):
        read_capabilities(text)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_only_accepted_flags_are_written(generation: str, name: str) -> None:
    """Each configuration is written in words each generation understands."""
    capabilities = capabilities_of(generation)
    arguments = build_arguments(
        CONFIGS[name], capabilities, cache_ram=100, memory_log=True
    )
    flags = {word for word in arguments if word.startswith("--")}

    assert set() == flags - capabilities.flags


@pytest.mark.parametrize("name", CONFIGS)
def test_a_running_engine_accepts_the_arguments(
    engine: Engine, name: str, tmp_path: Path
) -> None:
    """Both real engines take every configuration's arguments without a word."""
    config = CONFIGS[name]
    if config.slot_save_path is not None:
        config = config.replace(slot_save_path=tmp_path)
    arguments = build_arguments(config, engine.capabilities(), memory_log=True)
    # --version checks the arguments before it and ends.
    done = subprocess.run(
        [*engine.command, *arguments, "--version"],
        env=build_environment(engine),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "")
    assert "DEPRECATED" not in done.stderr


def test_nothing_is_left_to_the_engine() -> None:
    """What llama-server would choose by itself is said: layers, slots, attention."""
    arguments = build_arguments(ServerConfig("folder/model.gguf"))

    assert value_of(arguments, "--n-gpu-layers") == "0"
    assert value_of(arguments, "--parallel") == "1"
    assert value_of(arguments, "--flash-attn") == "off"
    assert value_of(arguments, "--fit") == "off"
    assert value_of(arguments, "--port") == "8080"
    assert value_of(arguments, "--alias") == "model"


def test_a_small_batch_lowers_the_micro_batch() -> None:
    """n_ubatch is never passed above n_batch."""
    arguments = build_arguments(ServerConfig("model.gguf", n_batch=64))

    assert value_of(arguments, "--ubatch-size") == "64"


def test_the_key_is_never_an_argument() -> None:
    """The API key travels in the environment, whatever is written."""
    config = ServerConfig("model.gguf", api_key="sesame")

    assert "sesame" not in " ".join(build_arguments(config))
    assert "sesame" not in config.to_cli_args()


def test_without_a_model_no_model_is_passed() -> None:
    """A configuration without a model can be written; the model is left out."""
    assert not {"--model", "--alias"} & set(build_arguments(ServerConfig(None)))


@pytest.mark.parametrize(
    ("mlock", "no_mmap", "new", "old"),
    [
        (False, False, None, []),
        (True, False, "mmap+mlock", ["--mlock"]),
        (False, True, "none", ["--no-mmap"]),
        (True, True, "mlock", ["--mlock", "--no-mmap"]),
    ],
)
def test_reading_the_file_in_both_generations(
    mlock: bool, no_mmap: bool, new: str | None, old: list[str]
) -> None:
    """Mapping and locking are one flag with a mode today, and were two flags."""
    config = ServerConfig("model.gguf", mlock=mlock, no_mmap=no_mmap)
    today = build_arguments(config)
    before = build_arguments(config, capabilities_of("b7710"))

    assert (value_of(today, "--load-mode") if "--load-mode" in today else None) == new
    assert [word for word in before if word in {"--mlock", "--no-mmap"}] == old


def test_flash_attention_was_a_switch() -> None:
    """Builds of 2025 take a bare --flash-attn, and it is off unless given."""
    old = capabilities_of("b5353")
    config = ServerConfig("model.gguf", flash_attn=True)
    arguments = build_arguments(config, old)

    assert arguments[arguments.index("--flash-attn") + 1].startswith("--")
    assert "--flash-attn" not in build_arguments(ServerConfig("model.gguf"), old)


def test_several_adapters_in_both_generations() -> None:
    """Adapters are one comma list today, and were one flag each."""
    config = ServerConfig("model.gguf", lora_path=["a", "b"])

    assert value_of(build_arguments(config), "--lora") == "a,b"
    assert build_arguments(config, capabilities_of("b5353")).count("--lora") == 2


@pytest.mark.parametrize(
    ("changes", "option", "generation"),
    [
        ({"split_mode": "tensor", "flash_attn": True}, "--split-mode tensor", "b7710"),
        ({"fit": True}, "--fit on", "b5353"),
        ({"cache_ram": 100}, "--cache-ram 100", "b5353"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(
    changes: dict[str, object], option: str, generation: str
) -> None:
    """An option the engine does not have is an error that names both."""
    config = ServerConfig("model.gguf", **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=f"old-server does not .* {option}"):
        build_arguments(config, capabilities_of(generation), engine_name="old-server")


def test_a_cache_type_the_engine_lacks_is_refused() -> None:
    """A cache type missing in the engine's own list is an error before the start."""
    capabilities = dataclasses.replace(TODAY, cache_types=frozenset({"f16"}))
    with pytest.raises(ConfigurationError, match="--cache-type-k q8_0"):
        build_arguments(ServerConfig("m.gguf", cache_type_k="q8_0"), capabilities)


def test_the_caller_decides_what_is_passed() -> None:
    """Threads, cache and pooling can be decided by the caller at the start."""
    arguments = build_arguments(
        ServerConfig("model.gguf", threads=16, threads_batch=16),
        threads=2,
        threads_batch=1,
        cache_ram=300,
        pooling="mean",
        memory_log=True,
    )

    assert value_of(arguments, "--threads") == "2"
    assert value_of(arguments, "--threads-batch") == "1"
    assert value_of(arguments, "--cache-ram") == "300"
    assert value_of(arguments, "--pooling") == "mean"
    assert value_of(arguments, "--verbosity") == "4"


def test_the_configuration_counts_above_the_caller() -> None:
    """A cache size or pooling the configuration names is not replaced."""
    config = ServerConfig("model.gguf", cache_ram=0, pooling="last")
    arguments = build_arguments(config, cache_ram=300, pooling="mean")

    assert value_of(arguments, "--cache-ram") == "0"
    assert value_of(arguments, "--pooling") == "last"


@pytest.mark.parametrize(
    "extra", [["-ngl", "auto"], ["--n_gpu_layers", "auto"], ["--gpu-layers", "auto"]]
)
def test_extra_arguments_count_above_all(extra: list[str]) -> None:
    """A flag in extra_args, in any spelling, is not written a second time."""
    config = ServerConfig("model.gguf", n_gpu_layers=7, extra_args=extra)
    arguments = build_arguments(config)

    assert arguments[-2:] == extra
    assert "7" not in arguments
