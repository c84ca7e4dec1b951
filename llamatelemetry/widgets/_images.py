"""Images as the part of a message that a model with eyes takes. Needs no widgets.

llama-server reads PNG, JPEG, GIF and BMP itself and takes nothing else, so other
formats become PNG by way of Pillow. Nothing is fetched: an image is a file, its bytes,
or a PIL image.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatelemetry._units import format_file_size, printable
from llamatelemetry.exceptions import ConfigurationError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MOST_BYTES", "image_part"]

MOST_BYTES = 20_000_000
"""Bytes of an image that are sent; cameras make less, and a slot holds far less."""

_READ_BYTES = 200_000_000  # of a file that is to be made smaller
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)
_SMALLER = "give longest_side=1024 to have it made smaller"


def image_part(
    image: str | os.PathLike[str] | bytes | Image, *, longest_side: int | None = None
) -> dict[str, Any]:
    """Return an image as a part of a message's content.

    Args:
        image: A file's path, its bytes, or a PIL image. Not an address: nothing is
            fetched. PNG, JPEG, GIF and BMP are sent as they are.
        longest_side: Pixels that neither side may have more of; None for the image
            as it is. What is made smaller is also turned as its camera was held.

    Returns:
        ``{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}``

    Raises:
        ConfigurationError: There is no such file, it is no image, it is too large, or
            its format needs Pillow, which is missing.

    Examples:
        >>> from PIL import Image
        >>> from llamatelemetry.widgets import image_part
        >>> part = image_part(Image.new("RGB", (640, 480)), longest_side=320)
        >>> part["image_url"]["url"][:22]
        'data:image/png;base64,'
        >>> content = [{"type": "text", "text": "What is this?"}, part]
    """
    if longest_side is not None and longest_side < 1:
        raise ConfigurationError(f"longest_side={longest_side} leaves no image; 1 up")
    name, content = _content(image)
    kind = _kind(content) if isinstance(content, bytes) else None
    if kind is None or longest_side is not None:
        kind, content = "image/png", _as_png(content, name, longest_side)
    assert isinstance(content, bytes)  # noqa: S101 -- a PIL image has no kind
    if len(content) > MOST_BYTES:
        raise ConfigurationError(
            f"{name} takes {format_file_size(len(content))}, and at most "
            f"{format_file_size(MOST_BYTES)} are sent; {_SMALLER}"
        )
    data = base64.b64encode(content).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def _content(image: object) -> tuple[str, bytes | Image]:
    """Return what an image is called in messages, and its bytes or the PIL image.

    Raises:
        ConfigurationError: It is neither, or cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return "the image", _checked(bytes(image), "the image")
    if isinstance(image, str | os.PathLike):
        name = printable(os.fspath(image))
        return name, _checked(_read(Path(image).expanduser(), name), name)
    # Whoever has such an image has imported this already.
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(image, pillow.Image):
        return "the image", image
    raise ConfigurationError(
        "an image is a path, bytes or a PIL image, not "
        f"{type(image).__name__}; an array becomes one by PIL.Image.fromarray()"
    )


def _read(path: Path, name: str) -> bytes:
    if name.partition(":")[0].lower() in {"http", "https", "data"}:
        raise ConfigurationError(
            f"{name} is an address, and images are not fetched; download it first"
        )
    try:
        size = path.stat().st_size
        if size > _READ_BYTES:
            raise ConfigurationError(
                f"{name} takes {format_file_size(size)}; images have at most "
                f"{format_file_size(_READ_BYTES)}"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"the image {name} cannot be read: {reason}") from None


def _checked(content: bytes, name: str) -> bytes:
    if not content:
        raise ConfigurationError(f"{name} is empty: 0 bytes")
    return content


def _kind(content: bytes) -> str | None:
    """Return the media type of what llama-server reads itself, else None."""
    kinds = (kind for magic, kind in _MAGIC if content.startswith(magic))
    return next(kinds, None)


def _as_png(content: bytes | Image, name: str, longest_side: int | None) -> bytes:
    """Return an image of any format that Pillow reads as a PNG.

    Raises:
        ConfigurationError: Pillow is missing or cannot read it.
    """
    try:
        from PIL import (  # noqa: PLC0415 -- 50 ms, for few images
            Image,
            ImageOps,
            UnidentifiedImageError,
        )
    except ImportError:
        raise ConfigurationError(
            f"{name} is no PNG, JPEG, GIF or BMP, or is to be made smaller, which "
            "needs Pillow: pip install pillow"
        ) from None
    try:
        image = (
            Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
        )
        if longest_side is not None:
            image.draft("RGB", (longest_side, longest_side))  # JPEG reads less then
        turned = ImageOps.exif_transpose(image)
        if longest_side is not None:
            turned.thumbnail((longest_side, longest_side))
        written = io.BytesIO()
        _without_alpha(turned).save(written, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # No reason of Pillow's: it names an object in memory.
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise ConfigurationError(
            f"{name} is no image that can be read{reason}"
        ) from None
    return written.getvalue()


def _without_alpha(image: Image) -> Image:
    """Return an image on white ground: servers drop what is transparent, to black."""
    if not image.has_transparency_data:
        return image if image.mode in {"L", "RGB"} else image.convert("RGB")
    from PIL import Image as Pillow  # noqa: PLC0415 -- as above

    ground = Pillow.new("RGBA", image.size, "white")
    return Pillow.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
