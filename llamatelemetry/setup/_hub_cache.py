"""The folders of the Hub's cache: which files of a repository lie there, what to sweep.

The layout is the library's own and the same in all its versions:
``models--owner--name/{blobs,refs,snapshots}`` and ``.locks`` beside them; see
https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
from pathlib import Path

__all__ = [
    "cached_models",
    "cached_snapshot",
    "discard_cached",
    "sweep_incomplete",
]

# Since hub 1.18 the name of an unfinished file has a random part, and nothing ever
# continues it; before, the library continues it, and it is worth keeping for a while.
_NEVER_CONTINUED = re.compile(r"(?P<etag>.+)\.[0-9a-f]{8}\.incomplete")
_CONTINUED = re.compile(r"(?P<etag>[^.]+)\.incomplete")
_KEPT_SECONDS = 24 * 3600


def _repo_folder(cache: Path, repo: str) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def cached_snapshot(cache: Path, repo: str, revision: str | None = None) -> list[str]:
    """Return the paths of a repository's files in the cache, at a revision.

    Args:
        cache: The cache's folder.
        repo: ``owner/repository``.
        revision: A branch, tag or commit; None for the main branch.
    """
    folder = _repo_folder(cache, repo)
    commit = revision or "main"
    with contextlib.suppress(OSError):
        commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / commit
    if commit in ("", "..") or snapshot.parent != folder / "snapshots":
        return []
    return sorted(
        str(place.relative_to(snapshot))
        for place in snapshot.rglob("*")
        if place.is_file()
    )


def cached_models(cache: Path) -> list[tuple[str, int]]:
    """Return the GGUF files of the cache, ("owner/name:file", bytes), by name."""
    found = {}
    for place in cache.glob("models--*/snapshots/*/**/*.gguf"):
        with contextlib.suppress(OSError):
            parts = place.relative_to(cache).parts
            repo = parts[0].removeprefix("models--").replace("--", "/")
            found[f"{repo}:{'/'.join(parts[3:])}"] = place.stat().st_size
    return sorted(found.items())


def discard_cached(path: Path) -> None:
    """Delete a file of the cache whose content is wrong: the link and what it names."""
    real = path.resolve()
    repo = next((up for up in path.parents if up.name.startswith("models--")), None)
    # A link may lead anywhere: a mirror can name the blob as it likes.
    if repo is not None and real.parent == repo.resolve() / "blobs":
        real.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def sweep_incomplete(cache: Path, *, all_of_them: bool = False) -> int:
    """Delete what broken transfers left behind, and return its bytes.

    Only what nobody is writing: the library holds a lock for each file that it writes,
    and this takes the lock before it deletes. What an older version of the library
    would continue is kept for a day.

    Args:
        cache: The cache's folder.
        all_of_them: Delete those too that could be continued: room is what is missing.
    """
    freed = 0
    for place in cache.glob("models--*/blobs/*.incomplete"):
        orphan = _NEVER_CONTINUED.fullmatch(place.name)
        match = orphan or _CONTINUED.fullmatch(place.name)
        with contextlib.suppress(OSError):
            status = place.stat()
            fresh = time.time() - status.st_mtime < _KEPT_SECONDS
            if match is None or (orphan is None and fresh and not all_of_them):
                continue
            folder = cache / ".locks" / place.parent.parent.name
            if _delete_if_free(place, folder / f"{match['etag']}.lock"):
                freed += status.st_blocks * 512
    return freed


def _delete_if_free(place: Path, lock: Path) -> bool:
    if not lock.exists():
        place.unlink()
        return True
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        place.unlink()
    return True
