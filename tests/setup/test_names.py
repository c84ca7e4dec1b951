"""What names on the Hub say."""

from __future__ import annotations

import pytest

from llamatelemetry.exceptions import ModelError
from llamatelemetry.setup._names import (
    HubReference,
    ModelFile,
    RepoFile,
    choose_model,
    model_files,
    nearest_names,
    parse_reference,
    quantization_label,
)

COMMIT = "bc640142c66e1fdd12af0bd68f40445458f3869b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/repo", HubReference("owner/repo", None, None)),
        ("owner/repo:m.gguf", HubReference("owner/repo", "m.gguf", None)),
        ("owner/repo:Q4/m-1.gguf", HubReference("owner/repo", "Q4/m-1.gguf", None)),
        ("o/r@v1.0:m.gguf", HubReference("o/r", "m.gguf", "v1.0")),
        (f"o/r@{COMMIT}:m.gguf", HubReference("o/r", "m.gguf", COMMIT)),
        ("o/r@refs/pr/3:m.gguf", HubReference("o/r", "m.gguf", "refs/pr/3")),
        ("o/r:Q4_K_M", HubReference("o/r", "Q4_K_M", None)),
        ("o/r:my model.gguf", HubReference("o/r", "my model.gguf", None)),
        (
            "https://huggingface.co/o/r/blob/main/Q8_0/m.gguf",
            HubReference("o/r", "Q8_0/m.gguf", None),
        ),
        (
            "https://huggingface.co/o/r/resolve/refs%2Fpr%2F3/my%20m.gguf?download=true",
            HubReference("o/r", "my m.gguf", "refs/pr/3"),
        ),
        ("https://hf.co/o/r/tree/v1", HubReference("o/r", None, "v1")),
        ("https://huggingface.co/o/r/", HubReference("o/r", None, None)),
        ("HTTPS://HuggingFace.co/o/r", HubReference("o/r", None, None)),
        (
            "https://huggingface.co/o/r?show_file_info=Q8%2Fm+m.gguf&x=1",
            HubReference("o/r", "Q8/m m.gguf", None),
        ),
        (
            "https://huggingface.co/o/r/tree/v1/Q8?show_file_info=Q8%2Fm.gguf",
            HubReference("o/r", "Q8/m.gguf", "v1"),
        ),
    ],
)
def test_references_are_read(text: str, expected: HubReference) -> None:
    """References and pasted pages name a repository, a file and a revision."""
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model.gguf",
        "models/model.gguf",
        "/data/model.gguf",
        "./a/b",
        "../a:b.gguf",
        "a/b/c",
        "a/b/c:m.gguf",
        "owner/repo:",
        "owner/repo:/etc/passwd",
        "owner/repo:../m.gguf",
        "owner/repo:a/../m.gguf",
        "owner/repo@:m.gguf",
        "https://example.com/o/r/resolve/main/m.gguf",
        "https://huggingface.co.example.com/o/r/blob/main/m.gguf",
        "https://huggingface.co/o/r/blob/main/../../m.gguf",
        "https://[/o/r",
        "https://huggingface.co/o/r?show_file_info=../m.gguf",
        "owner/repo\n:m.gguf",
    ],
)
def test_what_is_no_reference_is_left_to_others(text: str) -> None:
    """Paths of this machine, other sites and ways out of a repository are none."""
    assert parse_reference(text) is None


