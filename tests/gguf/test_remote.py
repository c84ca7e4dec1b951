"""Headers over HTTP: what it costs, what goes wrong, and who learns what."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from gguf_writer import UINT16, File, Tensor, small_file
from stand_in_hub import HubFile, StandInHub

from llamatelemetry._address import RemoteAddress
from llamatelemetry.exceptions import (
    ConfigurationError,
    DownloadError,
    GatedModelError,
    GGUFError,
    LLCudaError,
    ModelError,
)
from llamatelemetry.gguf import _remote
from llamatelemetry.gguf._remote import (
    MOST_REMOTE_BYTES,
    RemoteSource,
    open_reference,
    open_url,
    plan_request,
)
from llamatelemetry.gguf.reader import read_header

KIB = 1024
GB = 10**9
REPO = "owner/Model-GGUF"
TOKEN = "hf_secret_of_the_stand_in"
MOST_REQUESTS = 8
FIRST = 240 * KIB


@pytest.fixture(autouse=True)
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for no long."""
    monkeypatch.setattr(_remote, "_RETRY_DELAYS", (0.01, 0.01, 0.01))


def address(hub: StandInHub, path: str = "m.gguf", repo: str = REPO) -> str:
    """Return a file's address on the stand-in."""
    return f"{hub.url}/{repo}/resolve/main/{path}"


def small(hub: StandInHub, path: str = "m.gguf") -> bytes:
    """Put a small model on the stand-in; return its bytes."""
    data = small_file().build()
    hub.add(REPO, path, data)
    return data


def long_file(hub: StandInHub) -> HubFile:
    """Put a file on the stand-in whose every 8 bytes tell where they stand."""
    data = b"".join(struct.pack("<Q", number) for number in range(128 * KIB))
    return hub.add(REPO, "m.gguf", data)


def everything_said(error: BaseException) -> str:
    """Return all that an error shows anywhere: texts, arguments, what it came from."""
    shown = "".join(traceback.format_exception(error))
    link: BaseException | None = error
    while link is not None:
        shown += repr(link) + str(link) + repr(link.args) + repr(vars(link))
        link = link.__cause__ or link.__context__
    return shown


# What it costs


@dataclass(frozen=True)
class Shape:
    """What a header looks like.

    Attributes:
        tokens: How many tokens.
        merges: How many merges.
        tensors: How many tensors.
        first: Letters of the first tokens.
        last: Letters of the last ones.
        scores: Whether there are scores.
    """

    tokens: int
    merges: int
    tensors: int
    first: int
    last: int
    scores: bool = False


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name.encode()) + struct.pack("<I", kind) + value


def strings(values: list[bytes]) -> bytes:
    return struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))


def made_header(shape: Shape) -> bytes:
    """Return a header of this shape; tokens get longer (or shorter) by and by."""
    step = (shape.last - shape.first) / max(shape.tokens, 1)
    letters = b"abcdefghij" * 20
    tokens = [
        letters[index % 7 :][
            : max(1, shape.first + round(step * index) + index % 3 - 1)
        ]
        for index in range(shape.tokens)
    ]
    merges = [
        tokens[index % shape.tokens][:6] + b" " + tokens[-1 - index % shape.tokens][:5]
        for index in range(shape.merges)
    ]
    numbers = struct.pack("<IQ", 6, shape.tokens) + bytes(4 * shape.tokens)
    keys = [
        key("general.architecture", 8, text(b"llama")),
        *(key(f"llama.number_{n}", 4, struct.pack("<I", n)) for n in range(30)),
        key("tokenizer.ggml.tokens", 9, strings(tokens)),
        *([key("tokenizer.ggml.scores", 9, numbers)] if shape.scores else []),
        key("tokenizer.ggml.token_type", 9, numbers),
        key("tokenizer.ggml.merges", 9, strings(merges)),
        key("tokenizer.chat_template", 8, text(b"x" * 9000)),
    ]
    table = [
        text(b"blk.%d.ffn_down_%d.weight" % divmod(index, 9))
        + struct.pack("<IQQIQ", 2, 32, 32, 0, 4096 * index)
        for index in range(shape.tensors)
    ]
    counts = struct.pack("<IQQ", 3, shape.tensors, len(keys))
    return b"GGUF" + counts + b"".join(keys + table)


