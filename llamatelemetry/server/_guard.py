"""A small process that outlives the Python it serves by a moment, to clear up after it.

Run as a script by ``_process``: ``python -I -S FILE PARENT_PID``. Reads lines from its
standard input: ``+GROUP`` for a process group to be killed when the parent ends,
``-GROUP`` for one that has ended. Nothing of this package is imported.

The kernel's parent-death signal reaches the engine itself. It does not reach what the
engine has started (a wrapper script's server): that is what this is for.
"""

import os
import select
import signal
import sys

LOOK_SECONDS = 0.5  # a fork of the parent keeps the pipe open, so that is not enough


def main() -> None:
    """Follow the groups until the parent ends, then kill them."""
    parent = int(sys.argv[1])
    groups: set[int] = set()
    rest = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], LOOK_SECONDS)[0]:
            continue
        chunk = os.read(0, 4096)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            group = int(line[1:])
            if line.startswith(b"+"):
                groups.add(group)
            else:
                groups.discard(group)
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
