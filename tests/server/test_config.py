"""ServerConfig: the reference's contract, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
from pathlib import Path

import pytest

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.server import ServerConfig

# The order, names and defaults of the API reference.
REFERENCE = {
    "model_path": inspect.Parameter.empty,
    "host": "127.0.0.1",
    "port": 8080,
    "n_gpu_layers": 0,
    "main_gpu": 0,
    "tensor_split": None,
    "split_mode": "layer",
    "context_size": 2048,
    "n_batch": 512,
    "flash_attn": False,
    "embeddings": False,
    "threads": 4,
    "api_key": None,
}


def test_reference_fields_are_positional_in_order() -> None:
    """The reference's fields come first, in its order, with its defaults."""
    parameters = list(inspect.signature(ServerConfig).parameters.values())
    first = parameters[: len(REFERENCE)]

    assert {item.name: item.default for item in first} == REFERENCE
    assert [item.name for item in first] == list(REFERENCE)
    assert all(item.kind is item.POSITIONAL_OR_KEYWORD for item in first)
    assert all(item.kind is item.KEYWORD_ONLY for item in parameters[len(REFERENCE) :])


def test_it_is_a_frozen_hashable_value() -> None:
    """Equal configurations are equal values, and none can be changed in place."""
    config = ServerConfig("a.gguf", lora_path=["x.gguf"], extra_args=["-v"])

    assert config == ServerConfig(
        Path("a.gguf"), lora_path=("x.gguf",), extra_args=("-v",)
    )
    assert len({config, config.replace()}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 65536},
        {"port": "8080"},
        {"port": True},
        {"n_gpu_layers": -1},
        {"main_gpu": 16},
        {"tensor_split": "half,half"},
        {"tensor_split": "0,0"},
        {"tensor_split": "1,-1"},
        {"tensor_split": "nan,1"},
        {"tensor_split": ",".join(["1"] * 17)},
        {"split_mode": "rows"},
        {"context_size": -1},
        {"n_batch": 0},
        {"threads": 0},
        {"flash_attn": "on"},
        {"host": ""},
        {"host": "127.0.0.1, ::1"},
        {"host": "127.0.0.1,::1"},
        {"host": "/tmp/server.sock"},
        {"model_path": ""},
        {"model_path": 7},
        {"alias": ""},
        {"alias": "a,b"},
        {"api_key": "one,two"},
        {"api_key": ""},
        {"api_key": "line\nbreak"},
        {"lora_path": "a,b.gguf"},
        {"lora_path": ["a.gguf", "b,c.gguf"]},
        {"cache_type_k": "q5"},
        {"cache_type_v": "q8_0"},
        {"cache_type_v": "q8_0", "flash_attn": False},
        {"split_mode": "tensor"},
        {"pooling": "max"},
        {"rerank": True, "pooling": "mean"},
        {"extra_args": "-v"},
        {"extra_args": [1]},
        {"extra_args": ["--api-key", "secret"]},
        {"extra_args": ["--api-key=secret"]},
        {"extra_args": ["--api_key", "secret"]},
        {"extra_args": ["--API-KEY", "secret"]},
        {"extra_args": ["--api-keys=secret"]},
        {"extra_args": ["--hf-token", "secret"]},
        {"extra_args": ["-hft", "secret"]},
        {"extra_args": ["--threads", "64"]},
        {"extra_args": ["a\0b"]},
        {"extra_args": {"-v"}},
        {"model_path": "a\0b"},
        {"lora_path": 5},
        {"lora_path": [5]},
        {"lora_path": b"x"},
        {"extra_args": ["--port", "9"]},
        {"extra_args": ["-m", "other.gguf"]},
        {"extra_args": ["--host", "0.0.0.0"]},
        {"parallel": 0},
        {"cache_ram": -1},
        {"reasoning_format": "shout"},
    ],
    ids=str,
)
def test_a_value_that_cannot_work_is_refused_by_name(wrong: dict[str, object]) -> None:
    """Each wrong value raises at construction, and the message names its field."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))) as caught:
        ServerConfig(**{"model_path": "model.gguf", **wrong})  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_the_key_is_in_no_repr_dictionary_argument_or_error() -> None:
    """An API key leaves a configuration only through its own attribute."""
    config = ServerConfig("m.gguf", api_key="hush-hush")
    with pytest.raises(ConfigurationError) as caught:
        config.replace(api_key="hush-hush,hush")

    shown = f"{config!r} {config} {config.to_dict()} {config.to_cli_args()}"
    assert "hush" not in shown + str(caught.value)
    assert config.api_key == "hush-hush"


def test_a_dictionary_round_trips_all_but_the_key() -> None:
    """to_dict and from_dict are inverse, through JSON, and the key is left out."""
    config = ServerConfig(
        Path("folder/m.gguf"),
        port=0,
        flash_attn=True,
        lora_path=["a.gguf", "b.gguf"],
        api_key="hush",
        extra_args=["--seed", "7"],
    )
    data = json.loads(json.dumps(config.to_dict()))

    assert "api_key" not in data
    assert ServerConfig.from_dict(data) == config.replace(api_key=None)
    assert ServerConfig.from_dict({**data, "api_key": "hush"}) == config


@pytest.mark.parametrize("text", ["", "-1", "0", "1,0", "GPU-0a,GPU-1b", "MIG-1/2"])
def test_visible_devices_are_cards(text: str) -> None:
    """What CUDA reads as cards, or as none, is taken as it is."""
    assert ServerConfig("m.gguf", visible_devices=text).visible_devices == text


@pytest.mark.parametrize("text", ["foo", " ", "all", "0,0", "a\nb", "0,", "0 1", "-2"])
def test_visible_devices_that_hide_all_cards_are_refused(text: str) -> None:
    """What CUDA would silently read as no card is a mistake."""
    with pytest.raises(ConfigurationError, match="visible_devices"):
        ServerConfig("m.gguf", visible_devices=text)


def test_notes_are_told_and_change_nothing() -> None:
    """Notes are no argument, are not compared, and do not outlive a change."""
    config = ServerConfig("m.gguf", notes=["two cards, 17 and 16 layers"])
    plain = ServerConfig("m.gguf")

    assert config.notes == ("two cards, 17 and 16 layers",)
    assert config == plain
    assert hash(config) == hash(plain)
    assert config.to_cli_args() == plain.to_cli_args()
    assert ServerConfig.from_dict(config.to_dict()).notes == config.notes
    assert config.replace(context_size=512).notes == ()
    with pytest.raises(ConfigurationError, match="notes"):
        ServerConfig("m.gguf", notes="one sentence")


def test_an_unknown_key_is_named_with_the_nearest_field() -> None:
    """A misspelled field is refused and the right one is proposed."""
    with pytest.raises(ConfigurationError, match="'n_ctx'"):
        ServerConfig.from_dict({"model_path": "m.gguf", "n_ctx": 1})
    with pytest.raises(ConfigurationError, match="no field 1"):
        ServerConfig.from_dict({1: 2})  # type: ignore[dict-item]
    with pytest.raises(ConfigurationError, match="dictionary"):
        ServerConfig.from_dict(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="did you mean 'context_size'"):
        ServerConfig("m.gguf").replace(contextsize=1)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("n_ctx", "context_size"), ("ctx_size", "context_size"), ("ngl", "n_gpu_layers")],
)
def test_llama_cpps_own_names_are_understood_in_errors(name: str, meant: str) -> None:
    """Who writes llama.cpp's name for a field is told this one's."""
    with pytest.raises(ConfigurationError, match=f"did you mean '{meant}'"):
        ServerConfig("m.gguf", **{name: 1})  # type: ignore[arg-type]


def test_the_argument_string_is_quoted_for_a_shell() -> None:
    """to_cli_args survives spaces and quotes in a path."""
    config = ServerConfig("my models/it's one.gguf")
    arguments = shlex.split(config.to_cli_args())

    assert arguments[arguments.index("--model") + 1] == "my models/it's one.gguf"


def test_off_and_none_are_said_and_not_left_to_the_engine() -> None:
    """flash_attn=False, n_gpu_layers=0, parallel=1 and fit=False are all passed."""
    text = f" {ServerConfig('m.gguf').to_cli_args()} "

    for said in (
        " --flash-attn off ",
        " --n-gpu-layers 0 ",
        " --parallel 1 ",
        " --fit off ",
        " --alias m ",
    ):
        assert said in text


def test_a_model_may_be_unknown_until_the_start() -> None:
    """Without a model there is no --model and no --alias."""
    text = ServerConfig(None).to_cli_args()

    assert "--model" not in text
    assert "--alias" not in text


def test_the_alias_of_shards_is_the_model() -> None:
    """The number of a shard is no part of the model's name."""
    config = ServerConfig("x/Qwen-Q4_K_M-00001-of-00003.gguf")

    assert config.model_alias == "Qwen-Q4_K_M"
    assert config.replace(alias="mine").model_alias == "mine"
    assert ServerConfig("a,b.gguf").model_alias == "a_b"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:81"),
        ("0.0.0.0", "http://127.0.0.1:81"),
        ("::1", "http://[::1]:81"),
        ("::", "http://[::1]:81"),
    ],
)
def test_the_url_can_be_reached_from_here(host: str, url: str) -> None:
    """An address that means "all" is replaced by one that can be connected to."""
    assert ServerConfig("m.gguf", host=host, port=81).url == url


def test_the_repr_shows_what_differs_from_the_defaults() -> None:
    """A repr is short, and hides the key but tells that there is one."""
    config = ServerConfig("m.gguf", port=0, api_key="hush")

    assert repr(config) == "ServerConfig(model_path='m.gguf', port=0, api_key='***')"