SHAPES = [
    Shape(100, 0, 5, 3, 8),
    Shape(500, 400, 20, 3, 8, scores=True),
    Shape(5_000, 4_800, 100, 3, 8),
    Shape(32_000, 0, 291, 3, 9, scores=True),  # as Llama 2
    Shape(32_000, 61_000, 291, 3, 9, scores=True),
    Shape(50_000, 50_000, 300, 2, 9),  # as GPT-2
    Shape(128_000, 280_000, 291, 3, 10),  # as Llama 3
    Shape(151_936, 151_387, 400, 3, 9),  # as Qwen 2
    Shape(200_000, 446_000, 459, 3, 9),  # as gpt-oss
    Shape(248_000, 247_000, 900, 3, 12),  # as Qwen 3.5
    Shape(262_144, 0, 600, 3, 11, scores=True),  # as Gemma 3
    Shape(262_144, 514_000, 700, 3, 11, scores=True),  # as Gemma 4
    Shape(150_000, 150_000, 6_000, 2, 24),
    Shape(250_000, 0, 300, 30, 3),  # the longest first
    Shape(100, 90, 30_000, 3, 8),  # nearly nothing but tensors
    Shape(64_000, 64_000, 20_000, 2, 12, scores=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_remote_header_costs_little_more_than_its_bytes(
    hub: StandInHub, shape: Shape
) -> None:
    """At most max(25 %, 512 KiB) more, in 8 requests, redirects among both."""
    data = made_header(shape)
    hub.add(REPO, "m.gguf", data, zeros=8 * GB)

    header = read_header(address(hub))

    assert header.header_bytes == len(data)
    assert header.file_bytes == len(data) + 8 * GB
    assert len(header.metadata["tokenizer.ggml.merges"]) == shape.merges
    assert len(header.tensors) == shape.tensors
    assert hub.sent() <= len(data) + max(len(data) // 4, 512 * KIB)
    assert len(hub.requests) <= MOST_REQUESTS
    for request in hub.requests:
        assert request.headers["range"].startswith("bytes=")
        assert not request.headers["range"].endswith("-")


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[8], SHAPES[11]], ids=str)
def test_the_metadata_alone_costs_one_small_request(
    hub: StandInHub, shape: Shape
) -> None:
    """Without the vocabulary behind it, the metadata is read for 512 KiB or less."""
    hub.add(REPO, "m.gguf", made_header(shape), zeros=8 * GB)

    header = read_header(address(hub), stop_before="tokenizer.")

    assert not header.complete
    assert header.metadata["llama.number_29"] == 29
    assert hub.sent() <= 512 * KIB
    assert len(hub.seen("cdn")) == 1


def test_long_metadata_costs_half_a_mebibyte(hub: StandInHub) -> None:
    """Where the metadata passes the first request, the second is as small."""
    keys = [
        key("general.description", 8, text(b"x" * 300 * KIB)),
        key("tokenizer.ggml.tokens", 9, strings([b"token"] * 250_000)),
    ]
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys)
    hub.add(REPO, "m.gguf", data, zeros=GB)

    assert len(read_header(address(hub), stop_before="tokenizer.").metadata) == 1
    assert hub.sent() <= 512 * KIB


