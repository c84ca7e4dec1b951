"""Where a model runs: on one card, over several, or a server on each."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from nvml_tools import StandInDriver, t4
from shapes import Shape, read_shapes, write_shape

from llamatelemetry._units import GIB, MIB
from llamatelemetry.exceptions import ConfigurationError, ModelError, OutOfMemoryError
from llamatelemetry.gguf._cards import GPU, margin_bytes
from llamatelemetry.gguf._fitting import layer_counts
from llamatelemetry.gguf.memory import GPUMemory, plan_memory
from llamatelemetry.gguf.parser import GGUFParser
from llamatelemetry.gguf.reader import GGUFHeader, read_header
from llamatelemetry.gpu.inventory import GPUInfo
from llamatelemetry.placement import Placement, decide_placement, feasible_placements
from llamatelemetry.server import ServerConfig
from llamatelemetry.server._linux import available_memory

SHAPES = read_shapes()
HeaderOf = Callable[[str], GGUFHeader]


def seventy_b() -> Shape:
    """Return the shape of a Llama 70B, drawn from the 8B of the same family."""
    small = SHAPES["llama-3.1-8b"]
    wider = {4096: 8192, 14336: 28672}
    every = ",".join(map(str, range(80)))
    tensors = {}
    for pattern, (kind, axes) in small.tensors.items():
        layered = "{" in pattern
        if layered and ("ffn_down" not in pattern or "{1," in pattern):
            name = f"blk.{{{every}}}{pattern.partition('}')[2]}"
        elif layered:
            continue
        else:
            name = pattern
        tensors[name] = (kind, [wider.get(axis, axis) for axis in axes])
    metadata = {
        **small.metadata, "block_count": 80, "embedding_length": 8192,
        "feed_forward_length": 28672, "attention.head_count": 64,
    }  # fmt: skip
    return replace(small, name="llama-70b", tensors=tensors, metadata=metadata)


@pytest.fixture(scope="session")
def header_of(tmp_path_factory: pytest.TempPathFactory) -> HeaderOf:
    """Return a function that gives the header of a shape, read from a sparse file."""
    folder = tmp_path_factory.mktemp("shapes")
    read: dict[str, GGUFHeader] = {}

    def header(name: str) -> GGUFHeader:
        if name not in read:
            shape = seventy_b() if name == "llama-70b" else SHAPES[name]
            path = write_shape(shape, folder / f"{name}.gguf", tokens=False)
            read[name] = read_header(path)
        return read[name]

    return header


@pytest.fixture(autouse=True)
def _no_cards(driver: StandInDriver) -> None:
    """Let no test see this machine's own cards: they would be named by their UUIDs."""
    driver.describe(log=None)


def check(placement: Placement, header: GGUFHeader, context: int, slots: int) -> None:
    """Check what every accepted placement must keep to."""
    used = [card.index for group in placement.gpus for card in group]
    assert placement.kind != "none"
    assert len(used) == len(set(used))
    assert len(placement.configs) == len(placement.gpus) == len(placement.plans)
    assert placement.slots >= slots
    for config, group in zip(placement.configs, placement.gpus, strict=True):
        own = [GPUMemory(place, card.free_bytes) for place, card in enumerate(group)]
        plan = plan_memory(header, config, own)
        assert config.visible_devices == ",".join(str(card.index) for card in group)
        assert (config.tensor_split is None) == (len(group) < 2)
        assert plan.slot_context >= context
        assert config.context_size == context * config.parallel
        for card, place in zip(group, plan.devices, strict=True):
            assert card.free_bytes is not None
            assert placement.expected_bytes[card.index] == place.needed
            assert place.needed + margin_bytes(place.needed) <= card.free_bytes
    assert set(placement.expected_bytes) == set(used)


