"""NCCL's helpers: what is found, what is to be set, real groups, and their speed."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llamatelemetry import _distributed, _nccl, _rendezvous
from llamatelemetry.api import nccl
from llamatelemetry.api.nccl import (
    all_reduce_bandwidth,
    nccl_environment,
    nccl_info,
    process_group,
)
from llamatelemetry.exceptions import (
    ConfigurationError,
    LLCudaError,
    PortInUseError,
    ServerTimeoutError,
    SetupError,
)
from llamatelemetry.gpu.inventory import GPUInfo
from llamatelemetry.server import _linux
from llamatelemetry.server.engine import Engine
from tests.conftest import missing_part

T4 = GPUInfo(0, "Tesla T4", 15.0, 14.7, "7.5")
LIBRARY_SOURCE = """
#include <stdlib.h>
int ncclGetVersion(int *version) { *version = CODE; return RESULT; }
"""


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """PyTorch, on one thread: a thread of its pool would stay for all other tests."""
    try:
        module = importlib.import_module("torch")
    except ImportError:
        missing_part("PyTorch", "pip install torch")
        raise
    module.set_num_threads(1)
    return module


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the variables of a torchrun around it."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in [
        name for name in os.environ if name.startswith(("LOCAL_", "TORCHELA"))
    ]:
        monkeypatch.delenv(name)


@pytest.fixture
def compiler() -> str:
    """A C compiler."""
    found = shutil.which("cc")
    if found is None:
        missing_part("a C compiler", "install gcc")
        raise AssertionError
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def build_library(compiler: str, folder: Path, source: str) -> Path:
    """Compile a stand-in for libnccl.so.2."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnccl.so.2"
    subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-Wl,-soname,libnccl.so.2"),
            *("-x", "c", "-", "-o", library),
        ],
        input=source,
        text=True,
        check=True,
    )
    return library


def build_program(compiler: str, path: Path, source: str, *more: str | Path) -> Path:
    """Compile a program; it is looked into, never run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [compiler, "-x", "c", "-", "-x", "none", "-o", path, *more],
        input=source,
        text=True,
        check=True,
    )
    return path


def returning(code: int, result: int = 0) -> str:
    return LIBRARY_SOURCE.replace("CODE", str(code)).replace("RESULT", str(result))


def an_engine(program: Path, *libraries: Path) -> Engine:
    return Engine((str(program),), "argument", library_path=tuple(map(str, libraries)))


# What there is.


@pytest.mark.parametrize(
    ("code", "version"),
    [(2804, (2, 8, 4)), (20903, (2, 9, 3)), (22304, (2, 23, 4)), (22707, (2, 27, 7))],
)
def test_a_library_tells_its_version(
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    version: tuple[int, int, int],
) -> None:
    """The library that the loader finds is named with its path and its version."""
    library = build_library(compiler, tmp_path, returning(code))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    found = nccl_info(an_engine(tmp_path / "none"))

    assert found.libraries[0].path == str(library)
    assert found.libraries[0].version == version == found.version
    assert found.library_reason == ""
    assert ".".join(map(str, version)) in repr(found)
    assert str(library) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("int other(void) { return 1; }", "undefined symbol: ncclGetVersion"),
        (returning(22304, 5), "returned 5"),
        (returning(-1), "the version -1"),
        (returning(22304).replace("return 0", "abort()"), "signal 6"),
        (returning(22304).replace("return 0", "exit(0)"), "ended the process"),
        (returning(22304).replace("return 0", "exit(3)"), "does not load"),
        (returning(22304).replace("return 0", "for (;;);"), "did not end"),
        (None, "header"),
    ],
)
def test_a_broken_library_is_a_sentence(
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str | None,
    problem: str,
) -> None:
    """A library that lies, crashes, hangs or is none says so and harms nothing."""
    if source is None:
        (tmp_path / "libnccl.so.2").write_text("no library, whatever its name\n" * 40)
    else:
        build_library(compiler, tmp_path, source)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    if problem == "did not end":
        monkeypatch.setattr(_nccl, "_ASK_SECONDS", 0.5)

    found = nccl_info(an_engine(tmp_path / "none"))

    assert problem in found.libraries[0].problem
    assert found.libraries[0].version is None
    assert problem in repr(found)


def test_a_wheel_brings_a_library(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library of nvidia-nccl-cu12 is found on sys.path, once for both its names."""
    library = build_library(
        compiler, tmp_path / "nvidia" / "nccl" / "lib", returning(22704)
    )
    for place in (tmp_path, tmp_path / "nvidia" / ".."):
        monkeypatch.syspath_prepend(str(place))

    found = nccl_info(an_engine(tmp_path / "none"))

    here = [one for one in found.libraries if one.path == str(library)]
    assert [one.version for one in here] == [(2, 27, 4)]


