"""What there is of NCCL on this machine, and which of its variables are worth setting.

A libnccl is asked for its version in a process of its own. One that is broken may
crash, and the first that is loaded stands in for every other of its name: PyTorch
would then run on it, not on its own.
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/
"""

from __future__ import annotations

import re
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from llamatelemetry._distributed import load_torch
from llamatelemetry._units import GIB, format_memory, printable
from llamatelemetry.exceptions import EngineNotFoundError, LLCudaError
from llamatelemetry.gpu.inventory import GPUInfo, detect_gpus
from llamatelemetry.server import _process
from llamatelemetry.server.engine import Engine, EngineLike, find_engine

__all__ = [
    "NCCLEnvironment",
    "NCCLInfo",
    "NCCLLibrary",
    "nccl_environment",
    "nccl_info",
]

Version = tuple[int, int, int]

_LIBRARY = "libnccl.so.2"
# Where wheels put it: nvidia-nccl-cu12 and -cu13 use the same folder.
_IN_PACKAGES = (f"nvidia/nccl/lib/{_LIBRARY}", f"torch/lib/{_LIBRARY}")
_ASK_SECONDS = 30.0
# Prints the path the loader has chosen, the function's result, and the version.
_ASK = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
version = ctypes.c_int(-1)
result = library.ncclGetVersion(ctypes.byref(version))
mapped = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps")
          if "libnccl" in line}