# ── two T4s ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "goal", "kind", "slots"),
    [
        ("smollm3-3b", "latency", "single", 1),
        ("smollm3-3b", "throughput", "replicas", 16),
        ("qwen3-14b", "latency", "single", 1),
        ("qwen3-14b", "throughput", "replicas", 16),
        ("qwen3.6-27b", "latency", "layer", 1),
        ("qwen3.6-27b", "throughput", "layer", 8),
        ("bge-small-en", "latency", "single", 1),
        ("bge-small-en", "throughput", "replicas", 16),
    ],
)
def test_models_on_two_t4s(
    name: str, goal: Any, kind: str, slots: int, header_of: HeaderOf
) -> None:
    """What fits one card runs on one, or twice; what does not is split over both."""
    header = header_of(name)
    placement = decide_placement(header, "2x15", goal=goal)

    check(placement, header, 4096, slots)
    assert (placement.kind, placement.goal) == (kind, goal)
    assert placement.slots == slots
    assert placement.nearest is None
    assert placement.largest_context is None
    placement.raise_if_none()


def test_a_70b_fits_nowhere_on_two_t4s(header_of: HeaderOf) -> None:
    """It is refused with the card, the bytes, and the quantization that would fit."""
    placement = decide_placement(header_of("llama-70b"), "2x15")

    assert placement.kind == "none"
    assert placement.configs == placement.gpus == ()
    assert placement.expected_bytes == {}
    assert placement.largest_context == 0
    assert placement.nearest is not None
    assert "IQ2_M it fits (estimated)" in placement.nearest
    with pytest.raises(OutOfMemoryError) as caught:
        placement.raise_if_none()
    error = caught.value
    assert error.device in ("CUDA0", "CUDA1")
    assert error.needed is not None
    assert error.free is not None
    assert error.needed > error.free > 14 * GIB
    assert error.suggestion == placement.nearest
    assert error.largest_context == 0


def test_a_context_that_is_too_long_names_the_longest(header_of: HeaderOf) -> None:
    """The largest context is accepted when it is asked for, and no step more."""
    header = header_of("llama-3.1-8b")
    cards = "1x15"
    placement = decide_placement(header, cards, 120_000)
    largest = placement.largest_context

    assert placement.kind == "none"
    assert largest
    assert placement.nearest is not None
    assert f"up to {largest:,} tokens" in placement.nearest
    assert "q8_0 KV cache" in placement.nearest
    assert decide_placement(header, cards, largest).kind == "single"
    assert decide_placement(header, cards, largest + 256).kind == "none"
    packed = ServerConfig(
        None, flash_attn=True, n_batch=2048, cache_type_k="q8_0", cache_type_v="q8_0"
    )
    assert decide_placement(header, cards, 120_000, config=packed).kind == "single"


def test_fewer_layers_on_the_cards_are_the_last_resort(header_of: HeaderOf) -> None:
    """Where no quantization is small enough, layers are left on the host."""
    placement = decide_placement(header_of("llama-70b"), "1x4")
    nowhere = decide_placement(header_of("llama-70b"), [GPUMemory(0, 400 * MIB)])

    assert placement.nearest is not None
    assert "n_gpu_layers=" in placement.nearest
    assert "of 81 it fits" in placement.nearest
    assert nowhere.nearest == "only a smaller model fits"


# ── the rules ────────────────────────────────────────────────────────────────────


def test_one_card_is_the_one_with_the_most_room(header_of: HeaderOf) -> None:
    """Cards may come in any order and of any size."""
    cards = [GPUMemory(3, 6 * GIB), GPUMemory(1, 12 * GIB), GPUMemory(0, 3 * GIB)]
    placement = decide_placement(header_of("llama-3.1-8b"), cards)

    assert placement.gpus == ((GPUMemory(1, 12 * GIB),),)
    assert placement.configs[0].visible_devices == "1"
    assert "without NVLink" in placement.reason


def test_a_split_takes_the_fewest_cards_with_the_most_room(header_of: HeaderOf) -> None:
    """Two of four cards hold it; the server counts them from 0."""
    cards = [GPUMemory(place, size * GIB) for place, size in enumerate((3, 5, 4, 5))]
    placement = decide_placement(header_of("llama-3.1-8b"), cards)
    config = placement.configs[0]

    assert placement.kind == "layer"
    assert [card.index for card in placement.gpus[0]] == [1, 3]
    assert config.visible_devices == "1,3"
    assert sum(layer_counts(placement.plans[0])) == 33
    assert config.device is None
    assert config.main_gpu == 0
    assert "no single card holds it" in placement.reason
    check(placement, header_of("llama-3.1-8b"), 4096, 1)


