"""What names on the Hub say: references, quantizations, shards. Nothing is asked."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from urllib.parse import parse_qs, unquote, urlsplit

from llamatelemetry._units import printable
from llamatelemetry.exceptions import ModelError

__all__ = [
    "USUAL_QUANTIZATION",
    "HubReference",
    "ModelFile",
    "RepoFile",
    "choose_model",
    "is_gguf",
    "is_model_name",
    "model_files",
    "nearest_names",
    "parse_reference",
    "quantization_label",
    "shard_names",
    "shown_names",
]

_HUB_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REFERENCE = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^:@\s]+))?(?::(?P<path>\S.*))?"
)
_PAGE = re.compile(
    rf"/(?P<repo>{_NAME}/{_NAME})"
    r"(?:/(?:blob|resolve|raw|tree)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?/?"
)
_SHARD = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE
)
_QUANTIZATION = re.compile(
    r"(?<![A-Z0-9])(?:UD-)?"
    r"(?:I?Q[1-8](?:_(?:K|NL|XXS|XS|S|M|L|XL|XXL|[0-9]))+|TQ[12]_0"
    r"|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)(?![A-Z0-9])",
    re.IGNORECASE,
)
USUAL_QUANTIZATION = "Q4_K_M"
"""What is meant where a repository has several and none is named."""
_MOST_NAMES = 32
_MOST_COMPARED = 5000


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository on the Hub.

    Attributes:
        path: Its path in the repository.
        size: Bytes, or None if the Hub does not tell.
        sha256: The digest of its content; None for small files, which have none there.
    """

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model of a repository: a file, or all its shards.

    Attributes:
        label: The quantization its name tells ("Q4_K_M", "UD-Q4_K_XL"), or None.
        paths: Its files, the shards in order.
        size: Bytes of all its files together.
    """

    label: str | None
    paths: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class HubReference:
    """What a reference to the Hub names.

    Attributes:
        repo: ``owner/repository``.
        path: A file in it, or a quantization ("Q4_K_M"), or None for the repository.
        revision: A branch, tag or commit; None for the main branch.
    """

    repo: str
    path: str | None
    revision: str | None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        path = f":{self.path}" if self.path else ""
        return f"{self.repo}{revision}{path}"


def parse_reference(text: str) -> HubReference | None:
    """Read a reference to the Hub.

    Args:
        text: ``owner/repository:file.gguf``, ``owner/repository@revision:file.gguf``,
            ``owner/repository:Q4_K_M``, ``owner/repository``, or the address of a page
            on huggingface.co.

    Returns:
        The reference, or None if the text is none. A name that ends in ``.gguf``
        without a colon is a path on this machine.
    """
    if text.lower().startswith(("https://", "http://")):
        return _parse_page(text)
    match = _REFERENCE.fullmatch(text)
    if match is None or match["repo"].lower().endswith(".gguf"):
        return None
    return _checked(match["repo"], match["path"], match["revision"])


def _parse_page(address: str) -> HubReference | None:
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    match = _PAGE.fullmatch(parts.path)
    if parts.netloc.lower() not in _HUB_HOSTS or match is None:
        return None
    path = unquote(match["path"]) if match["path"] else None
    # A page of files that shows one of them names it so.
    opened = parse_qs(parts.query).get("show_file_info")
    if opened:
        path = opened[0]
    revision = unquote(match["revision"]) if match["revision"] else None
    return _checked(match["repo"], path, None if revision == "main" else revision)


def _checked(repo: str, path: str | None, revision: str | None) -> HubReference | None:
    steps = (path or "").split("/")
    if path is not None and ("" in steps or ".." in steps or "." in steps):
        return None
    return HubReference(repo, path, revision)


def quantization_label(path: str) -> str | None:
    """Return the quantization that a file's name tells, or its folder's name.

    Args:
        path: The file's path in its repository.

    Returns:
        The label in capitals ("IQ4_XS", "UD-Q4_K_XL", "F16"), or None.
    """
    for part in reversed(path.split("/")):
        found = _QUANTIZATION.findall(part)
        if found:
            label: str = found[-1].upper()
            return label.replace("FP16", "F16").replace("FP32", "F32")
    return None


def shard_names(path: str) -> tuple[str, ...]:
    """Return the paths of all shards of a model, in order; of one file, just itself.

    Args:
        path: The path of the file, or of any of its shards.
    """
    match = _SHARD.fullmatch(path)
    if match is None:
        return (path,)
    stem, count, ending = match["stem"], match["count"], path[-5:]
    return tuple(
        f"{stem}-{number:05}-of-{count}{ending}" for number in range(1, int(count) + 1)
    )


def is_gguf(name: str) -> bool:
    """Whether a file's name ends as one of GGUF."""
    return name.lower().endswith(".gguf")


