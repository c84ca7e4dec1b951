"""Fetches what is missing of a model, and verifies all of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from llamatelemetry._environment import Token
from llamatelemetry._progress import FileBar, Shown
from llamatelemetry._units import format_file_size
from llamatelemetry.exceptions import (
    ChecksumError,
    DownloadError,
    ModelError,
    OfflineError,
)
from llamatelemetry.setup._checksums import (
    is_digest,
    known_digest,
    mismatch,
    sha256_of,
)
from llamatelemetry.setup._disk import require_space
from llamatelemetry.setup._hub import fetch_file, hub_token, list_files
from llamatelemetry.setup._hub_cache import discard_cached, sweep_incomplete
from llamatelemetry.setup._names import RepoFile, nearest_names, shown_names
from llamatelemetry.setup._search import ModelSearch, cache_for, caches, look_for
from llamatelemetry.setup._together import run_together
from llamatelemetry.setup._wanted import WantedModel, with_files

__all__ = ["LocalModel", "ModelFetch", "ask_hub", "verify"]


@dataclass(frozen=True, slots=True, repr=False)
class LocalModel(os.PathLike[str]):
    """A model on this machine; stands for its path wherever one is taken.

    Attributes:
        path: Its file; the first one of several shards.
        name: What it was asked for by.
        files: All its files, in order; without the projector.
        size: Bytes of these files together.
        sha256: The digest of the first file, or None if it was never read.
        projector: The vision projector, if it was asked for.
        verified: Whether its bytes were compared with a digest that somebody stated; a
            file of this machine that was named by its path is taken as it is.
        stands_for: The model of the catalog in whose place this demo model is, while
            ``LLAMATELEMETRY_DEMO`` is set; else None. Plans are then the other's.

    Examples:
        >>> from llamatelemetry import ServerConfig, ensure_model
        >>> model = ensure_model("demo")
        >>> model.name, model.size, len(model.files)
        ('demo', 1917632, 1)
        >>> ServerConfig(model, context_size=512).model_path == str(model.path)
        True
    """

    path: Path
    name: str
    files: tuple[Path, ...]
    size: int
    sha256: str | None = None
    projector: Path | None = None
    verified: bool = True
    stands_for: str | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        parts = f", {len(self.files)} files" if len(self.files) > 1 else ""
        return (
            f"<LocalModel {self.name}: {self.path.name}{parts}, "
            f"{format_file_size(self.size)}>"
        )


@dataclass(frozen=True, slots=True)
class ModelFetch:
    """How a model is looked for and fetched.

    Attributes:
        cache: The cache folder that the user names; None for the usual ones.
        find_token: Finds the token; called only if the Hub has to be asked.
        shown: Whether bars are shown; or what is called instead, in any thread.
        called_off: Ends the transfers when it is set.
    """

    cache: Path | None = None
    find_token: Callable[[], Token | None] = field(default=hub_token, repr=False)
    shown: Shown = True
    called_off: threading.Event = field(default_factory=threading.Event, repr=False)

    def get(self, wanted: WantedModel) -> LocalModel:
        """Return the model, verified; see :func:`ensure_model` for the errors."""
        search = look_for(wanted, self.cache)
        if not search.complete:
            return self._fetch(wanted)
        try:
            return self._verified(search)
        except ChecksumError as error:
            if not all(self._is_cached(place) for place in search.here.values()):
                raise
            broken = error
        # A file of the cache has changed: it is fetched again, if that is possible.
        try:
            return self._fetch(wanted)
        except OfflineError:
            raise broken from None

    def _is_cached(self, place: Path) -> bool:
        return any(place.is_relative_to(cache) for cache in caches(self.cache))

    def _verified(self, search: ModelSearch) -> LocalModel:
        """Return a model that is here, once each of its files is verified."""
        for file in search.wanted.files:
            path = search.here[file.path]
            size = path.stat().st_size
            shown = self.shown if known_digest(path) is None else False
            with FileBar(
                path.name, size, cancelled=self.called_off, shown=shown
            ) as bar:
                _check(search.wanted, file, path, bar, moves=True)
        return _local(search.wanted, search.here)

    def _fetch(self, wanted: WantedModel) -> LocalModel:
        """Ask the Hub what there is, fetch what is not here, and verify all of it."""
        token = self.find_token()
        search = look_for(ask_hub(wanted, token), self.cache)
        size = sum(file.size or 0 for file in search.missing)
        cache = cache_for(size, self.cache)
        require_space(cache, size, wanted.name)
        sweep_incomplete(cache)
        files = search.wanted.files
        tasks = [
            partial(self._fetch_file, search, file, cache, token) for file in files
        ]
        places = run_together(tasks, called_off=self.called_off)
        here = {file.path: place for file, place in zip(files, places, strict=True)}
        return _local(search.wanted, here)

    def _fetch_file(
        self,
        search: ModelSearch,
        file: RepoFile,
        cache: Path,
        token: Token | None,
        called_off: threading.Event,
    ) -> Path:
        """Return one file of a model, verified; fetched once more if it is wrong."""
        wanted, here = search.wanted, search.here.get(file.path)
        tries = 2 if here is None else 3
        with FileBar(
            Path(file.path).name, file.size, cancelled=called_off, shown=self.shown
        ) as bar:
            while True:
                tries -= 1
                place = here or fetch_file(
                    wanted.repo,
                    file.path,
                    wanted.revision,
                    cache=cache,
                    bar=bar,
                    size=file.size,
                    token=token,
                )
                try:
                    _check(wanted, file, place, bar, moves=here is not None)
                except ChecksumError:
                    if self._is_cached(place):  # and no attached file of the user's
                        discard_cached(place)
                    if not tries:
                        raise
                    here = None
                    bar.move_to(0)
                else:
                    return place


def ask_hub(wanted: WantedModel, token: Token | None) -> WantedModel:
    """Return what was asked for with size and digest of each file, as the Hub has them.

    Raises:
        ChecksumError: The Hub has another file than the one that is pinned.
        LLCudaError: See :func:`ensure_model`.
    """
    known = list_files(wanted.repo, wanted.revision, token=token)
    if not wanted.files:
        chosen = with_files(wanted, known)
        for file in chosen.files:
            _require_digest(chosen, file)
        return chosen
    by_name = {file.path.lower(): file for file in known}
    files = []
    for file in wanted.files:
        # Names change their case ("gpt-oss-20b-mxfp4.gguf" did); the digest is pinned.
        found = by_name.get(file.path.lower())
        if found is None:
            raise _missing(wanted, file.path, known)
        if None not in (file.sha256, found.sha256) and file.sha256 != found.sha256:
            reference = f"{wanted.repo}:{found.path}"
            raise mismatch(
                reference,
                expected=str(file.sha256),
                actual=str(found.sha256),
                advice="The Hub has another file now than the one that is pinned; "
                "nothing was fetched. If you trust its owner, take it knowingly: "
                f"ensure_model({reference!r}, sha256={found.sha256!r})",
            )
        files.append(replace(found, sha256=file.sha256 or found.sha256))
        _require_digest(wanted, files[-1])
    return replace(wanted, files=tuple(files))


def _require_digest(wanted: WantedModel, file: RepoFile) -> None:
    """Refuse a large file whose digest nobody states: a mirror may leave it out."""
    if file.sha256 is None and (file.size or 0) > _MOST_UNVERIFIED_BYTES:
        reference = f"{wanted.repo}:{file.path}"
        raise DownloadError(
            f"{reference}: the Hub states no digest of this file, so it could not be "
            f"verified. Give it: ensure_model({reference!r}, sha256='…')"
        )


_MOST_UNVERIFIED_BYTES = 10 * 10**6
"""The Hub keeps files beyond this size by their digest, always."""


def _missing(wanted: WantedModel, path: str, known: list[RepoFile]) -> ModelError:
    models = [file.path for file in known if file.path.lower().endswith(".gguf")]
    near = nearest_names(path, models) or models[:4]
    instead = f"The nearest: {shown_names(near)}" if near else "It holds no GGUF file"
    return ModelError(f"{wanted.repo}: the repository has no file {path!r}. {instead}.")


def _check(
    wanted: WantedModel, file: RepoFile, path: Path, bar: FileBar, *, moves: bool
) -> None:
    """Raise unless the bytes are the ones that were pinned, or that the Hub stated."""
    expected = _stated(file, path)
    if expected is not None:
        verify(path, expected, bar, f"{wanted.repo}:{file.path}", moves=moves)


def _stated(file: RepoFile, path: Path) -> str | None:
    """Return the digest that was pinned, or that the Hub stated, or None."""
    name = path.resolve().name  # in the cache, a large file is named by its digest
    return file.sha256 or (name if is_digest(name) else None)


def verify(
    path: Path, expected: str, bar: FileBar, name: str, *, moves: bool = True
) -> None:
    """Raise unless a file has this digest; reads it if that is not known yet.

    Args:
        path: The file.
        expected: Its SHA-256.
        bar: Says that it is being verified.
        name: What it is called in the message.
        moves: Whether the bar follows the bytes that are read.

    Raises:
        ChecksumError: It has another one.
    """

    def note(count: int) -> None:
        bar.advance(count if moves else 0)

    actual = known_digest(path)
    if actual is None:
        bar.say("verifying")
        actual = sha256_of(path, note)
        bar.say("")
    if actual != expected:
        raise mismatch(
            name,
            expected=expected,
            actual=actual,
            advice="They were changed on the way or on the disk; fetch it again.",
        )


def _local(wanted: WantedModel, here: dict[str, Path]) -> LocalModel:
    places = [here[file.path] for file in wanted.files]
    projector = None
    if wanted.entry is not None and len(places) > len(wanted.entry.files):
        projector = places.pop()
    if len({place.parent for place in places}) > 1:
        raise ModelError(
            f"{wanted.name}: its shards lie in several folders, since the repository "
            "changed while they were fetched. Fetch it again."
        )
    return LocalModel(
        places[0],
        wanted.name,
        tuple(places),
        sum(place.stat().st_size for place in places),
        known_digest(places[0]),
        projector,
        all(_stated(file, here[file.path]) is not None for file in wanted.files),
    )