def test_replicas_stand_on_groups_of_cards(header_of: HeaderOf) -> None:
    """A large card holds a copy, two small ones hold one together, one is left out."""
    sizes = [(0, 6), (1, 15), (2, 6), (3, 2)]
    cards = [GPUMemory(place, size * GIB) for place, size in sizes]
    header = header_of("qwen3-14b")
    placement = decide_placement(header, cards, 2048, goal="throughput", parallel=2)

    check(placement, header, 2048, 2)
    assert placement.kind == "replicas"
    assert [[card.index for card in group] for group in placement.gpus] == [[0, 2], [1]]
    assert "GPU 3 is left out" in placement.reason
    assert [config.port for config in placement.configs] == [8080, 0]


def test_slots_are_shared_evenly_and_never_lowered(header_of: HeaderOf) -> None:
    """Five requests over two servers are three slots each; one needs one server."""
    header = header_of("smollm3-3b")
    five = decide_placement(header, "2x15", 1000, "throughput", parallel=5)
    one = decide_placement(header, "2x15", 1000, "throughput", parallel=1)
    many = decide_placement(header, "2x15", 256, "throughput", parallel=300)

    assert [config.parallel for config in five.configs] == [3, 3]
    assert [config.context_size for config in five.configs] == [3000, 3000]
    check(five, header, 1000, 5)
    assert (one.kind, one.slots) == ("single", 1)
    assert [config.parallel for config in many.configs] == [150, 150]


def test_fewer_servers_take_more_slots_each(header_of: HeaderOf) -> None:
    """Where a third card is too small for a copy, two servers share the requests."""
    cards = [GPUMemory(0, 8 * GIB), GPUMemory(1, GIB), GPUMemory(2, 8 * GIB)]
    placement = decide_placement(
        header_of("smollm3-3b"), cards, 1024, "throughput", parallel=3
    )

    assert [config.parallel for config in placement.configs] == [2, 2]
    assert [group[0].index for group in placement.gpus] == [0, 2]
    assert "GPU 1 is left out" in placement.reason


def test_more_slots_than_one_server_has_may_not_fit(header_of: HeaderOf) -> None:
    """What only several servers could take is refused when these do not fit."""
    cards = [GPUMemory(0, 2 * GIB), GPUMemory(1, 2 * GIB)]
    placement = decide_placement(
        header_of("smollm3-3b"), cards, 4096, "throughput", parallel=300
    )
    nowhere = decide_placement(header_of("smollm3-3b"), "2x1", goal="throughput")

    assert (placement.kind, placement.largest_context) == ("none", 0)
    assert (nowhere.kind, nowhere.goal) == ("none", "throughput")


def test_the_most_slots_in_all_win(header_of: HeaderOf) -> None:
    """A large card with eight slots beats two servers with two."""
    cards = [GPUMemory(0, 22 * GIB), GPUMemory(1, 5 * GIB + 512 * MIB)]
    header = header_of("llama-3.1-8b")
    every = feasible_placements(header, cards, 8192, "throughput")

    assert [(one.kind, one.slots) for one in every[:2]] == [("single", 8), ("layer", 8)]
    for placement in every:
        check(placement, header, 8192, 1)


def test_candidates_are_of_different_kinds_the_decided_one_first(
    header_of: HeaderOf,
) -> None:
    """What a probe would measure begins with what is decided without one."""
    header = header_of("smollm3-3b")
    for goal, kinds in (
        ("latency", ["single", "layer", "replicas"]),
        ("throughput", ["replicas", "single", "layer"]),
    ):
        every = feasible_placements(header, "2x15", goal=goal, parallel=4)  # type: ignore[arg-type]

        assert [one.kind for one in every] == kinds
        assert every[0] == decide_placement(header, "2x15", goal=goal, parallel=4)  # type: ignore[arg-type]
        assert "no single card" not in every[kinds.index("layer")].reason
    assert feasible_placements(header_of("llama-70b"), "2x15") == ()


def test_the_tensor_split_is_only_made_when_asked_for(header_of: HeaderOf) -> None:
    """It is preferred then, with a warning; on one card it changes nothing."""
    header = header_of("smollm3-3b")
    placement = decide_placement(header, "2x15", split_mode="tensor")
    config = placement.configs[0]

    assert placement.kind == "layer"
    assert config.split_mode == "tensor"
    assert config.tensor_split == "0.5,0.5"
    assert "21876" in placement.reason
    assert any("21876" in said for said in config.notes)
    alone = decide_placement(header, "1x15", split_mode="tensor")
    assert alone.configs[0].split_mode == "layer"
    assert "21876" not in alone.reason