def test_the_vocabularies_of_real_models_cost_little_more(
    hub: StandInHub, vocabulary_files: list[Path]
) -> None:
    """The bounds hold for every vocabulary of llama.cpp's, with weights behind it."""
    for path in vocabulary_files:
        data = path.read_bytes()
        hub.add(REPO, "m.gguf", data, zeros=8 * GB)
        before, requests = hub.sent(), len(hub.requests)

        header = read_header(address(hub))

        assert header.metadata == read_header(path).metadata
        most = header.header_bytes + max(header.header_bytes // 4, 512 * KIB)
        assert hub.sent() - before <= most, path.name
        assert len(hub.requests) - requests <= MOST_REQUESTS, path.name


def test_what_is_asked_for_follows_from_what_is_known() -> None:
    """Estimates are followed as far as four times what was seen, and never ignored."""
    assert plan_request(0, 64, 64) == FIRST
    assert plan_request(0, 900 * KIB, 0) == 900 * KIB
    assert plan_request(FIRST, 8, 8) == FIRST
    assert plan_request(2 * FIRST, 8, 8) == 512 * KIB
    assert plan_request(8192 * KIB, 8, 8) == 2048 * KIB
    assert plan_request(1024 * KIB, 8, 512 * KIB) == (512 + 192) * KIB
    assert plan_request(1024 * KIB, 8, 3072 * KIB) == (3072 + 512) * KIB
    assert plan_request(1024 * KIB, 8, 9000 * KIB) == 4096 * KIB


def test_a_file_costs_no_more_than_the_limit(hub: StandInHub) -> None:
    """No header may take more than 64 MiB; what would is refused before it is asked."""
    hub.add(REPO, "m.gguf", b"GGUF", zeros=GB)
    source = open_url(address(hub))

    with pytest.raises(GGUFError, match="more than 64.0 MiB") as raised:
        source.fetch(0, MOST_REMOTE_BYTES + 1, 0)
    assert hub.requests == []
    assert raised.value.path == address(hub)
    source.fetch(0, MOST_REMOTE_BYTES - KIB, 0)
    with pytest.raises(GGUFError, match="more than"):
        source.fetch(MOST_REMOTE_BYTES - KIB, 2 * KIB, 0)
    source.close()
    assert hub.sent() <= MOST_REMOTE_BYTES + KIB


# What is read


def test_a_header_is_the_same_from_anywhere(hub: StandInHub) -> None:
    """Through a redirect, from the Hub's own disk, and from memory, all is equal."""
    data = small(hub)
    hub.add(REPO, "kept.gguf", data, large=False)
    here = read_header(data)

    for path in ("m.gguf", "kept.gguf"):
        there = read_header(address(hub, path))
        assert there.metadata == here.metadata
        assert there.tensors == here.tensors
        assert there.file_bytes == len(data)
        assert there.source == address(hub, path)


def test_where_a_redirect_led_is_asked_directly(hub: StandInHub) -> None:
    """The first address is asked once; later ranges go to where it led."""
    file = long_file(hub)
    source = open_url(address(hub))
    pieces = [source.fetch(0, 8, 8), source.fetch(FIRST, 8, 8)]
    pieces.append(source.fetch(2 * FIRST, 900 * KIB, 0))
    source.close()

    assert b"".join(pieces) == file.beginning
    assert len(hub.seen("hub")) == 1
    assert len(hub.seen("cdn")) == 3
    assert source.size == file.size


def test_an_expired_signature_is_renewed(hub: StandInHub) -> None:
    """When the CDN refuses, the first address is asked anew, and reading goes on."""
    file = long_file(hub)
    hub.signature_uses = 1
    source = open_url(address(hub))
    data = b"".join(source.fetch(at, 8, 8) for at in (0, FIRST, 2 * FIRST))
    source.close()

    assert data == file.beginning[: 2 * FIRST + 512 * KIB]
    assert [request.status for request in hub.seen("cdn")] == [206, 403, 206, 403, 206]
    assert len(hub.seen("hub")) == 3


def test_a_signature_that_never_holds_is_renewed_once(hub: StandInHub) -> None:
    """A refusal of a fresh signature is believed, and said without the signature."""
    long_file(hub)
    hub.signature_uses = 1
    source = open_url(address(hub))
    source.fetch(0, 8, 8)
    hub.signature_uses = 0

    with pytest.raises(DownloadError, match=r"refuses the file \(403\)") as raised:
        source.fetch(FIRST, 8, 8)
    source.close()
    assert [request.status for request in hub.seen("cdn")] == [206, 403, 403]
    assert "of-the-cdn" not in everything_said(raised.value)


def test_the_end_of_a_file_is_no_error(hub: StandInHub) -> None:
    """Fewer bytes come where the file ends, and none behind it, which costs nothing."""
    hub.add(REPO, "m.gguf", b"x" * 100)
    source = open_url(address(hub))

    assert source.size is None
    assert source.fetch(200, 8, 8) == b""
    assert source.size == 100
    assert source.fetch(0, 1000, 1000) == b"x" * 100
    requests = len(hub.requests)
    assert source.fetch(100, 8, 8) == b""
    source.close()
    assert len(hub.requests) == requests


def test_an_empty_or_foreign_file_is_no_gguf(hub: StandInHub) -> None:
    """What is no GGUF is a GGUFError that names the address."""
    hub.add(REPO, "m.gguf", b"")
    hub.add(REPO, "page.gguf", b"<!doctype html>" * 100)

    for path in ("m.gguf", "page.gguf"):
        with pytest.raises(GGUFError) as raised:
            read_header(address(hub, path))
        assert raised.value.path == address(hub, path)


def test_ranges_shorter_than_asked_are_put_together(hub: StandInHub) -> None:
    """A server may give less than asked; the rest is asked for."""
    file = long_file(hub)
    hub.ranges = "short"
    source = open_url(address(hub))

    assert source.fetch(0, file.size, 0) == file.beginning
    source.close()


def test_ranges_in_crumbs_are_given_up(hub: StandInHub) -> None:
    """A server that gives a byte at a time is left after a few requests."""
    long_file(hub)
    hub.ranges = "crumbs"
    source = open_url(address(hub))

    with pytest.raises(DownloadError, match="pieces that are too small"):
        source.fetch(0, KIB, 0)
    source.close()
    assert len(hub.seen("cdn")) < 20


def test_shards_are_read_from_beside(hub: StandInHub) -> None:
    """The other shard is found in the same folder, under an address of its own."""
    hub.add(REPO, "Q8/m-00001-of-00002.gguf", b"one")
    hub.add(REPO, "Q8/m-00002-of-00002.gguf", b"two")
    first = open_url(address(hub, "Q8/m-00001-of-00002.gguf") + "?download=true")
    named = open_reference(f"{REPO}:Q8/m-00001-of-00002.gguf")

    for source in (first, named):
        beside = source.sibling("m-00002-of-00002.gguf")
        assert beside.fetch(0, 3, 3) == b"two"
        assert beside.name == source.name.replace("m-00001", "m-00002")
        beside.close()
        source.close()
    assert first.name == address(hub, "Q8/m-00001-of-00002.gguf")
    assert named.name == f"{REPO}:Q8/m-00001-of-00002.gguf"


def shard(number: int) -> bytes:
    """Return one of two shards, counted from 0."""
    keys_ = [("split.no", UINT16, number), ("split.count", UINT16, 2)]
    return File(keys_, [Tensor(f"t.{number}")]).build()


@pytest.mark.parametrize(
    "stem", ["my model", "a#b/c?d", "100%25/p%20q", "C:D", "é+(1)"]
)
def test_shards_of_any_name_are_found(hub: StandInHub, stem: str) -> None:
    """What an address writes in another way is found there, and on the Hub."""
    for number in (0, 1):
        hub.add(REPO, f"{stem}-0000{number + 1}-of-00002.gguf", shard(number))
    second = f"{stem}-00002-of-00002.gguf"
    first = second.replace("00002-of", "00001-of")

    named = read_header(f"{REPO}:{second}")
    plain = read_header(address(hub, quote(second)))

    assert len(named.tensors) == len(plain.tensors) == 2
    assert named.shards == (f"{REPO}:{first}", f"{REPO}:{second}")
    assert list(map(unquote, plain.shards)) == [
        unquote(address(hub, quote(name))) for name in (first, second)
    ]


def test_a_name_of_the_hub_s_cannot_steer_a_terminal(hub: StandInHub) -> None:
    """A file's name may hold an escape; the file is read, and shown without it."""
    small(hub, "m\x1b[2J-Q4_K_M.gguf")

    header = read_header(REPO)

    assert header.source == f"{REPO}:m\ufffd[2J-Q4_K_M.gguf"
    hub.add(REPO, "m\x1b[2J-Q4_K_M.gguf", b"none")
    with pytest.raises(GGUFError) as raised:
        read_header(REPO)
    assert str(raised.value).isprintable()


def test_one_chunk_of_any_size_is_taken_in_pieces() -> None:
    """A server may call a chunk as large as it likes; it is left with the first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=send_one_chunk, args=(listener,))
        server.start()
        tracemalloc.start()
        try:
            with pytest.raises(DownloadError, match="gives more than it says"):
                read_header(f"http://127.0.0.1:{listener.getsockname()[1]}/m.gguf")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            server.join()
    assert peak < 16 * KIB * KIB


def send_one_chunk(listener: socket.socket) -> None:
    """Answer one request with a range in one chunk of 64 MiB."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        connection.recv(KIB * KIB)
        connection.sendall(
            b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Range: bytes 0-%d/1000000000\r\n\r\n%x\r\n"
            % (FIRST - 1, 64 * KIB * KIB)
        )
        for _ in range(64):
            connection.sendall(bytes(KIB * KIB))
        connection.sendall(b"\r\n0\r\n\r\n")


# What goes wrong


def dropped(hub: StandInHub) -> None:
    hub.fail_next("cdn", "drop", 2, after=100 * KIB)


def dropped_at_once(hub: StandInHub) -> None:
    hub.fail_next("cdn", "drop", 3)


def overloaded(hub: StandInHub) -> None:
    hub.fail_next("cdn", "status", status=503)
    hub.fail_next("cdn", "status", status=500)


def limited(hub: StandInHub) -> None:
    hub.fail_next("hub", "status", status=429, headers={"Retry-After": "0"})


@pytest.mark.parametrize("fault", [dropped, dropped_at_once, overloaded, limited])
def test_what_passes_is_waited_for(
    hub: StandInHub, fault: Callable[[StandInHub], None]
) -> None:
    """Dropped connections and busy servers are asked again; nothing comes twice."""
    file = long_file(hub)
    fault(hub)
    source = open_url(address(hub))

    assert source.fetch(0, file.size, 0) == file.beginning
    source.close()
    # What a reset takes with it on the way is lost, and nothing else.
    assert hub.sent() <= file.size + 3 * FIRST


def test_what_does_not_pass_is_given_up(hub: StandInHub) -> None:
    """After four tries the last reason is told."""
    long_file(hub)
    hub.fail_next("cdn", "status", 9, status=503)
    source = open_url(address(hub))

    with pytest.raises(DownloadError, match=r"m.gguf: the server answers 503\. Try ag"):
        source.fetch(0, 8, 8)
    source.close()
    assert len(hub.seen("cdn")) == 4


def test_a_long_wait_is_told_and_not_waited_for(hub: StandInHub) -> None:
    """A server that wants minutes is not asked again, and the wait is named."""
    long_file(hub)
    hub.fail_next("cdn", "status", 9, status=429, headers={"Retry-After": "300"})
    source = open_url(address(hub))
    begun = time.monotonic()

    with pytest.raises(DownloadError, match="answers 429 and wants .* in 300 s"):
        source.fetch(0, 8, 8)
    source.close()
    assert time.monotonic() - begun < 60
    assert len(hub.seen("cdn")) == 1


def test_a_server_without_ranges_is_refused_unread(hub: StandInHub) -> None:
    """A whole file in place of a range is hung up on, with a reason."""
    hub.add(REPO, "m.gguf", b"GGUF", zeros=GB)
    hub.ranges = "ignored"

    with pytest.raises(DownloadError, match="whole files only, no ranges"):
        read_header(address(hub))
    # What the machine's own buffers take before it hangs up.
    assert hub.sent() < 64 * 2**20


def shifted(hub: StandInHub) -> None:
    hub.ranges = "shifted"


def endless(hub: StandInHub) -> None:
    hub.ranges = "endless"


def compressed(hub: StandInHub) -> None:
    hub.encoding = "gzip"


def circular(hub: StandInHub) -> None:
    hub.endless_redirects = True


def redirected_nowhere(hub: StandInHub) -> None:
    hub.fail_next("hub", "status", status=302)


def redirected_to_a_file(hub: StandInHub) -> None:
    told = {"Location": "file:///etc/passwd"}
    hub.fail_next("hub", "status", status=302, headers=told)


def redirected_with_a_password(hub: StandInHub) -> None:
    told = {"Location": "http://user:password-of-the-cdn@127.0.0.2/"}
    hub.fail_next("hub", "status", status=302, headers=told)


def missing(hub: StandInHub) -> None:
    hub.repositories[REPO].files.clear()


def locked(hub: StandInHub) -> None:
    hub.repositories[REPO].gated = True


def odd(hub: StandInHub) -> None:
    hub.fail_next("cdn", "status", status=418)


def unreachable(hub: StandInHub) -> None:
    told = {"Location": "http://127.0.0.2:1/?Signature=of-the-cdn"}
    hub.fail_next("hub", "status", 9, status=302, headers=told)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (shifted, DownloadError, "asked for bytes 0 to 245,759, the server says"),
        (endless, DownloadError, "gives more than it says"),
        (compressed, DownloadError, "compressed"),
        (circular, DownloadError, "redirects more than 5 times"),
        (redirected_nowhere, DownloadError, "redirects to no address"),
        (redirected_to_a_file, DownloadError, "redirects to no address"),
        (redirected_with_a_password, DownloadError, "redirects to no address"),
        (missing, ModelError, r"no such file \(404\)"),
        (locked, DownloadError, r"refuses the file \(401\)"),
        (odd, DownloadError, "answers 418"),
        (unreachable, DownloadError, "connection failed .*refused"),
    ],
)
def test_what_cannot_be_read_says_why(
    hub: StandInHub,
    fault: Callable[[StandInHub], None],
    kind: type[LLCudaError],
    words: str,
) -> None:
    """Each is one error of ours, and shows neither signature, token nor query."""
    long_file(hub)
    fault(hub)
    headers = {"Authorization": "Bearer hf_secret_but_wrong"}
    source = open_url(address(hub) + "?key=hf_secret_query", headers=headers)

    with pytest.raises(kind, match=words) as raised:
        source.fetch(0, 8, 8)
    source.close()
    said = everything_said(raised.value) + repr(source)
    assert str(raised.value).startswith(address(hub) + ": ")
    assert "hf_secret" not in said
    assert "of-the-cdn" not in said
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    assert len(hub.requests) <= 8


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_is_no_mixture(hub: StandInHub, etags: bool) -> None:
    """Another ETag, or another size where there is none, ends the reading."""
    file = long_file(hub)
    hub.etags = etags
    source = open_url(address(hub))
    source.fetch(0, 8, 8)
    hub.add(REPO, "m.gguf", file.beginning[::-1], zeros=0 if etags else 8)

    with pytest.raises(DownloadError, match="changed while it was read"):
        source.fetch(FIRST, 8, 8)
    source.close()