def test_a_reference_is_written_as_it_is_read() -> None:
    """The text of a reference gives the same reference again."""
    for text in ("o/r", "o/r:m.gguf", "o/r@v1:a/m.gguf", "o/r:Q4_K_M"):
        assert str(parse_reference(text)) == text


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-coder-14b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("nomic-embed-text-v1.5.Q8_0.gguf", "Q8_0"),
        ("nomic-embed-text-v1.5.f16.gguf", "F16"),
        ("model-fp16.gguf", "F16"),
        ("model-FP32.gguf", "F32"),
        ("Qwen3.8-27B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Qwen3-30B-A3B-UD-IQ1_S.gguf", "UD-IQ1_S"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("m-IQ4_XS.gguf", "IQ4_XS"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-IQ4_NL.gguf", "IQ4_NL"),
        ("m-Q6_K.gguf", "Q6_K"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("m-TQ1_0.gguf", "TQ1_0"),
        ("gemma-3-4b-it-qat-q4_0.gguf", "Q4_0"),
        ("m-BF16.gguf", "BF16"),
        ("m.i1-Q3_K_L.gguf", "Q3_K_L"),
        ("Q5_K_M/model-00001-of-00003.gguf", "Q5_K_M"),
        ("BF16/model-Q4_K_S.gguf", "Q4_K_S"),
        ("model.gguf", None),
        ("Qwen3-4B.gguf", None),
        ("SQ4_0x.gguf", None),
    ],
)
def test_a_name_tells_the_quantization(path: str, label: str | None) -> None:
    """The quantization is found in file names as publishers write them."""
    assert quantization_label(path) == label


def files(*names: str, size: int = 10) -> list[RepoFile]:
    """Return files of these names."""
    return [RepoFile(name, size, None) for name in names]


def test_shards_are_one_model_and_projectors_none() -> None:
    """Shards are summed, incomplete sets and companions left out, smallest first."""
    found = model_files(
        [
            *files("README.md", "mmproj-m-F16.gguf", "m.imatrix.gguf"),
            *files("Q8_0/m-00002-of-00002.gguf", "Q8_0/m-00001-of-00002.gguf"),
            *files("F16/m-00001-of-00003.gguf", "F16/m-00003-of-00003.gguf"),
            RepoFile("m-BF16.gguf", None, None),
            RepoFile("m-Q4_K_M.gguf", 12, "0" * 64),
        ]
    )

    assert found == [
        ModelFile("Q4_K_M", ("m-Q4_K_M.gguf",), 12),
        ModelFile(
            "Q8_0", ("Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf"), 20
        ),
    ]


def test_a_model_is_chosen_by_its_quantization() -> None:
    """A quantization in any case, the usual one, or the only model there is."""
    models = model_files(files("m-Q4_K_M.gguf", "m-UD-Q5_K_M.gguf", "m-Q8_0.gguf"))

    assert choose_model("o/r", models, "q8_0") == "m-Q8_0.gguf"
    assert choose_model("o/r", models, "Q5_K_M") == "m-UD-Q5_K_M.gguf"
    assert choose_model("o/r", models, None) == "m-Q4_K_M.gguf"
    assert choose_model("o/r", model_files(files("m.gguf")), None) == "m.gguf"


def test_a_choice_that_cannot_be_made_says_what_there_is() -> None:
    """Nothing there, nothing of that name, or several of it, are told apart."""
    models = model_files(files("a-Q8_0.gguf", "b-Q8_0.gguf", "c-F16.gguf"))

    with pytest.raises(ModelError, match=r"no GGUF model"):
        choose_model("o/r", [], None)
    with pytest.raises(ModelError, match=r"no file is IQ4_XS; .* Q8_0, Q8_0, F16"):
        choose_model("o/r", models, "iq4_xs")
    with pytest.raises(ModelError, match=r"not said which one; .* F16"):
        choose_model("o/r", models, None)
    with pytest.raises(ModelError, match=r"2 models are Q8_0: .*'o/r:a-Q8_0.gguf'"):
        choose_model("o/r", models, "Q8_0")


def test_names_that_others_chose_are_shown_harmless_and_few() -> None:
    """An escape in a file's name is not shown, nor a thousand files."""
    models = model_files(files(*(f"\x1b[2J{number}.gguf" for number in range(1000))))
    twins = model_files(files("a\x1b-Q8_0.gguf", "b\x1b-Q8_0.gguf"))

    for known, wanted in ((models, None), (twins, "Q8_0")):
        with pytest.raises(ModelError, match="\ufffd") as raised:
            choose_model("o/r", known, wanted)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 1000


def test_nearest_names_ignore_case() -> None:
    """A name that differs in case only is the nearest one."""
    known = ["gpt-oss-20b-MXFP4.gguf", "other.gguf"]
    assert nearest_names("gpt-oss-20b-mxfp4.gguf", known) == known[:1]