def test_a_card_of_unknown_memory_is_left_out(header_of: HeaderOf) -> None:
    """It is named; where all are unknown, the model runs on the CPU."""
    known = GPUInfo(0, "Tesla T4", 15.0, 14.7, "7.5", uuid="GPU-aa")
    unknown = GPUInfo(1, "GB10", None, None, "12.1", uuid="GPU-bb")
    header = header_of("llama-3.2-1b")
    placement = decide_placement(header, [unknown, known], goal="throughput")
    on_cpu = decide_placement(header, [GPUMemory(0)])

    assert placement.gpus == ((known,),)
    assert placement.configs[0].visible_devices == "GPU-aa"
    assert "GPU 1 is left out" in placement.reason
    assert "Tesla T4" in repr(placement)
    assert on_cpu.gpus == ((),)
    assert "GPU 0 is left out" in on_cpu.reason


def test_a_full_card_takes_nothing(header_of: HeaderOf) -> None:
    """A card without a free byte is no reason to fail, and no place for a model."""
    full = GPUInfo(0, "Tesla T4", 15.0, 0.0, "7.5", uuid="GPU-aa")
    half = GPUInfo(1, "Tesla T4", 15.0, 9.0, "7.5", uuid="GPU-bb")
    header = header_of("llama-3.1-8b")

    assert decide_placement(header, [full]).kind == "none"
    assert decide_placement(header, [full, half]).gpus == ((half,),)


@pytest.mark.parametrize("gpus", ["none", []])
def test_without_cards_the_cpu_is_used(gpus: Any, header_of: HeaderOf) -> None:
    """One server that sees no card, with no layer on one."""
    header = header_of("llama-3.2-1b")
    for goal, slots in (("latency", 1), ("throughput", 8)):
        placement = decide_placement(header, gpus, 512, goal)  # type: ignore[arg-type]
        config = placement.configs[0]

        assert (placement.kind, placement.gpus) == ("single", ((),))
        assert (config.n_gpu_layers, config.visible_devices) == (0, "")
        assert config.parallel == slots
        assert placement.expected_bytes == {}
        assert "on the CPU" in placement.reason
        assert "CPU" in repr(placement)


def test_the_cpu_has_a_limit_too(header_of: HeaderOf) -> None:
    """What this machine's memory does not hold is not started on it."""
    memory = available_memory()
    assert memory is not None
    plan = plan_memory(header_of("llama-3.1-8b"), gpus=[], host_free=4 * GIB)
    small = decide_placement(plan, [])

    assert small.kind == "none" or memory > 5 * GIB
    placement = decide_placement(header_of("llama-70b"), [])
    if placement.kind == "none":
        with pytest.raises(OutOfMemoryError) as caught:
            placement.raise_if_none()
        assert caught.value.device == "host"


def test_cards_are_detected(driver: StandInDriver, header_of: HeaderOf) -> None:
    """The cards of this machine are named by their UUIDs."""
    driver.describe(t4(0), t4(1))
    placement = decide_placement(header_of("smollm3-3b"), goal="throughput")

    assert placement.kind == "replicas"
    uuids = [getattr(group[0], "uuid", None) for group in placement.gpus]
    assert [config.visible_devices for config in placement.configs] == uuids
    assert all(str(uuid).startswith("GPU-") for uuid in uuids)


def test_cards_that_are_not_here_keep_their_indices(
    driver: StandInDriver, header_of: HeaderOf
) -> None:
    """A plan for another machine is possible on one with other cards, and says so."""
    driver.describe(t4(0))
    placement = decide_placement(header_of("qwen3.6-27b"), "2x15")

    assert placement.configs[0].visible_devices == "0,1"
    assert any(
        "does not see these cards" in said for said in placement.configs[0].notes
    )


# ── what goes in ─────────────────────────────────────────────────────────────────