def test_no_library_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any libnccl the places are named; without PyTorch, what to install."""
    monkeypatch.setattr(_nccl, "_LIBRARY", "libnccl-of-no-machine.so.2")
    monkeypatch.setattr(_nccl, "_IN_PACKAGES", ())
    monkeypatch.setitem(sys.modules, "torch", None)

    found = nccl_info(tmp_path / "no-such-engine")

    assert found.libraries == ()
    assert "cannot open shared object file" in found.library_reason
    assert "nvidia-nccl-cu12" in found.library_reason
    assert found.torch_version is None
    assert "pip install torch" in found.torch_reason
    assert (found.engine, found.engine_linked) == (None, None)
    assert "no-such-engine" in found.engine_reason
    assert [line.split()[1] for line in repr(found).splitlines()] == [
        "no:",
        "no:",
        "not",
    ]


def test_a_library_that_cannot_be_asked_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no process can be started, the library is not called missing."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    found = nccl_info(Engine(("/no/engine",), "argument"))

    assert "could not be asked" in found.libraries[0].problem


def test_the_engine_of_this_machine_has_no_nccl(engine: Engine) -> None:
    """Both real engines are CPU builds, in whose files NCCL is not."""
    found = nccl_info(engine)

    assert found.engine == str(engine)
    assert found.engine_linked is False
    assert "-DGGML_CUDA_NCCL=ON" in found.engine_reason


def test_a_linked_engine_is_recognised(compiler: str, tmp_path: Path) -> None:
    """An engine links NCCL itself, through libggml-cuda.so, or holds it inside."""
    library = build_library(compiler, tmp_path / "nccl", returning(22304))
    empty = "int main(void) { return 0; }"
    plain = build_program(compiler, tmp_path / "plain" / "llama-server", empty)
    needs = ("-Wl,--no-as-needed", library)
    direct = build_program(
        compiler, tmp_path / "direct" / "llama-server", empty, *needs
    )
    cuda = tmp_path / "libggml-cuda.so.0"
    build_program(compiler, cuda, "int none;", "-shared", "-fPIC", *needs)
    (tmp_path / "libggml-a.so").symlink_to(plain)
    (tmp_path / "libggml-cuda.so").symlink_to(cuda)
    inside = build_program(
        compiler,
        tmp_path / "inside" / "llama-server",
        "int ncclAllReduce(void) { return 0; }" + empty,
    )

    assert nccl_info(an_engine(plain)).engine_linked is False
    for program, folders, words in (
        (direct, (), "llama-server needs libnccl.so"),
        (plain, (tmp_path,), "libggml-cuda.so needs libnccl.so"),
        (inside, (), "linked in"),
    ):
        found = nccl_info(an_engine(program, *folders))
        assert found.engine_linked is True
        assert words in found.engine_reason


def test_what_cannot_be_known_of_an_engine_is_not_guessed(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script, a missing library and a package that is gone give no answer."""
    script = tmp_path / "llama-server"
    script.write_text("#!/bin/sh\nexec /opt/llama-server\n")
    base = tmp_path / "away" / "libggml-base.so"
    build_program(compiler, base, "int none;", "-shared", "-fPIC")
    needy = build_program(
        compiler,
        tmp_path / "needy",
        "int main(void) { return 0; }",
        "-Wl,--no-as-needed",
        f"-L{base.parent}",
        "-lggml-base",
    )
    embedded = Engine(("python", "-m", "llamatelemetry.server.embedded"), "embedded")
    monkeypatch.setattr(_nccl, "find_spec", lambda name: None)

    for one, words in (
        (an_engine(script), f"{script} is no program"),
        (an_engine(needy), "libggml-base.so does not lie beside it"),
        (embedded, "the embedded engine (xllamacpp) is no program"),
    ):
        found = nccl_info(one)
        assert found.engine_linked is None
        assert words in found.engine_reason


