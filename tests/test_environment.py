"""Where this process runs: the platform, its folders, and where its token is."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamatelemetry import _environment
from llamatelemetry._environment import (
    Token,
    cache_folder,
    detect_platform,
    find_token,
)

PLATFORM_VARIABLES = (
    "KAGGLE_KERNEL_RUN_TYPE",
    "KAGGLE_IS_COMPETITION_RERUN",
    "COLAB_RELEASE_TAG",
    "COLAB_BACKEND_VERSION",
    "LLAMATELEMETRY_CACHE",
    "XDG_CACHE_HOME",
)
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"

# What the clients of the images do, in small; each question is counted in a file.
KAGGLE_CLIENT = """
class CredentialError(Exception): pass
class BackendError(Exception): pass
class ValidationError(Exception): pass
class UserSecretsClient:
    def get_secret(self, label):
        assert label == "HF_TOKEN"
        with open({count!r}, "a") as file:
            file.write("asked ")
        {answer}
"""
COLAB_CLIENT = """
class NotebookAccessError(Exception): pass
class SecretNotFoundError(Exception): pass
class TimeoutException(Exception): pass
def get(key):
    assert key == "HF_TOKEN"
    with open({count!r}, "a") as file:
        file.write("asked ")
    {answer}
"""


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine that is none of the known ones, with a root of its own."""
    for name in PLATFORM_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(_environment, "_ROOT", root)
    monkeypatch.setattr(_environment, "_secrets", {})
    kept = {name: sys.modules.pop(name) for name in secret_modules()}
    yield root
    for name in secret_modules():
        del sys.modules[name]
    sys.modules.update(kept)


def secret_modules() -> list[str]:
    return [
        name
        for name in sys.modules
        if name == "kaggle_secrets" or name.startswith("google.colab")
    ]


@pytest.fixture
def kaggle(nowhere: Path) -> Path:
    """A machine with Kaggle's folders."""
    for name in ("working", "temp", "input"):
        (nowhere / "kaggle" / name).mkdir(parents=True)
    return nowhere / "kaggle"


