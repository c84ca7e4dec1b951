"""GGUFParser: what a file says, what its tensors say, and how it is shown."""

from __future__ import annotations

import dataclasses
import io
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_writer import ARRAY, STRING, UINT32, Array, File
from tiny_model import CHAT_TEMPLATE, write_tiny_model

from llamatelemetry._units import MIB
from llamatelemetry.exceptions import GGUFError, ModelError
from llamatelemetry.gguf._summary import format_count, group_of
from llamatelemetry.gguf.parser import GGUFParser, SpecialToken

DEMO = Path(__file__).parents[2] / "llamatelemetry" / "data" / "demo-q8_0.gguf"
HOSTILE = '<script>alert("1")</script>\x1b[31m'


def write(
    path: Path,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    *,
    file_type: int | None = None,
    architecture: str = "llama",
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write a file with tensors of zeros, given by type and shape (rows last)."""
    writer = gguf.GGUFWriter(str(path), architecture)
    if file_type is not None:
        writer.add_uint32("general.file_type", file_type)
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    for name, (kind, shape) in tensors.items():
        raw = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[raw]
        data = np.zeros((*shape[:-1], shape[-1] // block * size), np.uint8)
        if kind == "F32":
            writer.add_tensor(name, np.zeros(shape, np.float32))
        else:
            writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def layers(*kinds: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return one matrix of equal weights per type, beside embeddings and norms."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": ("Q6_K", (64, 256)),
        "output_norm.weight": ("F32", (256,)),
    }
    for number, kind in enumerate(kinds):
        tensors[f"blk.{number}.attn_norm.weight"] = ("F32", (256,))
        tensors[f"blk.{number}.ffn_up.weight"] = (kind, (256, 256))
    return tensors


def test_the_demo_model_as_the_gguf_package_reads_it() -> None:
    """Every key, the weights and the types equal what the oracle finds."""
    parser = GGUFParser(str(DEMO))
    oracle = gguf.GGUFReader(str(DEMO))

    expected = {
        key: field.contents()
        for key, field in oracle.fields.items()
        if not key.startswith("GGUF.")
    }
    assert expected == parser.get_metadata()
    assert sum(int(one.n_elements) for one in oracle.tensors) == (
        parser.get_parameter_count()
    )
    assert parser.get_architecture() == "llama"
    assert parser.get_quantization_type() == "Q8_0"
    assert parser.get_context_length() == expected["llama.context_length"]
    assert parser.get_vocab_size() == len(expected["tokenizer.ggml.tokens"])
    assert DEMO.stat().st_size == parser.size_bytes
    assert parser.bits_per_weight == pytest.approx(8.5, abs=0.05)
    assert {one.name for one in oracle.tensors} == {one.name for one in parser.tensors}


def test_metadata_are_plain_values_and_new_each_time() -> None:
    """Arrays are lists that can be changed without changing the parser."""
    parser = GGUFParser(DEMO)
    metadata = parser.get_metadata()
    metadata["tokenizer.ggml.tokens"].clear()

    assert isinstance(metadata, dict)
    assert {type(value) for value in metadata.values()} <= {
        int, float, bool, str, list,
    }  # fmt: skip
    assert len(parser.get_metadata()["tokenizer.ggml.tokens"]) > 0
    assert not isinstance(parser.metadata["tokenizer.ggml.tokens"], list)


def test_paths_bytes_and_files_are_read_alike(tmp_path: Path) -> None:
    """A path, its text, the file's bytes and the open file give the same header."""
    path = write_tiny_model(tmp_path / "tiny.gguf")
    with path.open("rb") as file:
        parsers = [
            GGUFParser(path),
            GGUFParser(str(path)),
            GGUFParser(path.read_bytes()),
            GGUFParser(io.BytesIO(path.read_bytes())),
            GGUFParser(file),
        ]
        first = parsers[0].get_metadata()
        for parser in parsers:
            assert first == parser.get_metadata()
            assert parser.get_quantization_type() == "F16"
            assert path.stat().st_size == parser.size_bytes


def test_shards_are_one_model(tmp_path: Path) -> None:
    """Weights and bytes are counted over all shards, whichever one is given."""
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama", split_max_tensors=1)
    for number in range(3):
        writer.add_tensor(f"blk.{number}.w.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(tmp_path.glob("model-*.gguf"))

    for file in files:
        parser = GGUFParser(file)
        assert parser.get_parameter_count() == 3 * 128
        assert parser.size_bytes == sum(one.stat().st_size for one in files)
        assert parser.get_quantization_type() == "F32"
        assert "shards   3" in str(parser)


def test_a_size_that_a_server_does_not_tell(tmp_path: Path) -> None:
    """Then it is what the header and the weights take."""
    parser = GGUFParser(write_tiny_model(tmp_path / "tiny.gguf"))
    told = parser.size_bytes
    parser.header = dataclasses.replace(parser.header, file_bytes=None)

    assert told == pytest.approx(parser.size_bytes, rel=0.01)


def test_errors_come_at_once(tmp_path: Path) -> None:
    """A missing file and one that is no GGUF are errors of the constructor."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model at all, but long enough to be read as one")

    with pytest.raises(ModelError, match="not-there"):
        GGUFParser(str(tmp_path / "not-there.gguf"))
    with pytest.raises(GGUFError):
        GGUFParser(str(broken))


def test_tokenizer_facts(tmp_path: Path) -> None:
    """Model, rules, special tokens with their text, template and switches."""
    parser = GGUFParser(write_tiny_model(tmp_path / "tiny.gguf"))
    facts = parser.tokenizer

    assert (facts.model, facts.pre) == ("gpt2", "gpt-2")
    assert parser.get_vocab_size() == facts.size
    assert facts.merges == 6
    assert facts.special["eos"] == SpecialToken(facts.special["eos"].id, "<|im_end|>")
    assert facts.special["bos"].text == "<|endoftext|>"
    assert facts.adds_bos is False
    assert facts.adds_eos is None
    assert parser.chat_template == CHAT_TEMPLATE
    assert parser.name == "tiny-random"
    assert parser.license is None


def test_a_special_token_outside_the_vocabulary(tmp_path: Path) -> None:
    """Its number is told, and no text is made up."""
    path = write(
        tmp_path / "model.gguf",
        layers("Q4_K"),
        metadata={
            "tokenizer.ggml.tokens": ["a", "b"],
            "tokenizer.ggml.eos_token_id": 7,
            "tokenizer.ggml.merges": "no list",
            "tokenizer.ggml.add_bos_token": "yes",
        },
    )
    facts = GGUFParser(path).tokenizer

    assert facts.special == {"eos": SpecialToken(7, None)}
    assert facts.merges == 0
    assert facts.adds_bos is None


@pytest.mark.parametrize(
    ("kinds", "file_type", "expected"),
    [
        (["Q4_K"] * 4 + ["Q6_K"], 15, "Q4_K_M"),
        (["Q4_K"] * 9 + ["Q5_K"], 14, "Q4_K_S"),
        (["Q8_0"] * 3, 7, "Q8_0"),
        (["Q8_0"] * 3, None, "Q8_0"),
        (["Q8_0"] * 3, 1024, "Q8_0"),
        (["Q8_0"] * 3, 15, "Q8_0 (header: Q4_K_M)"),
        (["Q4_K"] * 2, 7, "Q4_K (header: Q8_0)"),
        (["Q4_K", "Q6_K"], None, "mixed (Q6_K 59 %, Q4_K 41 %)"),
        (["Q4_K", "Q4_K", "F32"], 15, "mixed (F32 78 %, Q4_K 22 %; header: Q4_K_M)"),
        (
            ["Q4_K"] * 3 + ["Q8_0"] * 1,
            15,
            "mixed (Q4_K 61 %, Q8_0 39 %; header: Q4_K_M)",
        ),
        (["Q4_0"] * 2, 33, "Q4_0 (header: Q4_0_4_4)"),
        (["F32"] * 2, 0, "F32"),
        (["MXFP4"] * 8 + ["Q8_0"], 38, "MXFP4_MOE"),
    ],
)
def test_the_header_s_word_is_checked_against_the_tensors(
    tmp_path: Path, kinds: list[str], file_type: int | None, expected: str
) -> None:
    """A recipe is named where the bytes agree; else the types are, by their share."""
    path = write(tmp_path / "model.gguf", layers(*kinds), file_type=file_type)

    assert GGUFParser(path).get_quantization_type() == expected


def test_parts_of_models(tmp_path: Path) -> None:
    """A file without tensors or context says so, and is shown all the same."""
    path = write(tmp_path / "part.gguf", {}, architecture="clip")
    parser = GGUFParser(path)

    assert parser.get_quantization_type() == "none"
    assert parser.get_parameter_count() == 0
    assert parser.bits_per_weight == 0.0
    assert parser.name == "part.gguf"
    with pytest.raises(GGUFError, match=r"no context length \(clip\.context_length\)"):
        parser.get_context_length()
    with pytest.raises(GGUFError, match="no vocabulary"):
        parser.get_vocab_size()
    assert "clip" in repr(parser)
    assert "part.gguf" in parser._repr_html_()


def test_a_file_without_an_architecture(tmp_path: Path) -> None:
    """The methods that need one raise; the others work."""
    path = write(tmp_path / "odd.gguf", layers("Q8_0"), architecture="")
    parser = GGUFParser(path)

    with pytest.raises(GGUFError, match="names no architecture"):
        parser.get_architecture()
    assert parser.get_quantization_type() == "Q8_0"
    assert "no architecture" in repr(parser)


def test_the_vocabulary_s_size_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    """The header's number counts first, then the rows of the embeddings."""
    said = write(
        tmp_path / "said.gguf", layers("Q8_0"), metadata={"llama.vocab_size": 1234}
    )
    unsaid = write(tmp_path / "unsaid.gguf", layers("Q8_0"))

    assert GGUFParser(said).get_vocab_size() == 1234
    assert GGUFParser(unsaid).get_vocab_size() == 64


def test_the_texts_a_person_sees() -> None:
    """One line as repr, a table of parts as text, a panel with a bar as HTML."""
    parser = GGUFParser(DEMO)
    text, html = str(parser), parser._repr_html_()

    assert "\n" not in repr(parser)
    for shown in ("llama", "1.77M parameters", "Q8_0", "1.9 MB", "context 1,024"):
        assert shown in repr(parser)
        assert shown in text
        assert shown in html
    for part in ("embeddings", "attention", "feed forward", "norms"):
        assert part in text
        assert part in html
    assert "gpt2 (gpt-2), 1,024 tokens" in text
    assert "&lt;|im_end|&gt;" in html
    assert html.count('role="img"') == 1
    assert {"get_metadata", "tensors", "tokenizer", "chat_template"} <= set(dir(parser))


def test_hostile_texts_are_only_shown(tmp_path: Path) -> None:
    """Markup and control characters of a file reach neither notebook nor terminal."""
    path = write(
        tmp_path / "model.gguf",
        layers("Q8_0"),
        metadata={
            "general.name": HOSTILE * 10_000,
            "general.license": HOSTILE,
            "tokenizer.ggml.model": HOSTILE,
            "tokenizer.ggml.pre": HOSTILE,
            "tokenizer.ggml.tokens": [HOSTILE],
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.chat_template": HOSTILE,
            "llama.block_count": HOSTILE,
        },
        architecture="llama",
    )
    parser = GGUFParser(path)
    html, text = parser._repr_html_(), str(parser)

    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in text
    assert "\x1b" not in repr(parser)
    assert len(html) < 20_000
    assert len(text) < 5_000


def many_roles(count: int) -> GGUFParser:
    """Return a parser of a file with one huge token and so many roles for it."""
    roles = [
        (f"tokenizer.ggml.{'r' * 40}{number}_token_id", UINT32, 0)
        for number in range(count)
    ]
    tokens = Array(STRING, ["\x1b" + "x" * (8 * MIB)])
    keys = [("tokenizer.ggml.tokens", ARRAY, tokens), *roles]
    return GGUFParser(File(keys).build())


def test_a_huge_token_with_many_roles_costs_little() -> None:
    """Roles are counted, and of the token no more is decoded than is shown."""
    parser = many_roles(16_000)
    tracemalloc.start()
    try:
        html, text = parser._repr_html_(), str(parser)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2 * MIB
    assert len(html) < 40_000
    assert len(text) < 20_000
    assert len(parser.tokenizer.special) == 32
    for token in parser.tokenizer.special.values():
        assert token.text == "\x1b" + "x" * 199 + "…"


def test_tokens_that_are_no_texts_have_none() -> None:
    """Where the vocabulary is numbers, no number passes for a token's text."""
    keys = [
        ("tokenizer.ggml.tokens", ARRAY, Array(UINT32, [7])),
        ("tokenizer.ggml.eos_token_id", UINT32, 0),
    ]
    facts = GGUFParser(File(keys).build()).tokenizer

    assert facts.special == {"eos": SpecialToken(0, None)}
    assert facts.size == 1


def test_a_hostile_architecture_is_shown_harmless() -> None:
    """Neither the line nor an error is steered or filled by it."""
    hostile = "\x1b[2J\x1b]0;title\x07" + "A" * MIB
    parser = GGUFParser(File([("general.architecture", STRING, hostile)]).build())

    assert repr(parser).isprintable()
    assert len(repr(parser)) < 200
    with pytest.raises(GGUFError, match="no context length") as caught:
        parser.get_context_length()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_long_path_is_shown_with_its_file(tmp_path: Path) -> None:
    """Of a path in the Hub's cache, the end is what tells one file from another."""
    folder = tmp_path / "models--owner--Model-GGUF" / "snapshots" / ("5" * 40)
    folder = folder / ("x" * 90)
    folder.mkdir(parents=True)
    path = write_tiny_model(folder / "Model-Q4_K_M.gguf")
    parser = GGUFParser(path)

    for shown in (str(parser), parser._repr_html_()):
        assert "/Model-Q4_K_M.gguf" in shown
        assert str(path) not in shown


def test_no_fact_hides_another(tmp_path: Path) -> None:
    """Architecture and types may be long: the context is told all the same."""
    kinds = ["IQ4_XS"] * 4 + ["Q5_K"] * 3 + ["Q6_K"]
    path = write(
        tmp_path / "m.gguf",
        layers(*kinds),
        file_type=30,
        architecture="a" * 100,
        metadata={f"{'a' * 100}.context_length": 262_144},
    )
    parser = GGUFParser(path)

    for shown in (repr(parser), str(parser), parser._repr_html_()):
        assert "context 262,144" in shown
        assert "a" * 60 + "…" in shown


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("token_embd.weight", "embeddings"),
        ("output.weight", "output"),
        ("output_norm.weight", "norms"),
        ("blk.0.attn_q_norm.weight", "norms"),
        ("blk.0.attn_output.weight", "attention"),
        ("blk.0.ffn_down.weight", "feed forward"),
        ("blk.0.ffn_gate_exps.weight", "experts"),
        ("blk.0.ffn_gate_inp.weight", "experts"),
        ("blk.0.ffn_up_shexp.weight", "shared experts"),
        ("blk.0.ssm_in.weight", "recurrent"),
        ("blk.0.shortconv.conv.weight", "recurrent"),
        ("rope_freqs.weight", "attention"),
        ("mm.0.weight", "other"),
    ],
)
def test_tensors_belong_to_parts(name: str, group: str) -> None:
    """Each tensor is counted with the part of the model it belongs to."""
    assert group == group_of(name)


def test_counts_for_people() -> None:
    """Weights are shown in three digits with their unit."""
    assert [format_count(one) for one in (12, 1770, 1.77e6, 8.03e9, 1e12)] == [
        "12", "1.77k", "1.77M", "8.03B", "1T",
    ]  # fmt: skip