def test_damaged_programs_are_told_apart(compiler: str, tmp_path: Path) -> None:
    """Whatever is cut off or overwritten in a program raises ValueError at most."""
    program = build_program(compiler, tmp_path / "a", "int main(void) { return 0; }")
    whole = program.read_bytes()

    assert "libc.so.6" in _nccl.needed_libraries(BytesIO(whole))
    cut = [whole[:length] for length in range(0, len(whole), 61)]
    bent = [
        whole[:place] + bytes([value]) * 8 + whole[place + 8 :]
        for place in range(0, 1024, 7)
        for value in (0, 127, 255)
    ]
    refused = 0
    for bad in cut + bent:
        try:
            _nccl.needed_libraries(BytesIO(bad))
        except ValueError:
            refused += 1
    assert refused > 20


def test_a_name_across_two_pieces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A big file is read in pieces, and what lies on a seam is seen."""
    monkeypatch.setattr(_nccl, "_MOST_BYTES", 16)
    for before in range(40):
        assert _nccl._holds(
            BytesIO(b"-" * before + b"ncclAllReduce--"), b"ncclAllReduce"
        )
    assert not _nccl._holds(BytesIO(b"ncclAllRedu" * 9), b"ncclAllReduce")


def other_torch(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Let another PyTorch be imported for the length of a test."""
    for name in ("torch", "torch.distributed", "torch.cuda"):
        importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
    package = folder / "torch"
    package.mkdir()
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