def is_model_name(name: str) -> bool:
    """Whether it may be a language model: no projector, no importance matrix."""
    small = name.lower()
    return is_gguf(name) and "mmproj" not in small and "imatrix" not in small


def model_files(files: Iterable[RepoFile]) -> list[ModelFile]:
    """Return the models among a repository's files, the smallest first.

    Shards are one model; a set with a shard or a size missing is left out, and so is
    what is no language model: vision projectors and importance matrices.
    """
    groups: dict[tuple[str, int], list[RepoFile]] = defaultdict(list)
    for file in files:
        if not is_model_name(file.path.rpartition("/")[2]):
            continue
        match = _SHARD.fullmatch(file.path)
        key = (match["stem"], int(match["count"])) if match else (file.path, 1)
        groups[key].append(file)
    models = []
    for (_, count), parts in groups.items():
        sizes = [part.size for part in parts if part.size is not None]
        names = {part.path for part in parts}
        if len(sizes) == count and names == set(shard_names(parts[0].path)):
            paths = tuple(sorted(part.path for part in parts))
            models.append(ModelFile(quantization_label(paths[0]), paths, sum(sizes)))
    return sorted(models, key=lambda model: (model.size, model.paths))


def choose_model(repo: str, models: Sequence[ModelFile], wanted: str | None) -> str:
    """Return the path of the file (of the first shard) that is meant.

    Args:
        repo: The repository, for messages.
        models: Its models.
        wanted: A quantization in any case, or None for Q4_K_M or the only one there
            is. "Q4_K_M" also finds "UD-Q4_K_M" where the plain one is not there.

    Raises:
        ModelError: There is none, or there are several; says which ones.
    """
    if not models:
        raise ModelError(f"{repo}: the repository holds no GGUF model.")
    label = (wanted or USUAL_QUANTIZATION).strip().upper()
    for name in (label, f"UD-{label}"):
        found = [model for model in models if model.label == name]
        if len(found) == 1:
            return found[0].paths[0]
        if found:
            paths = [model.paths[0] for model in found]
            raise ModelError(
                f"{repo}: {len(found)} models are {name}: {shown_names(paths)}. Name "
                f"the file, as in '{repo}:{printable(paths[0])}'."
            )
    if wanted is None and len(models) == 1:
        return models[0].paths[0]
    for model in models:  # ".gguf" was left out
        if wanted and f"{wanted}.gguf".lower() == model.paths[0].lower():
            return model.paths[0]
    known = shown_names([model.label or model.paths[0] for model in models])
    missing = f"no file is {label}" if wanted else "it is not said which one"
    raise ModelError(f"{repo}: {missing}; the repository has {known}.")


def shown_names(names: Sequence[str]) -> str:
    """Return names that others chose as a list for people."""
    shown = [printable(name) for name in names[:_MOST_NAMES]]
    return ", ".join(shown + ["…"] * (len(names) > _MOST_NAMES))


def nearest_names(wanted: str, names: Iterable[str], most: int = 4) -> list[str]:
    """Return the names most like one that does not exist, the likest first."""
    plain = {name.lower(): name for name in islice(names, _MOST_COMPARED)}
    found = get_close_matches(wanted.lower(), plain, n=most, cutoff=0.5)
    return [plain[name] for name in found]