def test_a_file_that_shrinks_is_noticed(hub: StandInHub) -> None:
    """A range behind the new end is no end of the file that was begun."""
    file = long_file(hub)
    source = open_url(address(hub))
    source.fetch(0, 8, 8)
    hub.add(REPO, "m.gguf", file.beginning[: FIRST // 2])

    with pytest.raises(DownloadError, match="refuses bytes 245,760"):
        source.fetch(FIRST, 8, 8)
    source.close()


def test_nobody_listening_is_told_soon(hub: StandInHub) -> None:
    """An address where nothing listens is a DownloadError within the patience."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}/m.gguf?key=hf_secret"
        with pytest.raises(DownloadError, match="connection failed") as raised:
            read_header(nowhere)
    assert "hf_secret" not in everything_said(raised.value)


def test_a_silent_server_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and says nothing is given up after the silence."""
    monkeypatch.setattr(_remote, "_SILENCE_SECONDS", 0.05)
    monkeypatch.setattr(_remote, "_RETRY_DELAYS", (0.01,))
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        source = open_url(f"http://127.0.0.1:{deaf.getsockname()[1]}/m.gguf")
        with pytest.raises(DownloadError, match="the server is silent"):
            source.fetch(0, 8, 8)
        source.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hf_secret@host/m.gguf",
        "https://user:hf_sec/hf_secret@host/m.gguf",
        "https://user:hf_secret#hf_secret@host/m.gguf",
        "ftp://host/m.gguf",
        "http://",
        "http://[::1/m.gguf?key=hf_secret",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    """What is no address of HTTP, or holds a password, is refused unsent, unshown."""
    with pytest.raises(ConfigurationError, match="address cannot be used") as raised:
        RemoteSource(url)
    assert "hf_secret" not in str(raised.value)


def test_no_redirect_leads_from_https_to_http() -> None:
    """Nobody between may take the reading out of TLS."""
    address = RemoteAddress("https://host/m.gguf", name="m.gguf")

    with pytest.raises(DownloadError, match="from https to http"):
        address._next("https://host/m.gguf", "http://host/m.gguf")
    following = address._next("https://host/a/m.gguf", "../b/m%20m.gguf")
    assert following == "https://host/b/m%20m.gguf"
    with pytest.raises(DownloadError, match="from https to http"):
        RemoteSource("https://host/m.gguf", location="http://host/m.gguf?Signature=1")


# Who learns what


@pytest.mark.parametrize("redirects", [1, 3])
def test_credentials_stay_with_their_origin(hub: StandInHub, redirects: int) -> None:
    """The headers given are sent to the Hub, at every hop, and never to the CDN."""
    small(hub)
    hub.repositories[REPO].gated = True
    hub.redirects = redirects
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Mine": "hf_secret_header"}
    source = open_url(address(hub), headers=headers)
    source.fetch(0, 8, 8)
    source.close()

    assert len(hub.seen("hub")) == redirects
    for request in hub.seen("hub"):
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert request.headers["x-mine"] == "hf_secret_header"
    assert len(hub.seen("cdn")) == 1
    for request in hub.seen("cdn"):
        assert not any("hf_secret" in value for value in request.headers.values())


def test_a_reference_is_read_with_the_users_token(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One HEAD resolves it, the CDN gives the bytes, and only the Hub has the token."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = long_file(hub)
    hub.repositories[REPO].gated = True
    hub.signature_uses = 1

    source = open_reference(f"{REPO}:m.gguf")
    data = source.fetch(0, 8, 8) + source.fetch(FIRST, 8, 8)
    source.close()

    assert data == file.beginning[: 2 * FIRST]
    assert source.name == f"{REPO}:m.gguf"
    # HEAD, then the CDN; when the signature is used up, the Hub and the CDN again.
    assert [(one.origin, one.method, one.status) for one in hub.requests] == [
        ("hub", "HEAD", 302),
        ("cdn", "GET", 206),
        ("cdn", "GET", 403),
        ("hub", "GET", 302),
        ("cdn", "GET", 206),
    ]
    for request in hub.requests:
        assert ("authorization" in request.headers) == (request.origin == "hub")
    assert TOKEN not in repr(source)


def test_a_quantization_finds_its_file(hub: StandInHub) -> None:
    """A quantization, or the repository alone, is enough; pasted pages too."""
    data = small(hub, "m-Q4_K_M.gguf")
    small(hub, "m-Q8_0.gguf")
    hub.add(REPO, "mmproj-m-F16.gguf", b"none")

    assert read_header(f"{REPO}:q8_0").source == f"{REPO}:m-Q8_0.gguf"
    commit = hub.repositories[REPO].commit
    pinned = read_header(f"{REPO}@{commit}:m-Q8_0.gguf")
    assert pinned.source == f"{REPO}@{commit}:m-Q8_0.gguf"
    for text_ in (REPO, f"https://huggingface.co/{REPO}/tree/main"):
        source = open_reference(text_)
        assert source.name == f"{REPO}:m-Q4_K_M.gguf"
        source.close()
    page = f"https://huggingface.co/{REPO}/blob/main/m-Q4_K_M.gguf"
    assert read_header(page).metadata == read_header(data).metadata


def test_a_reference_that_leads_nowhere_says_what_there_is(hub: StandInHub) -> None:
    """A missing file or quantization, a gated model and no reference are told apart."""
    small(hub, "m-Q4_K_M.gguf")

    with pytest.raises(ModelError, match="nearest: m-Q4_K_M.gguf"):
        open_reference(f"{REPO}:m-q4_k_m.gguf")
    with pytest.raises(ModelError, match="no file is Q8_0; the repository has Q4_K_M"):
        open_reference(f"{REPO}:Q8_0")
    with pytest.raises(ConfigurationError, match="no reference to the Hub"):
        open_reference("m.gguf")
    hub.repositories[REPO].gated = True
    with pytest.raises(GatedModelError, match="accept its licence"):
        open_reference(f"{REPO}:m-Q4_K_M.gguf")