print("\\nNCCL", result, version.value, *sorted(mapped)[:1])
"""
_ANSWER = re.compile(r"^NCCL (-?\d+) (-?\d+) ?(.*)$", re.MULTILINE)
# Before 2.9 a version was X * 1000 + Y * 100 + Z; since then it is X * 10000 + ...:
# NCCL_VERSION in https://github.com/NVIDIA/nccl/blob/master/src/nccl.h.in
_FIRST_WITH_FIVE_DIGITS = 20_900

_SYMBOL = b"ncclAllReduce"  # also in the text of llama.cpp's own check of the call
_OWN_LIBRARIES = ("libggml", "libllama", "libmtmd")
_MOST_BYTES = 4 * 2**20
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ = 1, 5, 10

_LEAST_CARDS = 2
_NOTHING = "nothing to set: there are fewer than two cards"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - NCCL's choice, looked at only
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html
# and, for P2P and /dev/shm, troubleshooting/gpu_troubleshooting.html and
# troubleshooting/runtime_and_mpi_issues.html beside it
_WORTH_SETTING = {
    "NCCL_SOCKET_IFNAME": (
        "=lo",
        "one machine needs no network: by itself NCCL takes loopback only where "
        "there is no other interface",
    ),
    "NCCL_DEBUG": (
        "WARN",
        "an error says what happened, not only its category",
    ),
}
_LEFT_OUT = {
    "NCCL_P2P_DISABLE": (
        "NCCL uses host memory by itself where CUDA says that the cards do not reach "
        "each other, and NVIDIA wants it for debugging only. Try it with 1 if the "
        "first operation hangs, as in virtual machines whose PCIe access control "
        "redirects what the cards send each other."
    ),
    "NCCL_SHM_DISABLE": (
        "without P2P, shared memory is the way between the cards; the next one is "
        "the network."
    ),
    "NCCL_IB_DISABLE": (
        "NCCL sees by itself whether there is InfiniBand, and on one machine uses "
        "shared memory before any network."
    ),
}


@dataclass(frozen=True, slots=True)
class NCCLLibrary:
    """A libnccl.so.2 that was found.

    Attributes:
        path: Where it is.
        version: ``(2, 27, 7)``; None if it cannot be used.
        problem: Why it cannot be used; "" if it can.

    Example:
        >>> from llamatelemetry.api.nccl import nccl_info
        >>> for library in nccl_info().libraries:
        ...     assert library.version or library.problem
    """

    path: str
    version: Version | None
    problem: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class NCCLInfo:
    """What there is of NCCL. What is not there has a sentence that says why.

    Attributes:
        libraries: The libraries found, the one that the loader finds first.
        library_reason: Where it was looked for, if there is none; else "".
        torch_version: PyTorch's version; None where it is not installed.
        torch_nccl: The version of NCCL in PyTorch; None if it has none.
        torch_reason: Why PyTorch cannot use NCCL; "" if it can.
        engine: The engine that was looked at; None if there is none.
        engine_linked: Whether NCCL is linked into it; None if that is not known.
        engine_reason: How that is known, or why it is not.

    Example:
        >>> from llamatelemetry.api.nccl import nccl_info
        >>> info = nccl_info()
        >>> (info.torch_nccl is not None) or info.torch_reason != ""
        True
    """

    libraries: tuple[NCCLLibrary, ...]
    library_reason: str
    torch_version: str | None
    torch_nccl: Version | None
    torch_reason: str
    engine: str | None
    engine_linked: bool | None
    engine_reason: str

    @property
    def version(self) -> Version | None:
        """The version of the first library that can be used."""
        return next((one.version for one in self.libraries if one.version), None)

    def __repr__(self) -> str:
        rows = [
            ("libnccl", f"{one.path}: {_dotted(one.version) or one.problem}")
            for one in self.libraries
        ] or [("libnccl", f"no: {self.library_reason}")]
        has = f"{self.torch_version} with NCCL {_dotted(self.torch_nccl)}"
        rows.append(
            ("PyTorch", f"no: {self.torch_reason}" if self.torch_reason else has)
        )
        words = {True: "yes", False: "no", None: "not known"}[self.engine_linked]
        rows.append(("engine", f"{words}: {self.engine_reason}"))
        return "\n".join(f"{name:8} {text}" for name, text in rows)


def nccl_info(engine: EngineLike | None = None) -> NCCLInfo:
    """Look for NCCL: as a library, in PyTorch, and in the engine that would run.

    What is missing is said, never raised. Imports PyTorch, if it is installed, and
    starts the engine with --help, as every search for one does.

    Args:
        engine: What `find_engine` takes. None: the one it finds.

    Returns:
        What was found; shown as a table.

    Example:
        >>> from llamatelemetry.api.nccl import nccl_info
        >>> nccl_info("embedded").engine
        'the embedded engine (xllamacpp)'
    """
    libraries, library_reason = _libraries()
    torch_version, torch_nccl, torch_reason = _of_torch()
    name, linked, engine_reason = _of_engine(engine)
    return NCCLInfo(
        libraries=libraries,
        library_reason=library_reason,
        torch_version=torch_version,
        torch_nccl=torch_nccl,
        torch_reason=torch_reason,
        engine=name,
        engine_linked=linked,
        engine_reason=engine_reason,
    )


def _dotted(version: Version | None) -> str:
    return ".".join(map(str, version or ()))


def _libraries() -> tuple[tuple[NCCLLibrary, ...], str]:
    """Return the libraries that are found, and why there are none."""
    found: dict[str, NCCLLibrary] = {}
    packages = [
        Path(place) / name for place in filter(None, sys.path) for name in _IN_PACKAGES
    ]
    reason = ""
    for name in [_LIBRARY, *(str(path) for path in packages if path.is_file())]:
        library = _ask(name)
        if library.problem.startswith(f"{_LIBRARY}: cannot open shared"):
            reason = library.problem
        else:
            found.setdefault(str(Path(library.path).resolve()), library)
    if found:
        return tuple(found.values()), ""
    return (), f"{reason}; no wheel (nvidia-nccl-cu12, -cu13) brings one either"


def _ask(name: str) -> NCCLLibrary:
    """Load a library in a process of its own, and return what it says of itself."""
    command = [sys.executable, "-I", "-S", "-c", _ASK, name]
    try:
        done = _process.run(command, timeout=_ASK_SECONDS)
    except (OSError, TimeoutError) as error:
        return NCCLLibrary(name, None, f"it could not be asked: {error}")
    if done.returncode < 0:
        crash = f"loading it ended the process with signal {-done.returncode}"
        return NCCLLibrary(name, None, crash)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it does not load"])[-1]
        return NCCLLibrary(name, None, printable(last.partition(": ")[2] or last))
    answer = _ANSWER.search(done.stdout)
    if answer is None:
        return NCCLLibrary(name, None, "it ended the process that asked it")
    result, code, place = int(answer[1]), int(answer[2]), answer[3] or name
    if result != 0 or code < 1:
        problem = f"ncclGetVersion returned {result} and the version {code}"
        return NCCLLibrary(place, None, problem)
    return NCCLLibrary(place, _version(code))


def _version(code: int) -> Version:
    """Return the version that NCCL's number means: 2804 is 2.8.4, 22707 is 2.27.7."""
    unit = 1000 if code < _FIRST_WITH_FIVE_DIGITS else 10_000
    return code // unit, code % unit // 100, code % 100


