"""The tools for engines: verified, recorded and bundled, against a Hub on loopback."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import zstandard
from engine_tools import (
    MISSING_LIBCUDA,
    engine_script,
    entry,
    single,
    tar_of,
    write_manifest,
)
from engine_tools import bundle as t4_bundle
from stand_in_hub import StandInHub

from llamatelemetry.exceptions import ConfigurationError, SetupError
from llamatelemetry.setup import _download
from llamatelemetry.setup._manifest import read_manifest

BINARIES = Path(__file__).parents[2] / "binaries"
REPO = "owner/engines"
BUCKET = "buckets/ggml-org/install.sh"
OTHER = "0" * 64
MIB = 2**20
FACTS = ("--compute-capabilities", "7.5", "--license", "MIT")
LLAMA = ("--executable", "llama", "--arguments", "serve")

Tool = Callable[..., tuple[int, str, str]]


def load(name: str) -> ModuleType:
    """Load a script by its path, beside which it finds what it shares with others."""
    sys.path.insert(0, str(BINARIES))
    try:
        spec = importlib.util.spec_from_file_location(
            f"binaries_{name}", BINARIES / f"{name}.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look there
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BINARIES))
    return module


TOOLS = {name: load(name) for name in ("verify", "record", "bundle")}
SHARED = sys.modules["_engines"]


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Tool:
    """Runs a tool through its main; returns exit code, stdout and stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = TOOLS[name].main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there once the program of `marking` has run."""
    return tmp_path / "it-ran"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest that lies in a folder alone, with no engine in it yet."""
    folder = tmp_path / "manifest"
    folder.mkdir()
    return write_manifest(folder / "engines.json")


def marking(marker: Path, **script: Any) -> dict[str, Any]:
    """Return how to write a program that leaves a mark when it runs."""
    return {"first": f"touch '{marker}'", **script}


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def on_hub(hub: StandInHub, name: str, data: bytes, **values: Any) -> dict[str, Any]:
    """Put an archive into a repository; return its entry."""
    hub.add(REPO, f"{name}.tar.gz", data)
    return entry(data, id=name, repo=REPO, path=f"{name}.tar.gz", **values)


def in_bucket(hub: StandInHub, name: str, data: bytes, **values: Any) -> dict[str, Any]:
    """Put one compressed executable into a bucket; return its entry."""
    hub.add(BUCKET, f"{name}/llama-app.zst", data)
    one = {"archive": "zst", "executable": "llama", "arguments": ["serve"]}
    return entry(data, **{"id": name, "url": bucket_url(hub, name)} | one | values)


def bucket_url(hub: StandInHub, name: str) -> str:
    return f"{hub.url}/{BUCKET}/resolve/{name}/llama-app.zst"


def entries_in(manifest: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(manifest.read_text())["engines"]
    return found


def changed_lines(before: str, after: str) -> list[str]:
    """Return the lines that differ, with + and -."""
    difference = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in difference if line.startswith(("+", "-"))]


def engine_folder(folder: Path, **script: Any) -> Path:
    """Make a folder with an engine as a build leaves it: bin, lib, a link."""
    for name, data, mode in (
        ("bin/llama-server", engine_script(**script), 0o755),
        ("lib/libggml.so.0", b"not a library", 0o644),
    ):
        place = folder / name
        place.parent.mkdir(parents=True)
        place.write_bytes(data)
        place.chmod(mode)
    (folder / "lib" / "libggml.so").symlink_to("libggml.so.0")
    return folder


# verify


