"""``llamatelemetry plan``: will it fit, and what would instead?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shapes import read_shapes, write_shape
from stand_in_hub import HubFile, Repository, StandInHub

from llamatelemetry._plan_advice import recommended
from llamatelemetry.cli import main
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.gguf.memory import T4_FREE_BYTES, parse_gpus, plan_memory
from llamatelemetry.server import ServerConfig
from llamatelemetry.setup.catalog import find_model

REPO = "somebody/Qwen3-14B-GGUF"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 14 billion weights, in a sparse file."""
    folder = tmp_path_factory.mktemp("plan")
    return write_shape(read_shapes()["qwen3-14b"], folder / "model.gguf")


@pytest.fixture(scope="module")
def header(model: Path) -> tuple[bytes, int]:
    """The model's header, and how many zero bytes of data follow."""
    size = model.stat().st_size
    with model.open("rb") as file:
        beginning = file.read(16 * 2**20)
    return beginning, size - len(beginning)


def test_it_fits_two_t4s(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table names both cards, the verdict the largest context; exit code 0."""
    code = main(["plan", str(model)])
    said = capsys.readouterr().out

    assert code == 0
    assert "CUDA0" in said
    assert "CUDA1" in said
    assert "It fits; up to 40,960 tokens" in said
    assert "estimated" in said


def test_it_does_not_fit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too small a card gives exit code 3, what is lacking, and what would fit."""
    code = main(["plan", str(model), "--gpus", "1x12", "--ctx", "40960"])
    said = capsys.readouterr().out

    assert code == 3
    assert "It does not fit: CUDA0 needs" in said
    assert "tokens of context would fit" in said
    assert "On two such cards it fits." in said
    assert "With -ngl " in said
    assert "Smaller models of the catalog that may fit (estimated): gemma-4-12b" in said


def test_a_smaller_cache_is_offered(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a q8_0 cache makes it fit, that is said."""
    assert main(["plan", str(model), "--gpus", "1xt4", "-c", "40k"]) == 3
    assert "With --cache-type q8_0 it fits." in capsys.readouterr().out


def test_a_name_of_the_catalog_is_enough(
    hub: StandInHub, header: tuple[bytes, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The catalog knows the repository and the file of a name, here and in Python."""
    entry = find_model("qwen3-14b")
    files = {entry.files[0].path: HubFile(*header)}
    hub.repositories[entry.repo] = Repository("a" * 40, files)

    assert main(["plan", "qwen3-14b"]) == 0
    assert "It fits" in capsys.readouterr().out
    assert plan_memory("qwen3-14b").architecture == "qwen3"


def test_a_repository_is_enough(
    hub: StandInHub, header: tuple[bytes, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a file, the usual quantization of a repository is planned."""
    hub.repositories[REPO] = repository(header)

    assert main(["plan", REPO]) == 0
    assert "It fits" in capsys.readouterr().out


def test_what_cannot_be_found_out_is_no_verdict(
    hub: StandInHub, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that fails is exit code 1, never that of a model that does not fit."""
    hub.fail_next("hub", "status", times=20, status=500)

    assert main(["plan", f"{REPO}:Q4_K_M"]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_json_is_for_programs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints bytes, the verdict as a truth value, and nothing else."""
    main(["plan", str(model), "--json", "--cache", "q8_0", "--slots", "2"])
    plan = json.loads(capsys.readouterr().out)

    assert plan["fits"] is True
    assert plan["max_context"] == 2 * 40960
    assert [place["device"] for place in plan["devices"]] == ["CUDA0", "CUDA1", "host"]
    assert plan["verdict"].startswith("It fits")
    assert plan["devices"][0]["margin"] > 0


def test_llama_servers_own_spellings_are_understood(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What one would give to llama-server is planned as llama-server takes it."""
    words = "-fa on -ctk q8_0 -ctv q4_0 -b 1024 -ub 256 -np 2 -kvu -c 8,192 -ngl all"
    main(["plan", str(model), *words.split(), "--json"])
    config = json.loads(capsys.readouterr().out)["config"]

    assert (config["cache_type_k"], config["cache_type_v"]) == ("q8_0", "q4_0")
    assert (config["n_batch"], config["n_ubatch"]) == (1024, 256)
    assert (config["parallel"], config["extra_args"]) == (2, ["--kv-unified"])
    assert config["flash_attn"] is True

    for spelling in (["-fa", "off"], ["--no-flash-attn"]):
        main(["plan", str(model), *spelling, "--json"])
        assert json.loads(capsys.readouterr().out)["config"]["flash_attn"] is False


def test_the_host_can_be_the_limit(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers on the host must fit there, where it is said how much it has."""
    few = ["-ngl", "1", "-c", "40k"]

    assert main(["plan", str(model), *few, "--host-memory", "8"]) == 3
    assert "It does not fit: host needs" in capsys.readouterr().out
    assert main(["plan", str(model), *few, "--host-memory", "64"]) == 0
    assert "The host must have" not in capsys.readouterr().out
    assert main(["plan", str(model), *few]) == 0
    assert "The host must have" in capsys.readouterr().out


def test_without_layers_on_cards_the_host_decides(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """-ngl 0 is planned for this machine's memory, whatever cards there are."""
    slots = "250"  # of 40,960 tokens: more than any machine's memory

    assert main(["plan", str(model), "-ngl", "0", "-np", slots, "-c", "10000k"]) == 3
    assert "It does not fit: host needs" in capsys.readouterr().out


def test_what_would_fit_is_told_to_programs(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json has the ways out as a list, which is empty where all is well."""
    main(["plan", str(model), "--gpus", "1x12", "--ctx", "40960", "--json"])
    assert (
        "On two such cards it fits." in json.loads(capsys.readouterr().out)["instead"]
    )

    main(["plan", str(model), "--json"])
    assert json.loads(capsys.readouterr().out)["instead"] == []


def test_a_projector_on_the_hub_is_counted(
    hub: StandInHub,
    header: tuple[bytes, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--mmproj takes what the model takes, and reads as little of it."""
    beside = write_shape(
        read_shapes()["qwen2.5-0.5b"], tmp_path / "mmproj.gguf", kind="mmproj"
    )
    whole = repository(header)
    hub.repositories[REPO] = whole
    with beside.open("rb") as file:
        start = file.read(16 * 2**20)
    whole.files["mmproj-F16.gguf"] = HubFile(start, beside.stat().st_size - len(start))

    arguments = ["plan", f"{REPO}:Q4_K_M", "--mmproj", f"{REPO}:mmproj-F16.gguf"]
    assert main([*arguments, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)["devices"][0]
    assert card["projector"] > 300 * 2**20


@pytest.mark.parametrize(
    ("name", "gpus", "context"),
    [("qwen3.6-27b", "1x10", 8192), ("llama-2-13b", "2x4", 200_000),
     ("gpt-oss-20b", "5,6", 32768), ("bge-large-en", "0.9", 512)],
)  # fmt: skip
def test_models_that_are_named_instead_are_smaller_and_suit(
    name: str, gpus: str, context: int, tmp_path: Path
) -> None:
    """They take less than there is, serve as long a context, do the same thing."""
    path = write_shape(read_shapes()[name], tmp_path / "model.gguf")
    config = ServerConfig(None, n_gpu_layers=99, flash_attn=True, context_size=context)
    plan = plan_memory(path, config, gpus)

    named = recommended(plan)
    assert not plan.fits
    assert bool(named) == (context < 100_000)
    for entry in map(find_model, named):
        assert entry.total_bytes < plan.model_bytes
        assert entry.total_bytes < sum(place.free or 0 for place in plan.devices)
        assert entry.native_context >= context
        assert ("chat" if plan.generates else "embedding") in entry.tasks


def test_a_cpu_is_planned_too(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--gpus none plans for this machine's memory; its figures are known."""
    assert main(["plan", str(model), "--gpus", "none"]) == 0

    said = capsys.readouterr().out
    assert "CUDA" not in said
    assert "known" in said


def test_the_demo_model_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """'demo' needs no file."""
    assert main(["plan", "demo", "--ctx", "512"]) == 0
    assert "demo" in capsys.readouterr().out


def test_a_model_of_the_hub_is_planned_without_its_data(
    hub: StandInHub, header: tuple[bytes, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Named by its quantization, and with less than the header and a quarter read."""
    hub.repositories[REPO] = repository(header)

    assert main(["plan", f"{REPO}:Q4_K_M"]) == 0

    assert "qwen3" in capsys.readouterr().out
    assert sum(request.sent for request in hub.requests) < 16 * 2**20


def test_the_nearest_quantization_is_named(
    hub: StandInHub, header: tuple[bytes, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the file does not fit, the largest of the same repo that does is named."""
    hub.repositories[REPO] = repository(header)

    assert main(["plan", f"{REPO}:Q4_K_M", "--gpus", "1x8"]) == 3

    assert "Nearest that fits in somebody/Qwen3-14B-GGUF: Q2_K, 5.8 GB" in (
        capsys.readouterr().out
    )


def test_nothing_in_the_repo_may_fit(
    hub: StandInHub, header: tuple[bytes, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A card that is too small for all of them is told so."""
    hub.repositories[REPO] = repository(header)

    assert main(["plan", f"{REPO}:Q4_K_M", "--gpus", "1x4"]) == 3
    assert f"No quantization in {REPO} fits" in capsys.readouterr().out


def repository(header: tuple[bytes, int]) -> Repository:
    """Return a repository of one model in four quantizations."""
    beginning, zeros = header
    files = {"Qwen3-14B-Q4_K_M.gguf": HubFile(beginning, zeros)}
    for label, size in (("Q8_0", 15.7), ("Q3_K_M", 7.3), ("Q2_K", 5.75)):
        files[f"Qwen3-14B-{label}.gguf"] = HubFile(b"GGUF", int(size * 1e9))
    return Repository("a" * 40, files)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.gguf"], "absent.gguf"),
        (["qwen3-fourteen"], "qwen3-14b"),
        (["nothere.guf"], "is no file here"),
        (["demo", "-np", "300"], "1 to 256"),
        (["demo", "--gpus", "many"], "2x15"),
        (["demo", "--cache", "q9"], "q8_0"),
        (["demo", "--slots", "0"], "--parallel"),
        (["demo", "--split", "a,b"], "--tensor-split"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot work is said in one line that names what could."""
    code = main(["plan", *arguments])
    printed = capsys.readouterr()

    assert code == 2
    assert said in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ctx", "8kb"], "8192 or 8k"),
        (["-ngl", "1.5"], "20 or all"),
        (["--host-memory", "much"], "30, say"),
    ],
)
def test_numbers_are_shown_how_they_are_written(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that is no number is answered with one that is."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", "demo", *arguments])

    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("2x15", [T4_FREE_BYTES, T4_FREE_BYTES]),
        ("15,24", [T4_FREE_BYTES, 24 * 2**30]),
        ("16", [T4_FREE_BYTES]),
        ("2x8,80", [8 * 2**30, 8 * 2**30, 80 * 2**30]),
        ("14.5", [int(14.5 * 2**30)]),
        ("2xT4", [T4_FREE_BYTES, T4_FREE_BYTES]),
        ("24 GB", [24 * 2**30]),
        ("none", []),
    ],
)
def test_cards_are_written_in_gib(text: str, sizes: list[int]) -> None:
    """15 GiB are a T4's, of which fewer are free; other sizes are taken literally."""
    assert [gpu.free_bytes for gpu in parse_gpus(text)] == sizes


@pytest.mark.parametrize("text", ["", "x", "2x", "0x15", "-1", "nan", "2x15,", "1e9"])
def test_cards_that_make_no_sense_are_refused(text: str) -> None:
    """Anything else is an error that shows how it is written."""
    with pytest.raises(ConfigurationError, match="2x15"):
        parse_gpus(text)
