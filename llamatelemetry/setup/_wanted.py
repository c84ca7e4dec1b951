"""What a name of a model asks for: files of a repository, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.setup._names import (
    HubReference,
    RepoFile,
    choose_model,
    model_files,
    parse_reference,
    shard_names,
)
from llamatelemetry.setup.catalog import CatalogModel, find_model

__all__ = ["WantedModel", "belongs_to", "read_wanted", "with_files"]


@dataclass(frozen=True, slots=True)
class WantedModel:
    """A model on the Hub that was asked for.

    Attributes:
        name: What it is called: its name in the catalog, or the reference.
        reference: The repository, and what was said of the file.
        files: Its files, the shards in order; empty if only a quantization, or nothing,
            was said, so that the repository has to be looked at.
        digest: The SHA-256 that the user gave for its one file, or None.
        entry: Its entry in the catalog, or None.
    """

    name: str
    reference: HubReference
    files: tuple[RepoFile, ...]
    digest: str | None = None
    entry: CatalogModel | None = None

    @property
    def repo(self) -> str:
        """``owner/repository``."""
        return self.reference.repo

    @property
    def revision(self) -> str | None:
        """The branch, tag or commit; None for the main branch."""
        return self.reference.revision

    @property
    def size(self) -> int | None:
        """Bytes of all its files, or None if that is not known yet."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if self.files and len(sizes) == len(self.files) else None


def read_wanted(
    model: str, *, sha256: str | None = None, projector: bool = False
) -> WantedModel:
    """Return what a name asks for. Nothing is looked up but the catalog.

    Args:
        model: A name of the catalog, or a reference to the Hub.
        sha256: The digest the user gives, for a model of one file.
        projector: Whether the vision projector of a catalog's model is wanted too.

    Raises:
        ConfigurationError: It is neither; names the nearest. Or there is no projector.
    """
    reference = parse_reference(model)
    if reference is None:
        return _of_catalog(_named(model), sha256, projector=projector)
    if projector:
        raise ConfigurationError(
            "projector=True is for models of the catalog; name the projector's own "
            "file, as in 'owner/repository:mmproj-F16.gguf'"
        )
    path = reference.path
    files: tuple[RepoFile, ...] = ()
    if path is not None and path.lower().endswith(".gguf"):
        files = tuple(RepoFile(name, None, sha256) for name in shard_names(path))
    _check_digest_names_one(files, sha256)
    return WantedModel(str(reference), reference, files, sha256)


def _check_digest_names_one(files: Sequence[RepoFile], sha256: str | None) -> None:
    if sha256 is not None and len(files) > 1:
        raise ConfigurationError(
            f"sha256 is the digest of one file; this model has {len(files)}. Leave it "
            "out: each is compared with what the Hub states"
        )


def _named(model: str) -> CatalogModel:
    if "/" in model or model.lower().endswith(".gguf"):
        owner, _, rest = model.partition("/")
        repo, _, path = rest.partition("/")
        if path and parse_reference(f"{owner}/{repo}:{path}") is not None:
            raise ConfigurationError(
                f"there is no file {model!r} here; if it is one on the Hub, write "
                f"'{owner}/{repo}:{path}'"
            )
        raise ConfigurationError(
            f"there is no file {model!r} here, and it is no reference to the Hub; "
            "write one as owner/repository:file.gguf or owner/repository:Q4_K_M"
        )
    try:
        return find_model(model)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error}. A file ends in .gguf, a repository is named owner/repository"
        ) from None


def _of_catalog(
    entry: CatalogModel, sha256: str | None, *, projector: bool
) -> WantedModel:
    files = [
        RepoFile(file.path, file.bytes, sha256 or file.sha256) for file in entry.files
    ]
    _check_digest_names_one(files, sha256)
    if sha256 is not None:  # another file than the catalog's may have another size
        files = [replace(files[0], size=None)]
    if projector:
        if entry.mmproj is None:
            raise ConfigurationError(f"{entry.id} has no vision projector")
        extra = entry.mmproj
        files.append(RepoFile(extra.path, extra.bytes, extra.sha256))
    first = entry.files[0]
    reference = HubReference(entry.repo, first.path, first.revision)
    return WantedModel(entry.id, reference, tuple(files), sha256, entry)


def with_files(wanted: WantedModel, known: Sequence[RepoFile]) -> WantedModel:
    """Return what was asked for with its files, chosen among a repository's.

    Args:
        wanted: What was asked for.
        known: The repository's files.

    Raises:
        ModelError: None of them is meant, or several are.
        ConfigurationError: A digest was given, and there are several shards.
    """
    first = choose_model(wanted.repo, model_files(known), wanted.reference.path)
    by_path = {file.path: file for file in known}
    files = [by_path[path] for path in shard_names(first) if path in by_path]
    _check_digest_names_one(files, wanted.digest)
    if wanted.digest is not None:
        files = [replace(files[0], sha256=wanted.digest)]
    reference = replace(wanted.reference, path=first)
    return replace(wanted, reference=reference, files=tuple(files))


def belongs_to(repo: str, path: str) -> bool:
    """Whether a file's name says that it is of this repository.

    ``Qwen3-4B-Q4_K_M.gguf`` is of ``Qwen/Qwen3-4B-GGUF``; ``model.gguf`` may be of any.
    """
    stem = repo.rpartition("/")[2].lower().removesuffix("-gguf")
    return _plain(Path(path).name).startswith(_plain(stem))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
