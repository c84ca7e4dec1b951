"""Become another program that is killed when the process that asked for it dies.

Run as a script by ``_process.start``: ``python -I -S FILE PARENT_PID PROGRAM ...``.
Nothing of this package is imported, so that it takes a few milliseconds.

The kernel's parent-death signal must be asked for by the child itself. Python's
``preexec_fn`` would do it between fork and exec, which can deadlock in a process with
threads (https://docs.python.org/3/library/subprocess.html#popen-constructor), and a
notebook kernel has threads. After exec the signal stays set.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # https://man7.org/linux/man-pages/man2/prctl.2.html


def main() -> None:
    """Set the signal, make sure the parent still lives, and become the program."""
    parent = int(sys.argv[1])
    command = sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the signal was set
        sys.exit("the process that started this server has ended")
    # Python ignores SIGPIPE; the program should meet the usual default.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execv(command[0], command)  # noqa: S606 - that is the point, and no shell
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
