"""The door to the Hub: the real client, and a Hub on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable

import pytest
from stand_in_hub import StandInHub

from llamatelemetry.exceptions import (
    ConfigurationError,
    DownloadError,
    GatedModelError,
    LLCudaError,
    ModelError,
    OfflineError,
)
from llamatelemetry.setup import _hub
from llamatelemetry.setup._hub import RepoFile, list_files, resolve_file

REPO = "owner/Model-GGUF"
TOKEN = "hf_secret_of_the_stand_in"


def everything_said(error: BaseException) -> str:
    """Return all that an error shows anywhere: texts, arguments, what it came from."""
    shown = "".join(traceback.format_exception(error))
    link: BaseException | None = error
    while link is not None:
        shown += repr(link) + str(link) + repr(link.args) + repr(vars(link))
        link = link.__cause__ or link.__context__
    return shown


def test_files_come_with_size_and_digest(hub: StandInHub) -> None:
    """Large files have the digest of their content, small ones none; one request."""
    model = hub.add(REPO, "m-Q4_K_M.gguf", b"GGUF" * 100)
    hub.add(REPO, "README.md", b"hello", large=False)

    assert list_files(REPO) == [
        RepoFile("README.md", 5, None),
        RepoFile("m-Q4_K_M.gguf", 400, model.digest),
    ]
    assert list_files(REPO, hub.repositories[REPO].commit) == list_files(REPO)
    assert len(hub.requests) == 3
    assert hub.seen("hub")[0].path == f"/api/models/{REPO}"


def test_a_file_is_resolved_with_one_request(hub: StandInHub) -> None:
    """The address holds the commit; the location leads to the CDN, and is not shown."""
    model = hub.add(REPO, "Q8_0/my m.gguf", b"GGUF" * 100)
    commit = hub.repositories[REPO].commit

    found = resolve_file(REPO, "Q8_0/my m.gguf")

    assert [request.method for request in hub.requests] == ["HEAD"]
    assert found.url == f"{hub.url}/{REPO}/resolve/{commit}/Q8_0/my%20m.gguf"
    assert found.location.startswith(hub.cdn_url)
    assert (found.size, found.etag, found.commit) == (400, model.digest, commit)
    assert found.headers == {}
    assert "ignature" not in repr(found)


def test_the_token_is_sent_to_the_hub_and_shown_nowhere(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token opens gated and private repositories; a repr never holds it."""
    hub.add(REPO, "m.gguf", b"GGUF", gated=True, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    found = resolve_file(REPO, "m.gguf")
    list_files(REPO)

    assert found.headers == {"Authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in repr(found)
    assert len(hub.requests) == 2
    for request in hub.requests:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"


def test_no_token_is_sent_where_that_is_turned_off(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_DISABLE_IMPLICIT_TOKEN keeps the token at home."""
    from huggingface_hub import constants

    hub.add(REPO, "m.gguf", b"GGUF")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)

    assert resolve_file(REPO, "m.gguf").headers == {}
    list_files(REPO)

    assert all("authorization" not in request.headers for request in hub.requests)


def gated(hub: StandInHub) -> None:
    hub.repositories[REPO].gated = True


def private(hub: StandInHub) -> None:
    hub.repositories[REPO].private = True


def refused(hub: StandInHub) -> None:
    hub.fail_next("hub", "status", status=403)


def bare_refusal(hub: StandInHub) -> None:
    hub.fail_next("hub", "status", status=401)


def limited(hub: StandInHub) -> None:
    told = {"Retry-After": "77", "RateLimit": '"resolvers";r=0;t=77'}
    hub.fail_next("hub", "status", 3, status=429, headers=told)


def teapot(hub: StandInHub) -> None:
    hub.fail_next("hub", "status", status=418)


def nothing(hub: StandInHub) -> None:
    pass


@pytest.mark.parametrize(
    ("fault", "asked", "kind", "words"),
    [
        (gated, "m-Q8_0.gguf", GatedModelError, "accept its licence.*HF_TOKEN"),
        (refused, "m-Q8_0.gguf", GatedModelError, "gated"),
        (private, "m-Q8_0.gguf", ModelError, "no such repository.*HF_TOKEN"),
        (bare_refusal, "m-Q8_0.gguf", ModelError, "no such repository"),
        (nothing, "m-Q8_0.gguf@v9", ModelError, "no such revision"),
        (nothing, "M-q8_0.gguf", ModelError, "nearest: m-Q8_0.gguf"),
        (nothing, "zzz", ModelError, "nearest: m-Q4_K_M.gguf, m-Q8_0.gguf"),
        (limited, "m-Q8_0.gguf", DownloadError, "429. Try again in 77 s; a tok"),
        (teapot, "m-Q8_0.gguf", DownloadError, "answers 418"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: StandInHub,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fault: Callable[[StandInHub], None],
    asked: str,
    kind: type[LLCudaError],
    words: str,
) -> None:
    """Each refusal is one error of ours, and holds nothing of the request."""
    hub.add(REPO, "m-Q8_0.gguf", b"GGUF")
    hub.add(REPO, "m-Q4_K_M.gguf", b"GGUF")
    hub.add(REPO, "README.md", b"hello", large=False)
    fault(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret_but_wrong")
    monkeypatch.setattr(_hub, "_RETRY_DELAYS", (0.01, 0.01))

    with pytest.raises(kind, match=words) as raised:
        resolve_file(REPO, *asked.split("@"))

    assert REPO in str(raised.value)
    assert hub.requests[0].headers["authorization"] == "Bearer hf_secret_but_wrong"
    assert "hf_secret" not in everything_said(raised.value)
    assert "ignature" not in everything_said(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_what_the_hub_says_cannot_steer_a_terminal(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escapes in the names of its files and in its headers are not shown."""
    monkeypatch.setattr(_hub, "_RETRY_DELAYS", ())
    hub.add(REPO, "m\x1b[2J.gguf", b"GGUF")

    with pytest.raises(ModelError, match="nearest: m\ufffd") as raised:
        resolve_file(REPO, "m.gguf")
    assert str(raised.value).isprintable()
    told = {"Retry-After": "1\x1b[2J"}
    hub.fail_next("hub", "status", status=429, headers=told)
    with pytest.raises(DownloadError, match="Try again in 1\ufffd") as busy:
        resolve_file(REPO, "m.gguf")
    assert str(busy.value).isprintable()


def test_a_list_that_is_refused_says_so_too(hub: StandInHub) -> None:
    """Missing repositories and revisions are told apart when files are listed."""
    hub.add(REPO, "m.gguf", b"GGUF")

    with pytest.raises(ModelError, match="no such revision"):
        list_files(REPO, "v9")
    with pytest.raises(ModelError, match="no such repository"):
        list_files("owner/other")


def test_a_hub_that_stays_busy_is_given_up(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three tries, each a request, the status is told."""
    monkeypatch.setattr(_hub, "_RETRY_DELAYS", (0.01, 0.01))
    hub.add(REPO, "m.gguf", b"GGUF")
    hub.fail_next("hub", "status", 9, status=502)

    with pytest.raises(DownloadError, match="answers 502. Try again later"):
        list_files(REPO)
    assert len(hub.requests) == 3


def test_a_busy_hub_is_asked_again(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A passing 503 or 429 costs a moment and no error."""
    monkeypatch.setattr(_hub, "_RETRY_DELAYS", (0.01, 0.01))
    hub.add(REPO, "m.gguf", b"GGUF")
    hub.fail_next("hub", "status", status=503)
    hub.fail_next("hub", "status", status=429)

    assert resolve_file(REPO, "m.gguf").size == 4
    assert [request.status for request in hub.requests] == [503, 429, 302]


def test_what_is_no_hub_is_told_apart(hub: StandInHub) -> None:
    """A page in place of the Hub's answer is an error that thinks of a proxy."""
    hub.add(REPO, "m.gguf", b"GGUF")
    hub.fail_next("hub", "status", status=200)

    with pytest.raises(DownloadError, match="not answer as the Hub does.*proxy"):
        list_files(REPO)


def test_no_connection_is_offline(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address where nothing listens is an OfflineError, at once."""
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)

        with pytest.raises(OfflineError, match="cannot be reached.*internet"):
            list_files(REPO)


def test_a_hub_that_never_answers_is_not_waited_for(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is reached and says nothing, and one that is not reached at all."""
    from huggingface_hub import constants

    from llamatelemetry import _internet

    monkeypatch.setattr(_hub, "_OFFLINE_SECONDS", 0.2)
    monkeypatch.setattr(_hub, "_LONGEST_SECONDS", 0.3)
    monkeypatch.setattr(_internet, "_MOST_SECONDS", 60.0)  # it connects, if late
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(DownloadError, match="has not answered for"):
            list_files(REPO)
    monkeypatch.setattr(_internet, "_MOST_SECONDS", 0.2)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # the kernel drops what comes to a full queue
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        address = f"http://127.0.0.1:{full.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(OfflineError, match="no answer from 127.0.0.1"):
            list_files(REPO)


@pytest.mark.parametrize("name", ["", "model", "a/b/c", "o/r:m.gguf", "../x", "o r/m"])
def test_a_name_that_cannot_be_one_is_refused(hub: StandInHub, name: str) -> None:
    """What is no repository's name is refused before anybody is asked."""
    for call in (list_files, lambda repo: resolve_file(repo, "m.gguf")):
        with pytest.raises(ConfigurationError, match="owner/repository"):
            call(name)
    assert hub.requests == []


PROGRAM = """
import sys
from llamatelemetry.setup._hub import list_files, resolve_file
assert "huggingface_hub" not in sys.modules
try:
    print([file.path for file in list_files("owner/Model-GGUF")])
    resolve_file("owner/Model-GGUF", "m.gguf")
except Exception as error:
    print(type(error).__name__, error)
"""


def run_program(**environment: str) -> str:
    """Return what the program prints in a fresh process with this environment."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_the_endpoint_of_the_environment_is_asked(hub: StandInHub) -> None:
    """HF_ENDPOINT counts, and the library is imported only when it is needed."""
    hub.add(REPO, "m.gguf", b"GGUF")

    assert run_program(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN) == "['m.gguf']"

    assert [request.origin for request in hub.requests] == ["hub", "hub"]
    assert all("authorization" in request.headers for request in hub.requests)


def test_offline_asks_nobody(hub: StandInHub) -> None:
    """HF_HUB_OFFLINE is an OfflineError that names the variable; nothing is sent."""
    said = run_program(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")

    assert said.startswith("OfflineError owner/Model-GGUF: HF_HUB_OFFLINE is set")
    assert hub.requests == []