def _of_torch() -> tuple[str | None, Version | None, str]:
    """Return PyTorch's version, that of its NCCL, and why it has none."""
    try:
        torch = load_torch()
    except LLCudaError as error:
        return None, None, str(error)
    name = str(torch.__version__)
    if not torch.distributed.is_nccl_available():
        return name, None, f"PyTorch {name} was built without NCCL"
    version = torch.cuda.nccl.version()[:3]
    if not torch.cuda.is_available():
        reason = f"PyTorch {name} has NCCL {_dotted(version)}, but sees no card"
        return name, version, reason
    return name, version, ""


def _of_engine(wanted: EngineLike | None) -> tuple[str | None, bool | None, str]:
    """Return the engine, whether NCCL is linked into it, and how that is known."""
    try:
        engine = find_engine(wanted)
    except EngineNotFoundError as error:
        return None, None, str(error)
    name = str(engine)
    files = _files_of(engine)
    looked: dict[str, set[str]] = {}
    seen: set[Path] = set()
    for path in files:
        real = path.resolve()
        if real in seen:  # libggml.so is a link to libggml.so.0
            looked[path.name] = set()
            continue
        seen.add(real)
        with suppress(OSError, ValueError), path.open("rb") as file:
            looked[path.name] = needed_libraries(file)
            file.seek(0)
            if any("libnccl.so" in one for one in looked[path.name]):
                return name, True, f"{path.name} needs libnccl.so"
            if _holds(file, _SYMBOL):
                how = f"{path.name} holds {_SYMBOL.decode()} and needs no libnccl.so"
                return name, True, f"{how}: linked in, or loaded when it is wanted"
    if not files or files[0].name not in looked:
        first = files[0] if files else name
        return name, None, f"{first} is no program that can be looked into"
    elsewhere = sorted(
        one
        for one in set[str]().union(*looked.values())
        if one.startswith(_OWN_LIBRARIES) and one not in looked
    )
    if elsewhere:
        return name, None, f"its {elsewhere[0]} does not lie beside it"
    none = f"NCCL is in none of its files ({len(seen)} were looked into)"
    return name, False, f"{none}; llama.cpp is built with it by -DGGML_CUDA_NCCL=ON"


def _files_of(engine: Engine) -> list[Path]:
    """Return the files that hold an engine's own code, the program first."""
    if not engine.embedded:
        program = Path(engine.command[0])
        beside = [
            path
            for folder in engine.library_path
            for path in sorted(Path(folder).glob("lib*.so*"))
            if path.name.startswith(_OWN_LIBRARIES)
        ]
        return [program, *beside]
    spec = find_spec("xllamacpp")
    places = [Path(place) for place in engine.python_path]
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parents[1])
    place = next((one for one in places if (one / "xllamacpp").is_dir()), None)
    if place is None:
        return []
    folders = (place / "xllamacpp", place / "xllamacpp.libs")
    files = [path for folder in folders for path in sorted(folder.glob("**/*.so*"))]
    return [path for path in files if not path.name.startswith("libnccl")]


def needed_libraries(file: BinaryIO) -> set[str]:
    """Return the libraries a program or library of 64 bits is linked against.

    Structures: https://refspecs.linuxfoundation.org/elf/elf.pdf, of 64 bits in
    https://man7.org/linux/man-pages/man5/elf.5.html

    Raises:
        ValueError: It is no such file, or a damaged one.
    """
    try:
        return set(_needed(file))
    except (struct.error, OverflowError) as error:
        raise ValueError(f"damaged: {error}") from error