def test_other_fields_of_a_configuration_are_kept(header_of: HeaderOf) -> None:
    """Cache, host, port, key and threads; what is placed here is decided anew."""
    config = ServerConfig(
        header_of("smollm3-3b").source, host="127.0.0.2", port=9000,
        n_gpu_layers=3, main_gpu=1, tensor_split="1,9", split_mode="row",
        context_size=77, parallel=9, flash_attn=True, threads=2, api_key="secret",
        cache_type_k="q8_0", cache_type_v="q8_0", device="CUDA1", n_ubatch=256,
        visible_devices="7",
    )  # fmt: skip
    placement = decide_placement(
        header_of("smollm3-3b"), "2x15", 1024, "throughput", config=config
    )
    first, second = placement.configs

    assert first == config.replace(
        n_gpu_layers=99, main_gpu=0, tensor_split=None, split_mode="layer",
        context_size=5 * 1024, parallel=5, device=None, visible_devices="0",
    )  # fmt: skip
    assert second == first.replace(port=0, visible_devices="1")
    assert "secret" not in repr(placement)
    assert first.api_key == "secret"


def test_a_configuration_says_context_and_slots(header_of: HeaderOf) -> None:
    """What is not said is the configuration's, for each slot, or the plan's."""
    header = header_of("llama-3.2-1b")
    config = ServerConfig(None, context_size=32768, parallel=4, flash_attn=True)
    for form, its in ((header, config), (plan_memory(header, config), None)):
        (own,) = decide_placement(form, "2x15", config=its).configs
        (said,) = decide_placement(form, "2x15", 512, parallel=1, config=its).configs

        assert (own.context_size, own.parallel) == (32768, 4)
        assert (said.context_size, said.parallel) == (512, 1)
    assert decide_placement(header, "2x15").configs[0].context_size == 4096


def test_a_configuration_of_another_model_is_refused(
    header_of: HeaderOf, tmp_path: Path
) -> None:
    """What is planned is what is started; the message names both files."""
    header = header_of("smollm3-3b")
    with pytest.raises(ConfigurationError, match=r"smollm3-3b.*other\.gguf"):
        decide_placement(header, "2x15", config=ServerConfig("other.gguf"))
    link = tmp_path / "link.gguf"
    link.symlink_to(header.source)
    same = decide_placement(header, "2x15", config=ServerConfig(link))
    assert same.configs[0].model_path == str(link)


def test_slots_share_a_batch_of_embeddings_evenly(header_of: HeaderOf) -> None:
    """llama.cpp ends where they do not: three slots get a multiple of three tokens."""
    config = ServerConfig(None, flash_attn=True, embeddings=True, n_batch=500)
    placement = decide_placement(
        header_of("bge-small-en"), "1x15", 512, parallel=3, config=config
    )
    few = config.replace(n_ubatch=2)
    alone = decide_placement(
        header_of("bge-small-en"), "1x15", 512, parallel=3, config=few
    )

    assert placement.configs[0].n_ubatch == 498
    assert not any("unevenly" in said for said in placement.plans[0].notes)
    assert alone.configs[0].n_ubatch == 2


def test_models_come_in_every_form(header_of: HeaderOf) -> None:
    """A path, its header, a parser and a plan give the same, with the file named."""
    header = header_of("llama-3.2-1b")
    path = Path(header.source)
    config = ServerConfig(None, flash_attn=True, n_batch=2048)
    expected = decide_placement(header, "2x15", 4096)
    plan = plan_memory(header, config, "1x4")

    assert expected.configs[0].model_path == str(path)
    for form in (path, str(path), GGUFParser(path), plan, plan.with_gpus([])):
        assert decide_placement(form, "2x15", 4096) == expected
    from_bytes = decide_placement(
        Path(__file__)
        .parents[1]
        .joinpath("llamatelemetry/data/demo-q8_0.gguf")
        .read_bytes(),
        "2x15",
    )
    assert from_bytes.configs[0].model_path is None


def test_an_older_build_needs_more(header_of: HeaderOf) -> None:
    """The build is handed to the plans; a plan has its own already."""
    header = header_of("llama-3.2-1b")
    older = decide_placement(header, "1x15", build=7710)

    assert older.expected_bytes[0] > decide_placement(header, "1x15").expected_bytes[0]
    with pytest.raises(ConfigurationError, match="build"):
        decide_placement(plan_memory(header), "1x15", build=7710)