def install_kaggle_client(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answer: str
) -> Path:
    """Put Kaggle's client on the path; return the file that counts its questions."""
    count = folder / "count"
    folder.mkdir(exist_ok=True)
    text = KAGGLE_CLIENT.format(count=str(count), answer=answer)
    (folder / "kaggle_secrets.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return count


def install_colab_client(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answer: str
) -> Path:
    """Put Colab's client on the path; return the file that counts its questions."""
    count = folder / "count"
    place = folder / "google" / "colab"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("from google.colab import userdata\n")
    text = COLAB_CLIENT.format(count=str(count), answer=answer)
    (place / "userdata.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab-20260801")
    return count


def asked(count: Path) -> int:
    return len(count.read_text().split()) if count.exists() else 0


# Platform


def test_elsewhere_is_local(nowhere: Path) -> None:
    """Without the marks of a notebook service it is this machine, and nothing more."""
    found = detect_platform()

    assert (found.name, found.mode) == ("local", None)
    assert (found.output, found.input) == (None, None)
    assert found.scratch == Path(tempfile.gettempdir())
    assert found.title == "this machine"
    assert "capsule" in found.internet_advice
    assert "driver" in found.accelerator_advice


@pytest.mark.parametrize(
    ("variables", "mode", "title"),
    [
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "interactive", "Kaggle (inter"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Batch"}, "batch", "Kaggle (batch)"),
        (
            {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_IS_COMPETITION_RERUN": "1"},
            "rerun",
            "Kaggle (rerun)",
        ),
        (
            {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLAB_RELEASE_TAG": "left over"},
            "batch",
            "Kaggle (batch)",
        ),
    ],
)
def test_kaggle_is_known_by_its_variables(
    kaggle: Path, variables: dict[str, str], mode: str, title: str
) -> None:
    """The way a notebook runs is told apart; the folders are Kaggle's."""
    found = detect_platform(variables)

    assert (found.name, found.mode) == ("kaggle", mode)
    assert found.title.startswith(title)
    assert found.scratch == kaggle / "temp"
    assert found.output == kaggle / "working"
    assert found.input == kaggle / "input"
    assert "T4 x2" in found.accelerator_advice
    assert "capsule as a dataset" in found.internet_advice
    assert ("Settings" in found.internet_advice) == (mode != "rerun")


def test_kaggle_is_known_by_its_folder(kaggle: Path) -> None:
    """A process that was given none of the variables still finds Kaggle's folder."""
    assert detect_platform({}).name == "kaggle"
    assert detect_platform({}).mode == "interactive"


@pytest.mark.parametrize("there", ["nothing", "a file"])
def test_scratch_that_is_no_folder_is_not_used(kaggle: Path, there: str) -> None:
    """Where Kaggle's scratch folder is missing, the system's temporary one serves."""
    (kaggle / "temp").rmdir()
    if there == "a file":
        (kaggle / "temp").write_text("")

    assert detect_platform().scratch == Path(tempfile.gettempdir())


def test_scratch_that_may_not_be_written_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scratch folder of somebody else is left alone."""
    with tempfile.TemporaryDirectory() as root:
        scratch = Path(root, "kaggle", "temp")
        scratch.mkdir(parents=True)
        Path(root).chmod(0o755)
        scratch.chmod(0o555)
        monkeypatch.setattr(_environment, "_ROOT", Path(root))
        known = {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}
        administrator = os.getuid() == 0
        if administrator:
            os.setresuid(65534, 65534, 0)
        try:
            found = detect_platform(known).scratch
        finally:
            if administrator:
                os.setresuid(0, 0, 0)

        assert found == Path(tempfile.gettempdir())
        scratch.chmod(0o755)
        assert detect_platform(known).scratch == scratch


@pytest.mark.parametrize("name", ["COLAB_RELEASE_TAG", "COLAB_BACKEND_VERSION"])
def test_colab_is_known_by_its_variables(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Either of Colab's variables tells it; it keeps no output and has no input."""
    monkeypatch.setenv(name, "release-colab-20260801")

    found = detect_platform()

    assert (found.name, found.mode, found.title) == ("colab", None, "Colab")
    assert (found.output, found.input) == (None, None)
    assert "Runtime" in found.accelerator_advice
    assert "capsule" in found.internet_advice


# Folders


def test_the_cache_is_where_the_variable_says(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """LLAMATELEMETRY_CACHE counts above all else, with ~ and relative paths."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for named in ("~/engines", "engines", str(tmp_path / "engines")):
        monkeypatch.setenv("LLAMATELEMETRY_CACHE", named)
        assert cache_folder() == tmp_path / "engines"
    assert not (tmp_path / "engines").exists()


def test_the_cache_on_kaggle_is_scratch(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Kaggle nothing goes to the output by itself, nor to the small home folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")

    assert cache_folder() == kaggle / "temp" / "llamatelemetry"


def test_the_cache_elsewhere_is_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """XDG_CACHE_HOME where it is set, else .cache in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "llamatelemetry"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "llamatelemetry"


# Tokens


def test_a_token_is_looked_for_in_order(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Argument, variable, saved login, Kaggle's secret; later ones are not asked."""
    count = install_kaggle_client(
        monkeypatch, tmp_path / "client", f"return '{TOKEN}4'"
    )
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}2")
    logins = 0

    def saved() -> str:
        nonlocal logins
        logins += 1
        return f"{TOKEN}3"

    assert find_token(f"{TOKEN}1", saved=saved) == Token(f"{TOKEN}1", "the argument")
    assert find_token("  ", saved=saved) == Token(f"{TOKEN}2", "HF_TOKEN")
    assert logins == 0
    monkeypatch.setenv("HF_TOKEN", " \n")
    assert find_token(saved=saved) == Token(f"{TOKEN}3", "hf auth login")
    assert asked(count) == 0
    monkeypatch.delenv("HF_TOKEN")
    assert find_token(saved=lambda: "") == Token(f"{TOKEN}4", "Kaggle's secrets")
    assert asked(count) == 1


def test_a_token_has_no_spaces_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line end that was copied with a token is no part of it."""
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")

    found = find_token()

    assert found is not None
    assert found.value == TOKEN


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its repr nor its text nor a container's holds it; copies are equal."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    found = find_token()

    assert found is not None
    shown = f"{found} {found!r} {[found]} {found!s:>50}"
    assert "hf_" not in shown
    assert str(found) == "a token from HF_TOKEN"
    assert copy.copy(found) == found
    assert pickle.loads(pickle.dumps(found)) == found


def test_colab_has_secrets_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On Colab the user's secret is found, and asked for once."""
    count = install_colab_client(monkeypatch, tmp_path / "client", f"return '{TOKEN}'")

    assert find_token() == Token(TOKEN, "Colab's secrets")
    assert find_token() == Token(TOKEN, "Colab's secrets")
    assert asked(count) == 1


def test_a_secret_is_asked_for_once(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each question goes over the network, so the answer is kept."""
    count = install_kaggle_client(
        monkeypatch, tmp_path / "client", f"return '{TOKEN}\\n'"
    )

    assert [find_token() for _ in range(3)] == [Token(TOKEN, "Kaggle's secrets")] * 3
    assert asked(count) == 1
    # What is known already needs no permission to ask.
    assert find_token(ask_secrets=lambda: False) == Token(TOKEN, "Kaggle's secrets")


def test_secrets_are_not_asked_where_that_is_not_allowed(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without internet nobody asks, and later, with internet, somebody does."""
    count = install_kaggle_client(monkeypatch, tmp_path / "client", f"return '{TOKEN}'")

    assert find_token(ask_secrets=lambda: False) is None
    assert asked(count) == 0
    assert find_token(ask_secrets=lambda: True) is not None
    assert asked(count) == 1


def test_elsewhere_nobody_asks_for_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where there are no secrets, not even the permission to ask is looked for."""
    count = install_kaggle_client(monkeypatch, tmp_path / "client", f"return '{TOKEN}'")

    def allowed() -> bool:
        raise AssertionError("somebody asks")

    assert find_token(ask_secrets=allowed) is None
    assert asked(count) == 0


@pytest.mark.parametrize(
    "answer",
    [
        "raise CredentialError('no JWT Token')",
        "raise BackendError('Unexpected response')",
        "raise ValidationError('Label must be non-empty.')",
        "raise ConnectionError('Please ensure internet is on.')",
        "import json; json.loads('<html>')",
        "return None",
        "return ''",
    ],
)
def test_a_kaggle_secret_that_cannot_be_had_is_none(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    """Each error of Kaggle's client means that there is no token, and is none here."""
    count = install_kaggle_client(monkeypatch, tmp_path / "client", answer)

    assert find_token() is None
    assert asked(count) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "raise NotebookAccessError(key)",
        "raise SecretNotFoundError(key)",
        "raise TimeoutException('timed out')",
        "return ''",
    ],
)
def test_a_colab_secret_that_cannot_be_had_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    """Each error of Colab's client means that there is no token, and is none here."""
    count = install_colab_client(monkeypatch, tmp_path / "client", answer)

    assert find_token() is None
    assert asked(count) == 1


def test_a_secret_that_is_added_later_is_found(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That there is no secret is not kept: who then adds it need not start anew."""
    added = tmp_path / "added"
    install_kaggle_client(
        monkeypatch,
        tmp_path / "client",
        f"from pathlib import Path; return Path({str(added)!r}).read_text()",
    )
    assert find_token() is None

    added.write_text(TOKEN)

    assert find_token() == Token(TOKEN, "Kaggle's secrets")


def test_an_image_without_the_client_has_no_secret(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing module is as good as a missing secret."""
    monkeypatch.setattr(sys, "path", [])

    assert find_token() is None


def test_a_client_that_hangs_is_not_waited_for(
    kaggle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without internet Kaggle's client says nothing for long: there is no token."""
    count = install_kaggle_client(
        monkeypatch,
        tmp_path / "client",
        "import signals_of_the_test; signals_of_the_test.end.wait()",
    )
    end = threading.Event()
    signals = type(sys)("signals_of_the_test")
    signals.end = end  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "signals_of_the_test", signals)
    monkeypatch.setattr(_environment, "_SECRET_SECONDS", 0.2)
    try:
        assert find_token() is None
    finally:
        end.set()
    for thread in threading.enumerate():
        if thread.name == "llamatelemetry-secret":
            thread.join(30)
    assert asked(count) == 1
