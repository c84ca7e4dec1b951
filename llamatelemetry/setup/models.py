"""Models: a name becomes verified files on this machine."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from llamatelemetry._demo import DEMO_MODEL, DEMO_VARIABLE, is_demo_mode
from llamatelemetry._progress import FileBar
from llamatelemetry.exceptions import ModelError, SetupWarning
from llamatelemetry.setup._checksums import checked_digest
from llamatelemetry.setup._fetch import LocalModel, ModelFetch, verify
from llamatelemetry.setup._hub import token_finder
from llamatelemetry.setup._names import (
    is_gguf,
    is_model_name,
    nearest_names,
    shard_names,
    shown_names,
)
from llamatelemetry.setup._search import attached_models
from llamatelemetry.setup._wanted import read_wanted
from llamatelemetry.setup.catalog import CatalogModel, find_entry

__all__ = [
    "LocalModel",
    "ensure_model",
    "get_model",
    "local_model",
    "model_notice",
]


def ensure_model(
    model: str | os.PathLike[str] | CatalogModel,
    *,
    sha256: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    projector: bool = False,
    progress: bool = True,
) -> LocalModel:
    """Return a model on this machine, fetched from the Hub if it is not here yet.

    What is attached below /kaggle/input or lies in the Hub's cache is used without any
    connection. Everything from the Hub is compared with its SHA-256: the one given, or
    the catalog's, or the one the Hub states.

    Args:
        model: A name of the catalog ("qwen3-4b"), "owner/repo:file.gguf",
            "owner/repo:Q4_K_M", an address on huggingface.co, the path of a file or
            of a folder with one model, or "demo" for the one that comes with the
            package.
        sha256: The digest it must have; for a model of one file.
        token: The Hub's token. None: ``HF_TOKEN``, the one saved by ``hf auth login``,
            Kaggle's or Colab's secret of the name ``HF_TOKEN``.
        cache_dir: The folder of the cache. None: the Hub's own (``HF_HOME``); on
            Kaggle scratch, if that one lies in /kaggle/working and has no room.
        projector: Fetch the vision projector of the catalog's model too.
        progress: Whether bars are shown.

    Raises:
        ConfigurationError: The name is none; the message has the nearest.
        ModelError: The repository has no such file or quantization; the message has
            those that it has. Or the path's file is no GGUF.
        ChecksumError: The bytes are not the ones they should be.
        GatedModelError: The licence must be accepted on the model's page before.
        DiskSpaceError: There is no room for it; nothing was fetched.
        OfflineError: It is not here, and there is no connection.
        DownloadError: The transfer broke off again and again.

    Examples:
        >>> from llamatelemetry import ensure_model
        >>> model = ensure_model("qwen3-4b", progress=False)
        >>> model.path.suffix, model.verified
        ('.gguf', True)
        >>> ensure_model("model.gguf")
        <LocalModel model.gguf: model.gguf, 1.9 MB>
    """
    find_token = token_finder(token)
    del token  # no traceback shows it
    fetch = ModelFetch(
        cache=Path(cache_dir).expanduser().absolute() if cache_dir else None,
        find_token=find_token,
        shown=progress,
    )
    digest = None if sha256 is None else checked_digest(sha256)
    found = get_model(model, fetch, sha256=digest, projector=projector)
    notice = model_notice(found)
    if notice is not None:
        warnings.warn(notice, SetupWarning, stacklevel=2)
    return found


def get_model(
    model: str | os.PathLike[str] | CatalogModel,
    fetch: ModelFetch,
    *,
    sha256: str | None = None,
    projector: bool = False,
) -> LocalModel:
    """Return a model on this machine; see :func:`ensure_model` for the errors.

    Args:
        model: The model.
        fetch: How it is looked for and fetched.
        sha256: The digest it must have.
        projector: Whether the vision projector is wanted too.
    """
    named = model.id if isinstance(model, CatalogModel) else model
    local = local_model(named, sha256=sha256)
    if local is not None:
        return local
    wanted = read_wanted(os.fspath(named), sha256=sha256, projector=projector)
    return fetch.get(wanted)


def model_notice(model: LocalModel) -> str | None:
    """Return what one should know of a model; None for nothing.

    Args:
        model: The model.

    Examples:
        >>> from llamatelemetry.setup.models import local_model, model_notice
        >>> model_notice(local_model("model.gguf")) is None
        True
    """
    if model.stands_for is not None:
        return (
            f"{DEMO_VARIABLE} is set: the demo model stands in for {model.stands_for}, "
            "on the embedded engine; the figures of memory and context are those of "
            f"{model.stands_for}, the demo model's context is shorter"
        )
    if model.verified:
        return None
    return (
        f"{model.path}: nobody has stated the digest of this file, so it was not "
        "verified; give it as sha256="
    )


def local_model(
    model: str | os.PathLike[str], *, sha256: str | None = None
) -> LocalModel | None:
    """Return the model of a path, or None if the text is no path of a model.

    Args:
        model: The path of a file, or of a folder with one model; "demo"; or a model
            that is here, which is returned as it is.
        sha256: The digest it must have.

    Raises:
        ModelError: There is no such file, or it is no GGUF; or the folder has several
            models, or none.
        ChecksumError: It has not the digest given.

    Examples:
        >>> from llamatelemetry.setup.models import local_model
        >>> local_model("model.gguf")
        <LocalModel model.gguf: model.gguf, 1.9 MB>
        >>> local_model("owner/repo:Q4_K_M") is None
        True
    """
    if isinstance(model, LocalModel) and sha256 in (None, model.sha256):
        return model
    if model == "demo":
        path = DEMO_MODEL
    else:
        path = _attached(model) or _expanded(model)
        if _is_folder(path):
            path = _model_in(path, must=_is_surely_path(model)) or path
        if not _is_file(path):
            if _is_surely_path(model):
                raise ModelError(_no_such_file(path))
            return _stand_in(os.fspath(model)) if is_demo_mode() else None
    from llamatelemetry.gguf.reader import read_header  # noqa: PLC0415 -- files only

    header = read_header(path)
    files = tuple(map(Path, header.shards))
    if sha256 is not None:
        verify(path, sha256, FileBar(path.name, None, shown=False), str(path))
    return LocalModel(
        path.absolute(),
        "demo" if model == "demo" else path.name,
        tuple(file.absolute() for file in files),
        sum(file.stat().st_size for file in files),
        sha256,
    )


def _stand_in(name: str) -> LocalModel | None:
    """Return the demo model in the place of one of the catalog; None for another."""
    entry = find_entry(name)
    if entry is None:
        return None
    return LocalModel(
        DEMO_MODEL,
        "demo",
        (DEMO_MODEL,),
        DEMO_MODEL.stat().st_size,
        stands_for=entry.id,
    )


def _expanded(model: str | os.PathLike[str]) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError:  # no such user
        return Path(model)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or no name at all
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # as above
        return False


def _model_in(folder: Path, *, must: bool) -> Path | None:
    """Return the one model of a folder, the first of its shards; None if it has none.

    Projectors and importance matrices are no models.

    Raises:
        ModelError: It has several; or none, and there must be one.
    """
    try:
        found = sorted(place.name for place in folder.iterdir() if not place.is_dir())
    except OSError as error:
        raise ModelError(
            f"the folder {str(folder)!r} cannot be read: {error.strerror}"
        ) from error
    # Archives made on a Mac hold a hidden twin of each file.
    files = [name for name in found if is_gguf(name) and not name.startswith(".")]
    names = [name for name in files if is_model_name(name)]
    models = sorted({shard_names(name)[0] for name in names})
    if len(models) > 1:
        raise ModelError(
            f"the folder {str(folder)!r} has {len(models)} models; name one of its "
            f"files: {shown_names(models)}"
        )
    if not models and must:
        others = f" of a model, only {shown_names(files)}" if files else ""
        raise ModelError(f"the folder {str(folder)!r} has no GGUF file{others}")
    # Not the first shard's name, which may be missing: the reader says so.
    return folder / names[0] if names else None


def _attached(model: str | os.PathLike[str]) -> Path | None:
    """Return the attached file of this name, if there is one, and none here."""
    name = os.fspath(model)
    if "/" in name or not name.lower().endswith(".gguf") or _is_file(Path(name)):
        return None
    found = [path for path in attached_models() if path.name == name]
    return found[0] if len(found) == 1 else None


def _is_surely_path(model: str | os.PathLike[str]) -> bool:
    return not isinstance(model, str) or model.startswith(("/", "./", "../", "~"))


def _no_such_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no file {str(path)!r}: its folder does not exist"
    models = [place.name for place in folder.glob("*.gguf")]
    near = nearest_names(path.name, models) or sorted(models)[:4]
    beside = f"; its folder has {shown_names(near)}" if near else ""
    return f"there is no file {str(path)!r}{beside}"