def _needed(file: BinaryIO) -> Iterator[str]:
    header = file.read(64)
    if header[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no ELF file of 64 bits, lowest byte first")
    (table,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    segments = []
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack(
            "<IIQQQQ", _read(file, table + index * size, 40)
        )
        segments.append((kind, offset, address, length))
    names, names_size, places = 0, 0, []
    for kind, offset, _, length in segments:
        if kind == _PT_DYNAMIC:
            for tag, value in struct.iter_unpack("<qQ", _read(file, offset, length)):
                places += [value] if tag == _DT_NEEDED else []
                names = value if tag == _DT_STRTAB else names
                names_size = value if tag == _DT_STRSZ else names_size
    for kind, offset, address, length in segments:
        if kind == _PT_LOAD and address <= names < address + length:
            texts = _read(file, names - address + offset, names_size)
            for place in places:
                end = texts.find(b"\0", place)
                yield texts[place:end].decode("utf-8", "replace")
            return


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    if size > _MOST_BYTES:
        raise ValueError(f"damaged: a table of {size} bytes")
    file.seek(offset)
    return file.read(size)


def _holds(file: BinaryIO, wanted: bytes) -> bool:
    """Whether a file holds these bytes; a gigabyte of kernels is read in pieces."""
    before = b""
    while piece := file.read(_MOST_BYTES):
        if wanted in before + piece:
            return True
        before = piece[-len(wanted) :]
    return False


class NCCLEnvironment(dict[str, str]):
    """Variables for a process that uses NCCL, each with a reason.

    Attributes:
        reasons: Why each is set.
        left_out: Variables that are often set, and why they are not.
        notes: What else to look at.

    Example:
        >>> from llamatelemetry.api.nccl import nccl_environment
        >>> environment = nccl_environment(gpus)
        >>> environment.keys() == environment.reasons.keys()
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines = [f"{name}={self[name]}  {self.reasons[name]}" for name in self]
        lines += [f"{name} is not set: {why}" for name, why in self.left_out.items()]
        return "\n".join([*lines, *self.notes]) or _NOTHING


def nccl_environment(gpus: Sequence[GPUInfo] | None = None) -> NCCLEnvironment:
    """Return the variables worth setting for processes on the cards of one machine.

    They come from NVIDIA's documentation; nothing of this was measured on two T4s.
    They say nothing for several machines. Nothing is set here: give them to the
    processes you start, ``env={**nccl_environment(), **os.environ}``, which leaves
    what you have set already.

    Args:
        gpus: The cards, as `detect_gpus` gives them. None: those of this machine.

    Returns:
        A dict; empty for fewer than two cards, where NCCL sends nothing.

    Raises:
        SetupError: NVIDIA's nvidia-ml-py is missing, and gpus is None.

    Example:
        >>> from llamatelemetry.api.nccl import nccl_environment
        >>> nccl_environment(gpus[:1])  # one card sends nothing to itself
        nothing to set: there are fewer than two cards
        >>> len(nccl_environment(gpus)) > 0
        True
    """
    result = NCCLEnvironment()
    if len(detect_gpus() if gpus is None else gpus) < _LEAST_CARDS:
        return result
    for name, (value, reason) in _WORTH_SETTING.items():
        result[name] = value
        result.reasons[name] = reason
    result.left_out.update(_LEFT_OUT)
    result.notes = _notes(_SHARED_MEMORY)
    return result


def _notes(shared_memory: Path) -> tuple[str, ...]:
    """Return what a small /dev/shm means; Docker gives a container 64 MiB of it."""
    try:
        size = shutil.disk_usage(shared_memory).total
    except OSError:
        return (f"there is no {shared_memory}, which NCCL keeps its buffers in",)
    if size >= GIB:
        return ()
    return (
        f"{shared_memory} has {format_memory(size)}, and NVIDIA advises 1 GiB for "
        'containers (--shm-size=1g); "failed to extend /dev/shm" means it was too '
        "little",
    )
