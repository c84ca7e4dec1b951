"""What is shown to people: sizes, addresses, and the texts that others wrote.

This is the only place where bytes, MiB and GiB become one another or become text.

Memory is counted in bytes and shown in binary units (1 GiB = 2**30 bytes), because
that is what nvidia-smi and llama.cpp print. Files and downloads are shown in decimal
units (1 GB = 10**9 bytes), because that is what the Hugging Face Hub shows.
"""

from __future__ import annotations

import re

KIB = 2**10
MIB = 2**20
GIB = 2**30

_LONGEST = 200  # characters of one text; a hostile file may hold a megabyte


def format_memory(size_bytes: int) -> str:
    """Return a memory size for people, in binary units: ``14.7 GiB``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def format_file_size(size_bytes: int) -> str:
    """Return a file size for people, in decimal units as on the Hub: ``4.9 GB``."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def printable(text: str, most: int = _LONGEST) -> str:
    """Return a text of one line, without the control characters a file may hold.

    Neither a terminal nor a page can be steered by it: escapes, line ends and marks of
    direction become U+FFFD.

    Args:
        text: What somebody else wrote.
        most: Characters after which it is cut.
    """
    shown = text[:most] + ("…" if len(text) > most else "")
    if shown.isprintable():
        return shown
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in shown)


def without_secrets(url: str) -> str:
    """Return an address without what may be secret in it."""
    scheme, _, rest = url.partition("//")
    # A password may hold any character, such as one that ends a host elsewhere.
    if re.match(r"[^/@]*@|[^@]*:[^@]*@", rest):
        return f"{scheme}//…"
    return re.split(r"[?#]", url, maxsplit=1)[0]