def test_the_models_own_context_can_be_asked_for(header_of: HeaderOf) -> None:
    """0 is what the model was made for, for each request."""
    placement = decide_placement(
        header_of("gemma-2-2b"), "2x15", 0, "throughput", parallel=4
    )

    assert [config.context_size for config in placement.configs] == [16384, 16384]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"goal": "speed"}, "goal"),
        ({"split_mode": "row"}, "split_mode"),
        ({"context_size": -1}, "context_size"),
        ({"context_size": 2.5}, "context_size"),
        ({"context_size": True}, "context_size"),
        ({"context_size": 2**31}, "context_size"),
        ({"parallel": 0}, "parallel"),
        ({"parallel": "two"}, "parallel"),
        ({"parallel": 513}, "parallel"),
        ({"gpus": "many"}, "gpus"),
        ({"gpus": [1, 2]}, "no card"),
        ({"config": {"port": 1}}, "ServerConfig"),
    ],
)
def test_bad_input_is_named(
    values: dict[str, Any], said: str, header_of: HeaderOf
) -> None:
    """What cannot be meant is refused before anything is planned."""
    with pytest.raises(ConfigurationError, match=said):
        decide_placement(header_of("llama-3.2-1b"), **{"gpus": "2x15", **values})


def test_a_missing_model_is_a_model_error(tmp_path: Path) -> None:
    """The name of the file that is not there stands in the error."""
    with pytest.raises(ModelError, match="absent.gguf"):
        decide_placement(tmp_path / "absent.gguf", "2x15")


def test_more_context_than_a_server_takes_fits_nowhere(header_of: HeaderOf) -> None:
    """Slots times context may be more than llama.cpp counts; that is no crash."""
    placement = decide_placement(
        header_of("mamba-1.4b"), "1x15", 2**31 - 1, parallel=256
    )

    assert placement.kind == "none"
    assert placement.largest_context is not None


def test_a_card_too_many_is_not_called_too_small(header_of: HeaderOf) -> None:
    """Where fewer servers do, the rest is said to be not needed."""
    header = header_of("qwen3-14b")
    spare = decide_placement(header, "3x15", 512, "throughput", parallel=2)
    small = decide_placement(header, "15,15,2", 512, "throughput", parallel=2)

    assert spare.reason.endswith("GPU 2 is not needed")
    assert small.reason.endswith("2.0 GiB are too little for a server")


def test_a_split_says_why_it_is_one(header_of: HeaderOf) -> None:
    """No card holds it, not for so many at once, or a split has more slots."""

    def reason(context: int, **more: Any) -> str:
        header = header_of("qwen3-14b")
        return decide_placement(header, "2x15", context, **more).reason

    assert reason(40_000).startswith("no single card holds it: ")
    many = reason(8192, goal="latency", parallel=6)
    assert many.startswith("no single card holds it for 6 requests at once: ")
    slots = reason(24_576, goal="throughput")
    assert slots.startswith("more slots than any other way: ")


def test_described_cards_are_said_to_be_so(
    header_of: HeaderOf, driver: StandInDriver
) -> None:
    """What is free on cards here is looked at only where they were detected."""
    driver.describe(t4(0))
    header = header_of("llama-3.2-1b")
    said = "described, not detected"

    assert any(said in note for note in decide_placement(header, "15").configs[0].notes)
    assert not any(said in note for note in decide_placement(header).configs[0].notes)


def test_the_cpu_is_named_where_it_would_do(header_of: HeaderOf) -> None:
    """A model that no card holds a layer of may fit the host's memory."""
    placement = decide_placement(header_of("llama-3.2-1b"), "2x0.2", 512)

    assert placement.kind == "none"
    assert "without cards it fits (gpus=[])" in (placement.nearest or "")
    huge = decide_placement(header_of("llama-2-13b"), "2x0.2", 10**9)
    assert huge.nearest == "only a smaller model fits"


def test_more_than_a_model_was_made_for_is_named_if_asked_for(
    header_of: HeaderOf,
) -> None:
    """The largest context goes beyond the training where that was asked for."""
    header = header_of("llama-2-13b")
    placement = decide_placement(header, "2x15", 32768)
    largest = placement.largest_context or 0

    assert placement.kind == "none"
    assert largest > 4096
    assert decide_placement(header, "2x15", largest).kind == "layer"
    assert decide_placement(header, "2x15", largest + 256).kind == "none"


