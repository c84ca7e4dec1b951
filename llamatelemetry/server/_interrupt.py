"""SIGINT ends the process at once with exit code 0, whatever C++ code is doing."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from typing import NoReturn

_SIGEV_THREAD = 2
_kept: list[object] = []  # libc goes on using them


def end_on_interrupt() -> None:
    """Make SIGINT end this process with exit code 0, in every state.

    A Python handler is enough as long as Python code can run. While xllamacpp loads
    a model it holds the interpreter lock, and no Python code runs. So on Linux libc
    is asked as well: to call ``_exit(0)``, from a thread of its own, when a byte
    comes through a pipe. CPython's handler, which is C, writes that byte at once.
    """
    signal.signal(signal.SIGINT, _exit)
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return  # struct aiocb is glibc's
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # set_wakeup_fd wants it so
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    libc.aio_read(_exit_when_readable(libc, reader))


def _exit(_number: int, _frame: object) -> NoReturn:
    # os._exit, because the server's destructor waits for streaming clients.
    os._exit(0)


def _exit_when_readable(libc: ctypes.CDLL, reader: int) -> ctypes.Array[ctypes.c_char]:
    """Return a request to read one byte, whose completion calls ``_exit(0)``.

    The layout is that of 64-bit glibc: https://sourceware.org/git/glibc.git,
    rt/aio.h and bits/types/sigevent_t.h.
    """
    byte = ctypes.create_string_buffer(1)
    request = ctypes.create_string_buffer(256)
    function = ctypes.cast(libc._exit, ctypes.c_void_p).value  # noqa: SLF001 - its name
    struct.pack_into("i", request, 0, reader)  # aio_fildes
    struct.pack_into(
        "PN", request, 16, ctypes.addressof(byte), 1
    )  # aio_buf, aio_nbytes
    struct.pack_into("qiiP", request, 32, 0, 0, _SIGEV_THREAD, function)  # aio_sigevent
    _kept.extend((byte, request))
    return request