def test_a_broken_torch_is_a_sentence(
    torch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PyTorch whose libraries are missing is told apart from none."""
    other_torch(tmp_path, monkeypatch, __init__="raise OSError('libcudart.so.12')")

    assert "does not load (OSError: libcudart.so.12)" in nccl_info().torch_reason
    with pytest.raises(SetupError, match="force-reinstall"):
        process_group(rank=0, world_size=1, init_method="tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    ("has", "version", "reason"),
    [
        ((False, False, False), None, "without torch.distributed"),
        ((True, False, False), None, "was built without NCCL"),
        ((True, True, False), (2, 27, 5), "has NCCL 2.27.5, but sees no card"),
        ((True, True, True), (2, 27, 5), ""),
    ],
)
def test_what_torch_has(
    torch: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has: tuple[bool, bool, bool],
    version: tuple[int, int, int] | None,
    reason: str,
) -> None:
    """PyTorch's own NCCL is reported, or why it has none or cannot use it."""
    available, nccl_there, card = has
    other_torch(
        tmp_path,
        monkeypatch,
        __init__="__version__ = '2.10.0+cu128'\nfrom torch import cuda",
        distributed=f"is_available = lambda: {available}\n"
        f"is_nccl_available = lambda: {nccl_there}",
        cuda=f"is_available = lambda: {card}\nclass nccl:\n"
        "    version = staticmethod(lambda: (2, 27, 5, 'suffix'))",
    )

    found = nccl_info()

    assert found.torch_nccl == version
    assert reason in found.torch_reason
    assert bool(found.torch_reason) is bool(reason)
    if not reason:
        assert "2.10.0+cu128 with NCCL 2.27.5" in repr(found)


def test_this_torch_is_described(torch: ModuleType) -> None:
    """The installed PyTorch is named with its version."""
    assert nccl_info().torch_version == str(torch.__version__)


def test_the_import_brings_no_torch() -> None:
    """Importing the module imports no PyTorch, and its names are complete."""
    program = (
        "import sys; from llamatelemetry.api import nccl; "
        "missing = [n for n in nccl.__all__ if not hasattr(nccl, n)]; "
        "print(missing, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[] False\n"
    assert dir(nccl) == sorted(nccl.__all__)


@pytest.mark.parametrize(
    "call",
    [
        lambda: process_group(rank=0, world_size=1, init_method="tcp://127.0.0.1:1"),
        all_reduce_bandwidth,
    ],
)
def test_without_torch_the_error_says_what_to_install(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs PyTorch names the command that installs it."""
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(SetupError, match="pip install torch"):
        call()


# What to set.


def test_two_cards_get_variables_with_reasons(tmp_path: Path) -> None:
    """The variables are a dict for a child's environment, each with its reason."""
    found = nccl_environment([T4, T4])

    assert dict(found) == {"NCCL_SOCKET_IFNAME": "=lo", "NCCL_DEBUG": "WARN"}
    assert set(found.reasons) == set(found)
    assert not set(found.left_out) & set(found)
    assert "NCCL_SHM_DISABLE" in found.left_out
    shown = repr(found)
    for name, value in found.items():
        assert f"{name}={value}  {found.reasons[name]}" in shown
    assert "NCCL_P2P_DISABLE is not set: " in shown
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.environ['NCCL_SOCKET_IFNAME'])"],
        env={**found, **os.environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "=lo\n"


@pytest.mark.parametrize("cards", [[], [T4]])
def test_fewer_than_two_cards_need_nothing(cards: list[GPUInfo]) -> None:
    """One card sends nothing to itself, so nothing is set."""
    found = nccl_environment(cards)

    assert found == {}
    assert "fewer than two cards" in repr(found)


def test_the_cards_of_this_machine_are_looked_at(driver: Any) -> None:
    """Without an argument the cards are those that can be detected."""
    from nvml_tools import t4

    driver.describe(t4(0), t4(1))
    assert "NCCL_DEBUG" in nccl_environment()
    driver.describe(t4(0))
    assert nccl_environment() == {}


def test_a_small_shared_memory_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A /dev/shm of Docker's 64 MiB, or none, is told with what to do."""
    usage = SimpleNamespace(total=64 * 2**20)
    monkeypatch.setattr(_nccl.shutil, "disk_usage", lambda path: usage)
    assert "64.0 MiB" in repr(nccl_environment([T4, T4]))
    usage.total = 2**30
    assert nccl_environment([T4, T4]).notes == ()
    monkeypatch.undo()
    monkeypatch.setattr(_nccl, "_SHARED_MEMORY", tmp_path / "none")
    assert "there is no" in nccl_environment([T4, T4]).notes[0]


# Groups.

PEER = """
import json, os, sys
from llamatelemetry.api.nccl import all_reduce_bandwidth, process_group
import torch
torch.set_num_threads(1)
results = []
# Each follows at once, where the last one's store may still be closing.
for arguments in json.loads(sys.argv[1]):
    with process_group(**arguments) as group:
        total = group.all_reduce(torch.full((3,), float(group.rank + 1)))
        group.barrier()
        table = all_reduce_bandwidth([4096, 1048576], repeats=3)
    results.append([group.rank, group.world_size, group.backend, group.device,
                    total.tolist(), table.rows()])
print(json.dumps(results))
"""


class Peer:
    """A process that joins one group after another, which no test leaves behind."""

    def __init__(self, *groups: Mapping[str, object], program: str = PEER) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, json.dumps(groups)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> Any:
        stdout, stderr = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, stderr
        return json.loads(stdout)


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    """The processes that a test starts."""
    started: list[Peer] = []
    yield started
    for peer in started:
        peer.process.kill()
        peer.process.communicate()


def check_rows(rows: list[dict[str, float]]) -> None:
    assert [row["size_bytes"] for row in rows] == [4096, 1048576]
    for row in rows:
        rate = row["size_bytes"] / row["seconds"] / 1e9
        assert row["seconds"] > 0
        assert row["algorithm_gb_s"] == pytest.approx(rate)
        assert row["bus_gb_s"] == pytest.approx(rate)  # 2 (n - 1) / n is 1 for two


def listeners(port: int) -> set[str]:
    """Return the addresses at which something listens on a port."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            address, _, number = line.split()[1].rpartition(":")
            if line.split()[3] == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def test_two_processes_meet_and_part(
    torch: ModuleType,
    peers: list[Peer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes meet as either rank, on loopback only or in a file, again at once.

    The file is gone afterwards, and an old one is refused.
    """
    # A farewell that is not answered would outlast this test.
    monkeypatch.setattr(_distributed, "_LONGEST_FAREWELL_SECONDS", 1000.0)
    path = tmp_path / "a meeting point"
    first, second = free_port(), free_port()
    places = [
        (0, first, f"tcp://127.0.0.1:{first}"),
        (0, first, f"tcp://127.0.0.1:{first}"),
        (1, second, f"tcp://127.0.0.1:{second}"),
        (0, None, path.as_uri()),
    ]
    common = {"world_size": 2, "timeout": 40}
    peers.append(
        Peer(
            *(
                {"rank": 1 - rank, "init_method": address, **common}
                for rank, _, address in places
            )
        )
    )

    tables = []
    for rank, port, address in places:
        with process_group(
            rank=rank, world_size=2, timeout=280, init_method=address
        ) as group:
            assert repr(group) == (
                f"ProcessGroup(rank={rank}, world_size=2, backend='gloo', device='cpu')"
            )
            total = group.all_reduce(torch.full((3,), float(rank + 1)))
            assert port is None or listeners(port) == {"0100007F"}
            group.barrier()
            tables.append(all_reduce_bandwidth([4096, 1048576], repeats=3))
        assert total.tolist() == [3.0] * 3
        assert not torch.distributed.is_initialized()

    assert "gloo, 2 processes, CPU, median of 3" in repr(tables[0])
    assert "4.0 KiB" in repr(tables[0])
    for (rank, _, _), table, other in zip(
        places, tables, peers[0].result(), strict=True
    ):
        check_rows(table.rows())
        assert other[:5] == [1 - rank, 2, "gloo", "cpu", [3.0] * 3]
        assert other[5] == table.rows()  # each time is that of the slower one
    assert not path.exists()

    old = torch.distributed.FileStore(str(path), 2)
    old.add("here/0", 1)
    with (
        pytest.raises(ConfigurationError, match="rank 0 is already at the file"),
        process_group(rank=0, world_size=2, init_method=path.as_uri()),
    ):
        raise AssertionError


def test_torchrun_starts_a_group(torch: ModuleType, tmp_path: Path) -> None:
    """Under torchrun its variables say everything, for one group after another."""
    script = tmp_path / "script.py"
    # Two processes write to one pipe; each line has to be written at once.
    script.write_text(PEER.replace("print(", "os.write(1, b'%s\\n' % str.encode("))
    text = script.read_text().rstrip()
    script.write_text(text + ")\n")

    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--master-addr=127.0.0.1", f"--master-port={free_port()}"),
            *(str(script), "[{}, {}]"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    results = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert [[one[:5] for one in both] for both in results] == [
        [[rank, 2, "gloo", "cpu", [3.0] * 3]] * 2 for rank in (0, 1)
    ]
    check_rows(results[0][1][5])


def alone(**changes: Any) -> Any:
    """Return a group of one process."""
    values = {"rank": 0, "world_size": 1, "timeout": 20} | changes
    values.setdefault("init_method", f"tcp://localhost:{free_port()}")
    return process_group(**values)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_group_is_always_torn_down(
    torch: ModuleType, error: type[BaseException]
) -> None:
    """After any end of the block the same process makes the next group, same port."""
    address = f"tcp://127.0.0.1:{free_port()}"
    for _ in range(2):
        with pytest.raises(error), alone(init_method=address):
            raise error
        assert not torch.distributed.is_initialized()
    with alone(init_method=address) as group:
        assert group.all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]
        group.barrier()
        with pytest.raises(ConfigurationError, match="nothing to measure"):
            all_reduce_bandwidth()
    assert not torch.distributed.is_initialized()


def test_a_group_of_others_is_left_alone(torch: ModuleType, tmp_path: Path) -> None:
    """A group that exists is neither joined nor ended, nor one begun in our block."""
    distributed = torch.distributed
    with alone():
        with (
            pytest.raises(ConfigurationError, match="already, which is not ours"),
            alone(),
        ):
            raise AssertionError
        assert distributed.is_initialized()
        distributed.destroy_process_group()  # the user's right; not done twice
    with alone():
        distributed.destroy_process_group()
        address = (tmp_path / "theirs").as_uri()
        distributed.init_process_group(
            "gloo", init_method=address, rank=0, world_size=1
        )
    assert distributed.is_initialized()
    distributed.destroy_process_group()


def test_a_start_that_fails_leaves_nothing(
    torch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When gloo itself cannot start, its error comes through and no group stays."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-card")

    with pytest.raises(RuntimeError, match="no-such-card"), alone():
        raise AssertionError
    assert not torch.distributed.is_initialized()
    monkeypatch.undo()
    with alone():
        pass


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["tcp", "file"])
def test_a_peer_that_never_comes_ends_in_time(
    torch: ModuleType, tmp_path: Path, kind: str, rank: int
) -> None:
    """Whoever waits in vain says in the time given who is missing, and where."""
    address = f"tcp://127.0.0.1:{free_port()}"
    if kind == "file":
        address = (tmp_path / "meet").as_uri()
    begin = time.monotonic()

    with (
        pytest.raises(ServerTimeoutError) as caught,
        process_group(rank=rank, world_size=2, init_method=address, timeout=0.3),
    ):
        raise AssertionError

    assert isinstance(caught.value, TimeoutError)
    assert 0.2 < time.monotonic() - begin < 30
    if rank == 1 and kind == "tcp":
        assert "rank 1 has waited 0.3 s for rank 0 to listen at" in str(caught.value)
    else:
        assert "1 of 2 processes came to" in str(caught.value)
        assert f"missing: rank {1 - rank}." in str(caught.value)
    assert not torch.distributed.is_initialized()


def test_rank_0_says_why_it_cannot_listen(torch: ModuleType) -> None:
    """Rank 0 names who holds its port, or why it cannot listen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            pytest.raises(PortInUseError, match="second rank 0") as caught,
            alone(init_method=f"tcp://127.0.0.1:{port}"),
        ):
            raise AssertionError
        assert caught.value.port == port
        assert _linux.port_holder(port) == caught.value.holder

    with (
        pytest.raises(ConfigurationError, match="rank 0 cannot listen at ::1:"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(_rendezvous.socket, "AF_INET6", socket.AF_INET)
        patch.setitem(_rendezvous._LOOPBACK, "::1", "192.0.2.1")
        with alone(init_method=f"tcp://[::1]:{port}"):
            raise AssertionError


def test_the_store_of_an_earlier_group_is_waited_out(torch: ModuleType) -> None:
    """A store that an earlier group still holds is not joined, and named in the end."""
    distributed = torch.distributed
    port = free_port()
    old = distributed.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False
    )
    old.add("left", 1)
    arguments: dict[str, Any] = {"rank": 1, "world_size": 2, "timeout": 0.3}
    with (
        pytest.raises(ServerTimeoutError, match="earlier group is still there"),
        process_group(init_method=f"tcp://127.0.0.1:{port}", **arguments),
    ):
        raise AssertionError
    del old


@contextmanager
def stranger(words: bytes | None) -> Iterator[int]:
    """Listen as what is no store: silent, or with these words and then no more."""

    def talk(words: bytes) -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.sendall(words)
                    connection.recv(64)

    with socket.create_server(("127.0.0.1", 0)) as server:
        speaker = threading.Thread(target=talk, args=(words,))
        if words is not None:
            speaker.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        if words is not None:
            speaker.join(5)


def left_behind() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == _rendezvous._THREAD]


@pytest.mark.parametrize("words", [None, b"", b"no", b"SSH-2.0-stranger\r\n"])
def test_a_stranger_in_the_place_of_rank_0_is_named(
    torch: ModuleType, capfd: pytest.CaptureFixture[str], words: bytes | None
) -> None:
    """Silent or not, what listens in rank 0's place ends the wait in its time."""
    begin = time.monotonic()

    with (
        stranger(words) as port,
        pytest.raises(ServerTimeoutError, match="does not answer as one") as caught,
        process_group(
            rank=1, world_size=2, init_method=f"tcp://127.0.0.1:{port}", timeout=0.3
        ),
    ):
        raise AssertionError

    assert 0.2 < time.monotonic() - begin < 30
    assert "rank 1 has waited 0.3 s for rank 0's store at 127" in str(caught.value)
    assert left_behind() == []
    assert capfd.readouterr() == ("", "")


def test_a_client_that_waits_for_ever_is_left_behind(
    torch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PyTorch's client has to decide, the wait for it ends all the same.

    Its thread ends with the stranger, in whose silence it waits.
    """
    monkeypatch.setattr(_rendezvous, "_understands", lambda distributed: False)
    begin = time.monotonic()

    with stranger(None) as port:
        with (
            pytest.raises(ServerTimeoutError, match="does not answer as one"),
            process_group(
                rank=1, world_size=2, init_method=f"tcp://127.0.0.1:{port}", timeout=0.2
            ),
        ):
            raise AssertionError
        assert time.monotonic() - begin < 30
        assert [one.daemon for one in left_behind()] == [True]

    for one in left_behind():
        one.join(10)
    assert left_behind() == []


def test_a_store_that_speaks_otherwise_is_joined(
    torch: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PyTorch's store does not know our question, its client decides."""
    distributed = torch.distributed
    assert _rendezvous._understands(distributed)
    monkeypatch.setattr(_rendezvous, "_QUESTION", b"\0\xce\xf7\x85")
    monkeypatch.setattr(_rendezvous, "_LONGEST_ASK_SECONDS", 0.2)
    store = distributed.TCPStore(
        "127.0.0.1", free_port(), is_master=True, wait_for_workers=False
    )

    with (
        pytest.raises(ServerTimeoutError, match="missing: rank 0"),
        process_group(
            rank=1,
            world_size=2,
            init_method=f"tcp://127.0.0.1:{store.port}",
            timeout=0.6,
        ),
    ):
        raise AssertionError
    assert store.add("here/1", 0) == 1


INTERRUPTED = """
import json, os, signal, sys, threading, time
from llamatelemetry import _rendezvous
from llamatelemetry.api.nccl import process_group
import torch.distributed
signal.signal(signal.SIGINT, signal.default_int_handler)

def wait(rank=1, timeout=200.0):
    begin = time.monotonic()
    try:
        with process_group(
            rank=rank, world_size=2, init_method=sys.argv[1], timeout=timeout
        ):
            pass
    except (Exception, KeyboardInterrupt) as error:
        return [type(error).__name__, str(error), time.monotonic() - begin]

def interrupted():
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    return wait()

results = [wait(rank=0), wait(timeout=0.3), interrupted()]
_rendezvous._await_store = lambda *arguments: None  # PyTorch's client comes to wait
results.append(interrupted())
names = [one.name for one in threading.enumerate() if one.daemon]
print(json.dumps([results, names, time.monotonic()]), flush=True)
"""


def test_a_silent_stranger_keeps_no_program_from_ending(torch: ModuleType) -> None:
    """It is named to rank 0 and to rank 1, and Ctrl-C ends a wait for it at once.

    PyTorch's client that is left behind neither prints nor keeps the program alive.
    """
    with stranger(None) as port:
        address = f"tcp://127.0.0.1:{port}"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", INTERRUPTED, address],
            capture_output=True,
            text=True,
            timeout=250,
            check=True,
        )
        now = time.monotonic()

    results, names, ended = json.loads(done.stdout)
    assert [kind for kind, _, _ in results] == [
        "PortInUseError",
        "ServerTimeoutError",
        "KeyboardInterrupt",
        "KeyboardInterrupt",
    ]
    assert all(seconds < 50 for _, _, seconds in results)  # of 200
    for _, message, _ in results[:2]:
        assert f"pid {os.getpid()}, " in message
    assert names == ["llamatelemetry-rendezvous"]
    assert now - ended < 50
    assert done.stderr == ""


def test_an_address_beyond_loopback_is_left_to_torch(torch: ModuleType) -> None:
    """At another address PyTorch listens as it does, and says why it cannot."""
    port = free_port()
    with alone(init_method=f"tcp://127.0.0.2:{port}"):
        assert listeners(port) - {"0100007F"}
    with (
        socket.create_server(("0.0.0.0", 0)) as server,
        pytest.raises(ConfigurationError, match="cannot be used"),
        alone(init_method=f"tcp://127.0.0.2:{server.getsockname()[1]}"),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backend": "mpi"}, "backend is one of"),
        ({"timeout": 0}, "timeout is in seconds"),
        ({"timeout": float("nan")}, "timeout is in seconds"),
        ({"timeout": float("inf")}, "timeout is in seconds"),
        ({"rank": 0, "world_size": None}, "go together"),
        ({"rank": None, "world_size": 2}, "go together"),
        ({"rank": None, "world_size": None}, "RANK is not set: start the script with"),
        ({"world_size": 0}, "world_size is a whole number from 1, not 0"),
        ({"rank": -1}, "rank is a whole number from 0, not -1"),
        ({"rank": True, "world_size": 2}, "not True"),
        ({"rank": 0.0}, "not 0.0"),
        ({"rank": 2, "world_size": 2}, "at most 1, not 2"),
        ({"init_method": None}, "MASTER_ADDR is not set: start the script with"),
        ({"init_method": "udp://127.0.0.1:5"}, "three slashes"),
        ({"init_method": "tcp://127.0.0.1"}, "is 1 to 65535, not 0"),
        ({"init_method": "tcp://127.0.0.1:x"}, "three slashes"),
        ({"init_method": "tcp://127.0.0.1:70000"}, "three slashes"),
        ({"init_method": "tcp://:5"}, "three slashes"),
        ({"init_method": "file://name"}, "three slashes"),
        ({"init_method": "file:///no/such/folder/name"}, "a folder that exists"),
        ({"init_method": "file:///tmp"}, "a new file"),
        ({"init_method": 7}, "not 7"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    arguments: dict[str, Any], words: str
) -> None:
    """A wrong value is an error at the call, before PyTorch is imported."""
    values: dict[str, Any] = {
        "rank": 0,
        "world_size": 1,
        "init_method": "tcp://127.0.0.1:5",
    }
    with pytest.raises(ConfigurationError) as caught:
        process_group(**values | arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"RANK": "one"}, "RANK is 'one'"),
        ({"RANK": "2"}, "at most 1, not 2"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is 1 to 65535"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK counts from 0"),
        ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE is 'x'"),
    ],
)
def test_wrong_variables_of_torchrun_are_named(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is empty or no number is named in the error."""
    good = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "::1", "MASTER_PORT": "5"}
    for name, value in (good | variables).items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError) as caught:
        process_group()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "has_nccl", "cards", "chosen"),
    [
        ("auto", True, 2, ("nccl", "cuda:1")),
        ("nccl", True, 2, ("nccl", "cuda:1")),
        ("gloo", True, 2, ("gloo", "cpu")),
        ("auto", True, 1, ("gloo", "cpu")),
        ("auto", True, 0, ("gloo", "cpu")),
        ("auto", False, 2, ("gloo", "cpu")),
        ("nccl", False, 2, "built without NCCL; use backend="),
        ("nccl", True, 1, "there are 2, and PyTorch sees 1 card"),
    ],
)
def test_the_backend_is_chosen_by_what_there_is(
    backend: str, has_nccl: bool, cards: int, chosen: Any
) -> None:
    """NCCL is chosen where PyTorch has it and there is a card for each process."""
    described = SimpleNamespace(
        __version__="2.10.0",
        distributed=SimpleNamespace(is_nccl_available=lambda: has_nccl),
        cuda=SimpleNamespace(
            is_available=lambda: cards > 0, device_count=lambda: cards
        ),
    )
    plan = _distributed._plan(
        backend, 1, 2, "tcp://127.0.0.1:5", 1.0, variables=os.environ
    )
    if isinstance(chosen, tuple):
        assert _distributed._choose(described, plan) == chosen
        return
    with pytest.raises(ConfigurationError) as caught:
        _distributed._choose(described, plan)
    assert chosen in str(caught.value)


def test_the_bandwidth_needs_a_group(torch: ModuleType) -> None:
    """Outside a group, and with sizes that are no floats, the error says what to do."""
    with pytest.raises(ConfigurationError, match="with process_group"):
        all_reduce_bandwidth()
    for sizes in ([], [0], [6], [-4]):
        with pytest.raises(ConfigurationError, match="multiples of 4"):
            all_reduce_bandwidth(sizes)
    with pytest.raises(ConfigurationError, match="repeats is at least 1"):
        all_reduce_bandwidth([4], repeats=0)


def test_every_error_is_of_this_package() -> None:
    """All errors of the helpers can be caught by the package's base."""
    for error in (ConfigurationError, PortInUseError, ServerTimeoutError, SetupError):
        assert issubclass(error, LLCudaError)


@pytest.mark.gpu
def test_a_card_adds_up_over_nccl(torch: ModuleType) -> None:
    """With a card, "auto" is NCCL, and a group of one adds up on it."""
    if not torch.cuda.is_available():
        missing_part("PyTorch for CUDA", "pip install torch with CUDA")
    with alone() as group:
        assert (group.backend, group.device) == ("nccl", "cuda:0")
        ones = torch.ones(1024, device=group.device)
        assert group.all_reduce(ones).sum().item() == 1024
        group.barrier()
    assert nccl_info().torch_nccl is not None


@pytest.mark.gpu
def test_two_cards_add_up_over_nccl(torch: ModuleType, peers: list[Peer]) -> None:
    """With two cards, two processes add up over NCCL and measure it."""
    # Runs where there is a card; NCCL refuses two processes on one and the same.
    if torch.cuda.device_count() < 2:
        pytest.skip("there are fewer than two cards")
    address = f"tcp://127.0.0.1:{free_port()}"
    program = PEER.replace("float(group.rank + 1))", "2.0, device=group.device)")
    place = {"world_size": 2, "init_method": address}
    peers.append(Peer(*[{"rank": 1, **place}] * 2, program=program))
    for _ in range(2):
        with process_group(rank=0, world_size=2, init_method=address) as group:
            ones = torch.ones(3, device=group.device)
            assert group.all_reduce(ones).tolist() == [3.0] * 3
            group.barrier()
            table = all_reduce_bandwidth([4096, 1048576], repeats=3)
    assert table.backend == "nccl"
    check_rows(table.rows())
    assert [one[2] for one in peers[0].result()] == ["nccl"] * 2