# ── what it looks like ───────────────────────────────────────────────────────────


def test_a_placement_is_shown_as_a_table(header_of: HeaderOf) -> None:
    """Server, card, layers, slots, context and bytes are aligned; a reason follows."""
    placement = decide_placement(header_of("qwen3.6-27b"), "2x15")
    title, head, first, second, reason = repr(placement).splitlines()

    assert title == "Placement for latency: layer"
    assert head.split()[:4] == ["server", "device", "layers", "slots"]
    assert first.split()[:6] == ["0", "GPU", "0", "33", "1", "4,096"]
    assert second.split()[:5] == ["GPU", "1", "31", "+", "output"]
    assert len(head) == len(first) == len(second)
    assert reason == placement.reason
    measured = dataclasses.replace(placement, measured=("it ran at 9 tokens/s",))
    assert repr(measured).endswith("it ran at 9 tokens/s")


def test_html_is_escaped(header_of: HeaderOf) -> None:
    """Neither a card's name nor the probe's words bring markup into a notebook."""
    card = GPUInfo(0, "<b>T4</b>", 15.0, 14.7, "7.5", uuid="GPU-aa")
    placement = decide_placement(header_of("smollm3-3b"), [card])
    marked = dataclasses.replace(placement, measured=("<script>",))
    none = decide_placement(header_of("llama-70b"), "1x4")

    html = marked._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;T4" in html
    assert "<script>" not in html
    assert "Nearest:" in none._repr_html_()
    assert "Nearest:" in repr(none)


def test_placements_are_values(header_of: HeaderOf) -> None:
    """They compare, hash and can be pickled; their notes never reach an engine."""
    header = header_of("smollm3-3b")
    placement = decide_placement(header, "2x15")

    assert placement == decide_placement(header, "2x15")
    assert hash(placement) == hash(decide_placement(header, "2x15"))
    assert pickle.loads(pickle.dumps(placement)) == placement
    config = placement.configs[0]
    assert config.notes[0] == placement.reason
    assert not any(said in config.to_cli_args() for said in config.notes)


# ── any cards, any question ──────────────────────────────────────────────────────

FAST = (
    "llama-3.2-1b", "qwen2.5-0.5b", "lfm2-1.2b", "gemma-3-1b", "bge-small-en",
    "smollm3-3b", "mamba2-2.7b", "llama-2-13b",
)  # fmt: skip
CARDS = st.lists(
    st.one_of(st.none(), st.integers(MIB, 12 * GIB), st.just(5 * GIB)),
    min_size=1,
    max_size=8,
)


@pytest.mark.no_cover  # thousands of graphs take six times as long where it is on
@settings(
    max_examples=35,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(FAST),
    free=CARDS,
    order=st.randoms(use_true_random=False),
    context=st.one_of(st.integers(1, 3000), st.integers(3000, 150_000)),
    goal=st.sampled_from(["latency", "throughput"]),
    parallel=st.one_of(st.none(), st.integers(1, 12)),
)
def test_no_card_gets_more_than_it_has(
    header_of: HeaderOf,
    *,
    name: str,
    free: list[int | None],
    order: Any,
    context: int,
    goal: Any,
    parallel: int | None,
) -> None:
    """Every accepted placement fits its cards; every refusal names what would."""
    header = header_of(name)
    cards: list[GPU] = [GPUMemory(index, size) for index, size in enumerate(free)]
    order.shuffle(cards)
    if all(size is None for size in free):
        cards.append(GPUMemory(9, 2 * GIB))
    every = feasible_placements(header, cards, context, goal, parallel=parallel)
    note(str(every))
    for placement in every:
        check(placement, header, context, parallel or 1)
    if every:
        return
    none = decide_placement(header, cards, context, goal, parallel=parallel)
    largest = none.largest_context
    assert none.kind == "none"
    assert largest is not None
    assert largest % 256 == 0

    def accepted(tokens: int) -> bool:
        asked = decide_placement(header, cards, tokens, goal, parallel=parallel)
        return asked.kind != "none"

    assert not largest or accepted(largest)
    trained = plan_memory(header).max_context()
    if largest + 256 <= trained:
        assert not accepted(largest + 256)
