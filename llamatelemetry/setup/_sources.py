"""What a user names as an engine: a URL, a repository's file, an archive, a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from llamatelemetry._environment import Token
from llamatelemetry._units import without_secrets
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.setup._capsule_files import listing_digest
from llamatelemetry.setup._checksums import is_digest, sha256_of
from llamatelemetry.setup._choose import with_digest
from llamatelemetry.setup._hub import resolve_file
from llamatelemetry.setup._manifest import EngineEntry, manifest
from llamatelemetry.setup._names import (
    HubReference,
    nearest_names,
    parse_reference,
)

__all__ = ["entry_of_folder", "entry_of_source"]

_TAR = re.compile(r"\.(?:tar(?:\.(?:gz|xz|bz2|zst))?|tgz|txz)$", re.IGNORECASE)
_DEFAULT_PROGRAM = "llama-server"


def entry_of_source(
    source: str, sha256: str | None, find_token: Callable[[], Token | None]
) -> EngineEntry | None:
    """Return the entry of an engine that a user names by where it is.

    Args:
        source: A name of the manifest; "owner/repository:path"; a URL.
        sha256: The digest it must have. None: the one that is pinned in the manifest,
            or that the Hub states.
        find_token: Finds the token, where the Hub has to be asked.

    Returns:
        The entry, or None if the text is none of these: a program, then.

    Raises:
        ConfigurationError: A URL without a digest, or a repository without a path.
        SetupError: The Hub cannot be asked for the digest.
    """
    known = manifest().find(source)
    if known is not None:
        return known if sha256 is None else with_digest(known, sha256)
    reference = parse_reference(source)
    if reference is not None and ":" in source:
        return _of_hub(reference, sha256, find_token)
    if source.lower().startswith(("https://", "http://")):
        if sha256 is None:
            raise ConfigurationError(
                f"{without_secrets(source)}: an engine from an address needs the "
                "digest of the file, which its maker states: "
                "ensure_engine(url, sha256='…')"
            )
        return _entry(source, Path(urlsplit(source).path).name, sha256, url=source)
    _refuse_misspelt(source)
    return None


def entry_of_folder(folder: Path) -> EngineEntry:
    """Return the entry of an engine that lies unpacked in a folder.

    Its digest is of all its files: as good a name for it as that of an archive.

    Raises:
        ConfigurationError: There is no llama-server and no llama in it.
    """
    for name, arguments in ((_DEFAULT_PROGRAM, ()), ("llama", ("serve",))):
        found = sorted(place for place in folder.rglob(name) if place.is_file())
        if found:
            files = [
                {"path": str(path.relative_to(folder)), "sha256": sha256_of(path)}
                for path in folder.rglob("*")
                if path.is_file()
            ]
            digest = listing_digest(files, {})
            entry = _entry(str(folder), folder.name, digest, url=None)
            # Its own place is nobody's business: a capsule may be published.
            return replace(
                entry,
                executable=name,
                arguments=arguments,
                repo="local",
                path=folder.name,
            )
    raise ConfigurationError(
        f"{folder} holds no engine: there is neither {_DEFAULT_PROGRAM} nor llama in it"
    )


def _refuse_misspelt(source: str) -> None:
    """Say so where a name is nearly one of the manifest's."""
    if Path(source).exists():
        return
    near = nearest_names(source, [entry.id for entry in manifest().engines])
    if near:
        raise ConfigurationError(
            f"there is no engine {source!r}; the nearest of the manifest: "
            f"{', '.join(near)}"
        )


def _of_hub(
    reference: HubReference,
    sha256: str | None,
    find_token: Callable[[], Token | None],
) -> EngineEntry:
    repo, path, revision = reference.repo, reference.path, reference.revision
    if path is None:
        raise ConfigurationError(
            f"{repo}: name the engine's file in it: '{repo}:path/to/engine.tar.gz'"
        )
    digest = sha256
    if digest is None:
        found = resolve_file(repo, path, revision, token=find_token())
        if found.etag is None or not is_digest(found.etag):
            raise ConfigurationError(
                f"{repo}:{path}: the Hub states no digest of this file; give it: "
                "ensure_engine(…, sha256='…')"
            )
        digest = found.etag
    entry = _entry(f"{repo}:{path}", Path(path).name, digest, url=None)
    return replace(entry, repo=repo, path=path, revision=revision)


def _entry(origin: str, file_name: str, sha256: str, *, url: str | None) -> EngineEntry:
    """Return an entry of which nothing is known but where it is, and its digest."""
    kind, program, arguments = _kind_of(file_name)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", file_name).strip("-._")[:80] or "engine"
    return EngineEntry(
        id=plain,
        url=url,
        repo=None if url else origin.partition(":")[0],
        path=None if url else origin.partition(":")[2],
        revision=None,
        sha256=sha256,
        bytes=None,
        archive=kind,
        executable=program,
        arguments=arguments,
        compute_capabilities=(),
        least_driver=None,
        least_glibc=None,
        build=None,
        license="",
        confirmed_live=True,  # the digest is the user's own, or the Hub's of today
        note="",
    )


def _kind_of(
    file_name: str,
) -> tuple[Literal["zst", "tar", "file"], str, tuple[str, ...]]:
    """Return an archive's kind, the program in it, and its leading arguments."""
    if _TAR.search(file_name):
        return "tar", _DEFAULT_PROGRAM, ()
    stem = file_name.removesuffix(".zst")
    # ggml-org's single executable: `llama serve`.
    single = stem in ("llama", "llama-app")
    program, arguments = ("llama", ("serve",)) if single else (_DEFAULT_PROGRAM, ())
    return ("zst" if file_name.endswith(".zst") else "file"), program, arguments