def test_right_archives_are_confirmed_and_their_sizes_filled_in(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """An address and a Hub file are fetched and run, and the manifest learns it."""
    app, bundled = single(), t4_bundle(build=7760)
    write_manifest(
        manifest,
        in_bucket(hub, "b9940", app, bytes=None, confirmed_live=False),
        on_hub(hub, "t4", bundled, bytes=None, build=7760, confirmed_live=False),
    )
    code, shown, errors = tool("verify", "--manifest", manifest)

    assert (code, errors) == (0, "")
    assert shown.splitlines() == [
        f"b9940: {len(app):,} bytes; the sha256 is right ({digest_of(app)}); "
        "--version says build 9940",
        f"t4: {len(bundled):,} bytes; the sha256 is right ({digest_of(bundled)}); "
        "--version says build 7760",
    ]
    assert [found["bytes"] for found in entries_in(manifest)] == [
        len(app),
        len(bundled),
    ]
    assert all(found["confirmed_live"] for found in entries_in(manifest))
    assert os.listdir(manifest.parent) == ["engines.json"]


def test_other_bytes_are_never_run_and_the_digest_stays(
    hub: StandInHub, manifest: Path, tool: Tool, marker: Path
) -> None:
    """A replaced program is named with both digests, not run and not accepted."""
    app = single(**marking(marker))
    write_manifest(manifest, in_bucket(hub, "b9940", app, sha256=OTHER))
    code, shown, _ = tool("verify", "--manifest", manifest)

    assert code == 1
    assert f"{len(app):,} bytes; the sha256 differs: expected {OTHER}" in shown
    assert f"actual {digest_of(app)}" in shown
    assert "Look at why it changed" in shown
    assert len(shown.splitlines()) == 1
    assert not marker.exists()
    found = entries_in(manifest)[0]
    assert (found["sha256"], found["confirmed_live"]) == (OTHER, False)


def test_a_digest_that_the_hub_states_otherwise_is_not_fetched(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """Where the Hub itself says that the file changed, its bytes stay there."""
    data = t4_bundle()
    write_manifest(manifest, on_hub(hub, "t4", data, sha256=OTHER))
    code, shown, _ = tool("verify", "--manifest", manifest)

    assert code == 1
    assert "t4: nothing was fetched; the Hub states another sha256" in shown
    assert digest_of(data) in shown
    assert not hub.seen("cdn")
    assert entries_in(manifest)[0]["confirmed_live"] is False


def test_what_cannot_be_fetched_changes_nothing_and_stops_nobody(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """A file that is gone and a server that is off fail alone, without a verdict."""
    with socket.socket() as reserved:  # bound, and nobody listens
        reserved.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{reserved.getsockname()[1]}/llama.zst"
        write_manifest(
            manifest,
            in_bucket(hub, "gone", single(), url=bucket_url(hub, "elsewhere")),
            in_bucket(hub, "off", single(), url=nobody),
            in_bucket(hub, "right", single()),
        )
        before = manifest.read_bytes()
        code, shown, _ = tool("verify", "--manifest", manifest)

    gone, off, right = shown.splitlines()
    assert code == 1
    assert (
        "gone: cannot be fetched, so nothing was compared: the server answers 404"
        in gone
    )
    assert "off: cannot be fetched" in off
    assert "has internet" in off
    assert "the sha256 is right" in right
    assert manifest.read_bytes() == before


def test_check_writes_nothing(hub: StandInHub, manifest: Path, tool: Tool) -> None:
    """With --check the same is found out, and the manifest stays as it is."""
    write_manifest(
        manifest,
        in_bucket(hub, "right", single(), bytes=None, confirmed_live=False),
        in_bucket(hub, "other", single(build=1), sha256=OTHER),
    )
    before = manifest.read_bytes()
    code, shown, _ = tool("verify", "--check", "--manifest", manifest)

    assert code == 1
    assert "is right" in shown
    assert "differs" in shown
    assert manifest.read_bytes() == before


def test_only_the_engines_named_are_fetched(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """Ids limit the work; one that is not there is told with the nearest ones."""
    write_manifest(
        manifest,
        in_bucket(hub, "b9940", single()),
        in_bucket(hub, "b9000", single(build=9000), build=9000),
    )
    code, shown, _ = tool("verify", "b9000", "--manifest", manifest)
    assert code == 0
    assert shown.startswith("b9000: ")
    assert not [request for request in hub.requests if "b9940" in request.path]

    code, shown, errors = tool("verify", "b994", "--manifest", manifest)
    assert (code, shown) == (1, "")
    assert "has no engine 'b994'; it has b9940" in errors


def test_an_engine_that_cannot_run_here_is_confirmed_all_the_same(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """Without a driver the bytes are right; why it does not run stands in the line."""
    data = single(first=MISSING_LIBCUDA)
    write_manifest(manifest, in_bucket(hub, "b9940", data, confirmed_live=False))
    code, shown, _ = tool("verify", "--manifest", manifest)

    assert code == 0
    assert "is right" in shown
    assert "does not run here: the library libcuda.so.1 is missing" in shown
    assert len(shown.splitlines()) == 1
    assert entries_in(manifest)[0]["confirmed_live"] is True


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bytes": 7}, "the manifest says 7 bytes, which no file of this digest has"),
        ({"executable": "llama-cli"}, "it is no engine"),
        ({"archive": "zst"}, "it is no engine"),
    ],
)
def test_an_entry_that_contradicts_its_archive_is_a_failure(
    hub: StandInHub, manifest: Path, tool: Tool, values: dict[str, Any], words: str
) -> None:
    """A right digest beside a wrong size, program or kind of archive exits with 1."""
    write_manifest(manifest, on_hub(hub, "t4", t4_bundle(), **values))
    code, shown, _ = tool("verify", "--manifest", manifest)

    assert code == 1
    assert "the sha256 is right" in shown
    assert words in shown
    assert entries_in(manifest)[0]["bytes"] in (7, len(t4_bundle()))


def test_another_build_than_the_one_recorded_is_told(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """A build that the manifest has wrong stands in the line."""
    write_manifest(manifest, in_bucket(hub, "b1", single(), build=1))
    code, shown, _ = tool("verify", "--manifest", manifest)
    assert code == 0
    assert "--version says build 9940, the manifest 1; correct it there" in shown


def test_a_download_that_broke_off_is_continued(
    hub: StandInHub, manifest: Path, tool: Tool, tmp_path: Path
) -> None:
    """In a folder that is given, the next run asks for what is missing only."""
    data = single()
    write_manifest(manifest, in_bucket(hub, "b9940", data))
    folder = tmp_path / "downloads"
    folder.mkdir()
    part = folder / f"b9940-{digest_of(data)[:12]}.archive.part"
    part.write_bytes(data[:100])
    code, shown, _ = tool("verify", "--folder", folder, "--manifest", manifest)

    assert code == 0
    assert f"{len(data):,} bytes" in shown
    assert [request.headers["range"] for request in hub.seen("cdn")] == ["bytes=100-"]
    assert sorted(os.listdir(folder)) == [".lock"]


def test_the_part_that_came_is_kept_and_named(
    hub: StandInHub, manifest: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary folder stays where a transfer broke off, and stderr says where."""
    monkeypatch.setattr(_download, "_RETRY_DELAYS", ())
    data = engine_script() + b"\n" * (4 * MIB)
    write_manifest(manifest, in_bucket(hub, "b9940", data, archive="file"))
    hub.fail_next("cdn", "drop", after=3 * MIB)
    code, shown, errors = tool("verify", "--manifest", manifest)

    assert code == 1
    assert "have come and are kept" in shown
    kept = Path(errors.partition("--folder ")[2].strip())
    code, shown, errors = tool("verify", "--folder", kept, "--manifest", manifest)
    assert (code, errors) == (0, "")
    assert hub.seen("cdn")[-1].sent < len(data)
    shutil.rmtree(kept)


def test_an_unsafe_archive_is_not_unpacked(
    hub: StandInHub, manifest: Path, tool: Tool, tmp_path: Path
) -> None:
    """A right digest makes no archive safe: one that climbs out writes nothing."""
    hostile = tar_of({"bin/llama-server": engine_script(), "../../out": b"out"})
    write_manifest(manifest, on_hub(hub, "t4", hostile))
    folder = tmp_path / "a" / "b"
    code, shown, _ = tool("verify", "--folder", folder, "--manifest", manifest)

    assert code == 1
    assert "it is no engine" in shown
    assert "'../../out' is refused" in shown
    assert not list(tmp_path.rglob("out"))
    assert os.listdir(folder) == [".lock"]


# The manifest's file


@pytest.fixture
def own_manifest(tmp_path: Path) -> Path:
    """A copy of the manifest that the package has."""
    return Path(shutil.copy(SHARED.MANIFEST, tmp_path / "own.json"))


def test_an_edit_changes_the_lines_it_is_about_and_no_others(
    own_manifest: Path,
) -> None:
    """The package's own manifest keeps layout, order and texts."""
    before = own_manifest.read_text()
    found = read_manifest(own_manifest).engines[0]
    changes = {"confirmed_live": not found.confirmed_live, "bytes": 123}
    assert SHARED.update_entry(own_manifest, found, changes)

    changed = changed_lines(before, own_manifest.read_text())
    assert [line.split('"')[1] for line in changed] == ["bytes"] * 2 + [
        "confirmed_live"
    ] * 2
    assert not SHARED.update_entry(own_manifest, found, changes)


def test_a_digest_that_changed_meanwhile_gets_no_verdict(own_manifest: Path) -> None:
    """What was found out of the old archive is not written to the new entry."""
    found = read_manifest(own_manifest).engines[0]
    own_manifest.write_text(own_manifest.read_text().replace(found.sha256, OTHER))
    before = own_manifest.read_bytes()

    assert not SHARED.update_entry(own_manifest, found, {"confirmed_live": True})
    assert own_manifest.read_bytes() == before


def test_what_would_be_no_manifest_is_not_written(own_manifest: Path) -> None:
    """An entry that the package would refuse leaves the old file, and nothing else."""
    before = own_manifest.read_bytes()
    wrong = SHARED.new_entry(
        {"id": "x", "license": "MIT", "compute_capabilities": (), "sha256": "no"}
    )
    with pytest.raises(ConfigurationError):
        SHARED.put_entry(own_manifest, wrong, replace=False)
    assert own_manifest.read_bytes() == before
    assert os.listdir(own_manifest.parent) == [own_manifest.name]


def test_a_manifest_behind_a_link_stays_behind_it(
    own_manifest: Path, tmp_path: Path
) -> None:
    """The file is edited where it is, with its permissions; the link stays one."""
    own_manifest.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(own_manifest)
    found = read_manifest(link).engines[0]
    assert SHARED.update_entry(link, found, {"bytes": 5})
    assert link.is_symlink()
    assert read_manifest(own_manifest).engines[0].bytes == 5
    assert own_manifest.stat().st_mode & 0o777 == 0o640


def test_a_failure_is_told_in_a_line_and_an_exit_code(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be read, and Ctrl-C, end without a traceback."""
    nowhere = tmp_path / "none.json"
    code, _, errors = tool("verify", "--manifest", nowhere)
    assert code == 1
    assert errors.startswith(f"verify: the manifest of engines {nowhere} cannot be")
    (tmp_path / "file").touch()
    code, _, errors = tool("verify", "--folder", tmp_path / "file" / "below")
    assert code == 1
    assert f"{tmp_path / 'file' / 'below'}: Not a directory" in errors

    def interrupted() -> int:
        raise KeyboardInterrupt

    assert SHARED.run_tool("verify", interrupted) == 130
    assert "verify: interrupted" in capsys.readouterr().err


# record


def test_an_address_is_recorded_with_the_digest_it_must_have(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """Size, kind and build are found out, and the entry stands last, ready to use."""
    write_manifest(manifest, in_bucket(hub, "b9000", single(build=9000), build=9000))
    data = single()
    in_bucket(hub, "b9940", data)
    code, shown, errors = tool(
        "record",
        "new",
        bucket_url(hub, "b9940"),
        "--sha256",
        digest_of(data).upper(),
        *FACTS,
        *LLAMA,
        "--least-driver",
        "525.60.13",
        "--least-glibc",
        "2.35",
        "--revision",
        "b9940",
        "--manifest",
        manifest,
    )

    assert (code, errors) == (0, "")
    assert "--version says build 9940." in shown
    assert "The digest is the one that you gave." in shown
    assert "NOT PINNED" not in shown
    assert "tried after b9000" in shown
    expected = entry(
        data,
        id="new",
        url=bucket_url(hub, "b9940"),
        revision="b9940",
        archive="zst",
        executable="llama",
        arguments=["serve"],
        least_glibc="2.35",
    )
    assert entries_in(manifest)[1] == expected
    assert list(entries_in(manifest)[1]) == list(expected)
    assert tool("verify", "new", "--manifest", manifest)[0] == 0


def test_without_a_digest_what_came_is_recorded_and_not_run(
    hub: StandInHub, manifest: Path, tool: Tool, marker: Path
) -> None:
    """The report says that nobody vouches for the bytes, and the program stays idle."""
    data = single(**marking(marker))
    in_bucket(hub, "b9940", data)
    address = bucket_url(hub, "b9940")
    source = ("new", address, *FACTS, *LLAMA, "--manifest", manifest)
    code, shown, errors = tool("record", *source)

    assert (code, errors) == (0, "")
    assert "NOT PINNED BEFOREHAND" in shown
    assert f"of what came just now from {address}" in shown
    assert "Nobody else states it." in shown
    assert "anybody between could have changed it" in shown
    assert "was not run" in shown
    assert not marker.exists()
    found = entries_in(manifest)[0]
    assert (found["sha256"], found["bytes"]) == (digest_of(data), len(data))
    assert found["build"] is None

    code, shown, _ = tool("record", *source, "--replace", "--run-unpinned")
    assert code == 0
    assert "NOT PINNED BEFOREHAND" in shown
    assert marker.exists()
    assert entries_in(manifest)[0]["build"] == 9940


def test_a_part_of_another_file_is_not_recorded_as_its_begin(
    hub: StandInHub, manifest: Path, tool: Tool, tmp_path: Path
) -> None:
    """Without a digest nothing is continued: nothing could tell the parts apart."""
    data = single()
    in_bucket(hub, "b9940", data)
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / "new.archive.part").write_bytes(b"of yesterday")
    address = bucket_url(hub, "b9940")
    options = ("--folder", folder, "--manifest", manifest)
    assert tool("record", "new", address, *FACTS, *LLAMA, *options)[0] == 0
    assert entries_in(manifest)[0]["sha256"] == digest_of(data)


def test_other_bytes_than_the_digest_says_are_not_recorded(
    hub: StandInHub, manifest: Path, tool: Tool, marker: Path
) -> None:
    """With --sha256 another program is refused with both digests, and never run."""
    data = single(**marking(marker))
    in_bucket(hub, "b9940", data)
    before = manifest.read_bytes()
    pinned = ("--sha256", OTHER, "--run-unpinned", "--manifest", manifest)
    code, shown, errors = tool(
        "record", "new", bucket_url(hub, "b9940"), *FACTS, *LLAMA, *pinned
    )

    assert (code, shown) == (1, "")
    assert OTHER in errors
    assert digest_of(data) in errors
    assert not marker.exists()
    assert manifest.read_bytes() == before


def test_a_file_of_the_hub_is_recorded_with_what_the_hub_states(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """Repository, path and revision are taken apart; the Hub's digest is compared."""
    data = t4_bundle()
    on_hub(hub, "t4", data)
    commit = hub.repositories[REPO].commit
    source = f"{REPO}@{commit}:t4.tar.gz"
    code, shown, _ = tool("record", "t4", source, *FACTS, "--manifest", manifest)

    assert code == 0
    assert "NOT PINNED BEFOREHAND" in shown
    assert "The Hub states the same digest." in shown
    found = entries_in(manifest)[0]
    assert (found["repo"], found["path"]) == (REPO, "t4.tar.gz")
    assert (found["url"], found["revision"]) == (None, commit)
    assert (found["archive"], found["confirmed_live"]) == ("tar", True)


def test_an_entry_is_replaced_only_when_asked_to(
    hub: StandInHub, manifest: Path, tool: Tool
) -> None:
    """Without --replace nothing is even fetched; with it, the entry keeps its place."""
    old = in_bucket(hub, "b9940", single(build=1))
    write_manifest(manifest, old, in_bucket(hub, "last", single()))
    data = single()
    in_bucket(hub, "b9940", data)
    before = manifest.read_bytes()
    source = ("b9940", bucket_url(hub, "b9940"), *FACTS, *LLAMA, "--manifest", manifest)
    code, _, errors = tool("record", *source)

    assert code == 1
    assert f"has an engine 'b9940' already, with sha256 {old['sha256']}" in errors
    assert "--replace" in errors
    assert not hub.requests
    assert manifest.read_bytes() == before

    code, shown, _ = tool("record", *source, "--replace")
    assert code == 0
    assert "the first to be tried" in shown
    assert [found["id"] for found in entries_in(manifest)] == ["b9940", "last"]
    assert entries_in(manifest)[0]["sha256"] == digest_of(data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--license", "MIT"), "--compute-capabilities is missing"),
        (("--compute-capabilities", "7.5"), "--license is missing"),
        ((*FACTS, "--repo", REPO), "there is no such file or folder"),
        ((*FACTS, "--sha256", "12"), "is no SHA-256"),
        ((*FACTS, "--executable", "llama-cli"), "there is no program 'llama-cli'"),
        ((*FACTS, "--sha256", "RIGHT", "--build", "1"), "--version says 9940"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    hub: StandInHub,
    manifest: Path,
    tool: Tool,
    options: tuple[str, ...],
    words: str,
) -> None:
    """Each error says what and what to do, and leaves the manifest as it is."""
    data = t4_bundle()
    on_hub(hub, "t4", data)
    before = manifest.read_bytes()
    given = [digest_of(data) if word == "RIGHT" else word for word in options]
    code, shown, errors = tool(
        "record", "t4", f"{REPO}:t4.tar.gz", *given, "--manifest", manifest
    )
    assert (code, shown) == (1, "")
    assert words in errors
    assert errors.startswith("record: ")
    assert manifest.read_bytes() == before


@pytest.mark.parametrize(
    "source", ["https://host/e.zst?Signature=secret", "https://me:secret@host/e.zst"]
)
def test_an_address_with_a_secret_is_not_published(
    manifest: Path, tool: Tool, source: str
) -> None:
    """A signature or password goes neither into the manifest nor into the message."""
    code, _, errors = tool("record", "x", source, *FACTS, "--manifest", manifest)
    assert code == 1
    assert "would be published" in errors
    assert "secret" not in errors
    assert entries_in(manifest) == []


def test_bad_options_end_before_anything_is_done(tool: Tool) -> None:
    """An id that would leave its folder, and versions that are none, are refused."""
    for words in (
        ("../x", "source", *FACTS),
        ("x", "source", "--compute-capabilities", "sm75"),
        ("x", "source", "--build", "new"),
        ("x", "source", "--executable", "bin/llama"),
    ):
        with pytest.raises(SystemExit) as ended:
            tool("record", *words)
        assert ended.value.code == 2
    code, _, errors = tool("record", "x", "no-such-thing", *FACTS)
    assert code == 1
    assert "'no-such-thing' is no engine: give an address" in errors


PROGRAM = engine_script()
TAR = gzip.decompress(tar_of({"bin/llama-server": PROGRAM}))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (TAR, "tar"),
        (gzip.compress(TAR), "tar"),
        (zstandard.compress(TAR), "tar"),
        (zstandard.compress(PROGRAM), "zst"),
        (PROGRAM, "file"),
        (b"\x7fELF" + bytes(100), "file"),
    ],
)
def test_the_kind_of_an_archive_is_seen_by_its_bytes(
    tmp_path: Path, data: bytes, kind: str
) -> None:
    """Whatever its name, a tar, a compressed program and a program are told apart."""
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    assert TOOLS["record"].archive_kind(archive) == kind


@pytest.mark.parametrize(
    "data",
    [
        b"<html>log in first</html>",
        b"",
        gzip.compress(PROGRAM),
        zstandard.compress(b"GGUF"),
        gzip.compress(TAR)[:40],
    ],
)
def test_what_is_no_archive_is_not_recorded(tmp_path: Path, data: bytes) -> None:
    """A page, a model, nothing, or the begin of an archive is refused."""
    archive = tmp_path / "archive"
    archive.write_bytes(data)
    with pytest.raises((ConfigurationError, SetupError), match="neither a tar|cut off"):
        TOOLS["record"].archive_kind(archive)


def test_an_archive_of_this_machine_is_recorded_for_where_it_will_be(
    manifest: Path, tool: Tool, tmp_path: Path
) -> None:
    """It needs a place, keeps lying where it is, and is not called confirmed."""
    archive = tmp_path / "own.tar.gz"
    archive.write_bytes(t4_bundle())
    source = ("own", archive, *FACTS, "--manifest", manifest)
    for place in ((), ("--repo", REPO), ("--url", "https://host/x", "--repo", REPO)):
        code, _, errors = tool("record", *source, *place)
        assert code == 1
        assert "say where it will be: either --url, or --repo and --path" in errors
    place = ("--repo", REPO, "--path", "../own.tar.gz")
    assert "is no file of a repository" in tool("record", *source, *place)[2]

    place = ("--repo", REPO, "--path", "v1/own.tar.gz")
    code, shown, _ = tool("record", *source, *place)
    assert code == 0
    assert f"that of the file {archive} as it is now" in shown
    assert "run verify.py own" in shown
    found = entries_in(manifest)[0]
    assert (found["repo"], found["path"]) == (REPO, "v1/own.tar.gz")
    assert found["confirmed_live"] is False
    assert archive.is_file()

    address = "https://host/own.tar.gz"
    wrong = ("--url", address, "--replace", "--sha256", OTHER)
    assert OTHER in tool("record", *source, *wrong)[2]
    assert tool("record", *source, "--url", address, "--replace")[0] == 0
    assert (entries_in(manifest)[0]["url"], len(entries_in(manifest))) == (address, 1)


# bundle


def bundle_of(tool: Tool, folder: Path, output: Path, *more: str) -> str:
    """Bundle a folder as the engine `own`; return what was printed."""
    code, shown, errors = tool("bundle", folder, output, "--id", "own", *FACTS, *more)
    assert (code, errors) == (0, "")
    return shown


def test_two_bundles_of_one_engine_are_the_same_bytes(
    tool: Tool, tmp_path: Path, marker: Path
) -> None:
    """Copies with other times give identical files, which sha256sum accepts."""
    first = engine_folder(tmp_path / "first", **marking(marker))
    second = tmp_path / "second"
    shutil.copytree(first, second, symlinks=True)
    for place in [*second.rglob("*"), second]:
        os.utime(place, (1, 1), follow_symlinks=False)
    bundle_of(tool, first, tmp_path / "one")
    bundle_of(tool, second, tmp_path / "two")

    names = ["own.json", "own.tar.gz", "own.tar.gz.sha256"]
    assert sorted(os.listdir(tmp_path / "one")) == names
    for name in names:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert one.read_bytes() == two.read_bytes()
    checked = subprocess.run(
        ["sha256sum", "--strict", "-c", names[2]], cwd=tmp_path / "one", check=False
    )
    assert checked.returncode == 0
    with tarfile.open(tmp_path / "one" / "own.tar.gz") as archive:
        assert archive.getmember("own/bin/llama-server").mode == 0o755
        assert archive.getmember("own/lib/libggml.so").linkname == "libggml.so.0"
    assert not marker.exists()


def test_the_facts_of_a_bundle_are_those_given_and_found(
    tool: Tool, tmp_path: Path
) -> None:
    """The program is found, llama with `serve`; the rest is what the options say."""
    folder = engine_folder(tmp_path / "engine")
    (folder / "bin" / "llama-server").rename(folder / "bin" / "llama")
    place = ("--repo", REPO, "--path", "v 1/own.tar.gz", "--revision", "next")
    facts = ("--build", "b9940", "--least-glibc", "2.35", "--note", "Ours.")
    shown = bundle_of(tool, folder, tmp_path / "out", *place, *facts)

    data = (tmp_path / "out" / "own.tar.gz").read_bytes()
    assert entries_in(tmp_path / "out" / "own.json")[0] == entry(
        data,
        id="own",
        repo=REPO,
        path="v 1/own.tar.gz",
        revision="next",
        executable="llama",
        arguments=["serve"],
        least_driver=None,
        least_glibc="2.35",
        confirmed_live=False,
        note="Ours.",
    )
    archive = tmp_path / "out" / "own.tar.gz"
    command = f"hf upload {REPO} {archive} 'v 1/own.tar.gz' --revision next"
    assert command in shown
    assert f"--sha256 {digest_of(data)}" in shown


def test_a_folder_that_makes_no_bundle_is_refused(tool: Tool, tmp_path: Path) -> None:
    """No program, a link that leads out, a bundle in itself: no archive is left."""
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    linked = engine_folder(tmp_path / "linked")
    (linked / "lib" / "libcuda.so.1").symlink_to("/usr/lib/libcuda.so.1")
    whole = engine_folder(tmp_path / "whole")
    for arguments, words in (
        ((empty, out), "holds no engine"),
        ((tmp_path / "none", out), "is no folder"),
        ((linked, out), "'lib/libcuda.so.1' is refused: it links to"),
        ((whole, whole / "out"), "would be packed into itself"),
        ((whole, out, "--executable", "llama-cli"), "no program 'llama-cli'"),
        ((whole, out, "--repo", "nobody"), "is no file of a repository"),
    ):
        code, shown, errors = tool("bundle", *arguments, "--id", "own", *FACTS)
        assert (code, shown) == (1, "")
        assert words in errors
        assert not list(tmp_path.rglob("own.tar.gz*"))
    assert not (whole / "out").exists()


def test_a_bundle_goes_all_the_way(
    hub: StandInHub, manifest: Path, tool: Tool, tmp_path: Path
) -> None:
    """Bundled, uploaded, recorded, verified: the engine is right, and runs."""
    out = tmp_path / "out"
    shown = bundle_of(tool, engine_folder(tmp_path / "engine"), out)
    data = (out / "own.tar.gz").read_bytes()
    assert "hf upload OWNER/REPOSITORY" in shown
    source = ("own", out, "--manifest", manifest)
    code, _, errors = tool("record", *source)
    assert code == 1
    assert "does not say which repository" in errors

    pinned = ("--repo", REPO, "--sha256", digest_of(data))
    code, shown, _ = tool("record", *source, *pinned)
    assert code == 0
    assert "--version says build 9940." in shown
    found = entries_in(manifest)[0]
    assert (found["repo"], found["path"], found["build"]) == (REPO, "own.tar.gz", 9940)
    assert found["confirmed_live"] is False

    hub.add(REPO, "own.tar.gz", data)
    assert tool("verify", "--manifest", manifest)[0] == 0
    assert entries_in(manifest)[0]["confirmed_live"] is True


def test_a_bundle_whose_files_do_not_belong_together_is_refused(
    manifest: Path, tool: Tool, tmp_path: Path
) -> None:
    """A changed archive, another digest beside it, a missing file: nothing recorded."""
    out = tmp_path / "out"
    bundle_of(tool, engine_folder(tmp_path / "engine"), out, "--repo", REPO)
    source = ("own", out, "--manifest", manifest)
    right = digest_of((out / "own.tar.gz").read_bytes())

    assert OTHER in tool("record", *source, "--sha256", OTHER)[2]
    (out / "own.tar.gz.sha256").write_text(f"{OTHER}  own.tar.gz\n")
    code, _, errors = tool("record", *source)
    assert code == 1
    assert f"expected sha256 {OTHER}, got {right}" in errors

    (out / "own.tar.gz").write_bytes(t4_bundle())
    (out / "own.tar.gz.sha256").write_text(f"{digest_of(t4_bundle())}  own.tar.gz\n")
    code, _, errors = tool("record", *source)
    assert code == 1
    assert f"expected sha256 {right}" in errors

    (out / "own.tar.gz.sha256").unlink()
    code, _, errors = tool("record", *source)
    assert code == 1
    assert "own.tar.gz.sha256 is missing; bundle.py makes such a folder" in errors
    assert entries_in(manifest) == []


def test_the_scripts_run_as_programs(tmp_path: Path) -> None:
    """From any folder, each finds the package beside it and says how it is used."""
    for name in TOOLS:
        done = subprocess.run(
            [sys.executable, str(BINARIES / f"{name}.py"), "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"python binaries/{name}.py" in done.stdout
