"""Images as parts of a message."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.widgets import _images, image_part


def picture(kind: str, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> bytes:
    """Return the bytes of a picture of a format."""
    written = io.BytesIO()
    Image.new(mode, size, 90 if mode == "L" else "red").save(written, kind)
    return written.getvalue()


def taken_apart(part: dict[str, object]) -> tuple[str, bytes]:
    """Return a part's media type and bytes."""
    assert part["type"] == "image_url"
    address = part["image_url"]
    assert isinstance(address, dict)
    assert address.keys() == {"url"}
    head, _, data = address["url"].partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(data, validate=True)


def opened(part: dict[str, object]) -> Image.Image:
    """Return the image of a part."""
    return Image.open(io.BytesIO(taken_apart(part)[1]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("given", ["bytes", "bytearray", "memoryview", "str", "Path"])
def test_what_servers_read_is_sent_as_it_is(
    kind: str, given: str, tmp_path: Path
) -> None:
    """PNG, JPEG, GIF and BMP are sent byte for byte, from memory or a file."""
    content = picture(kind)
    file = tmp_path / "no name ends in this"
    file.write_bytes(content)
    made = {
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "str": str(file),
        "Path": file,
    }
    part = image_part(made[given])  # type: ignore[arg-type] # more than is promised
    assert taken_apart(part) == (f"image/{kind.lower()}", content)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_other_formats_become_png(kind: str) -> None:
    """What llama-server does not read is sent as a PNG of the same size."""
    part = image_part(picture(kind))
    assert taken_apart(part)[0] == "image/png"
    assert opened(part).size == (8, 6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_a_pil_image_becomes_png(mode: str) -> None:
    """A PIL image of any mode is sent as a PNG that every reader takes."""
    part = image_part(Image.new(mode, (5, 4)))
    assert taken_apart(part)[0] == "image/png"
    assert opened(part).size == (5, 4)
    assert opened(part).mode in {"RGB", "L"}


def test_what_is_transparent_is_white() -> None:
    """What is transparent, and black to readers without transparency, becomes white."""
    part = image_part(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))
    assert opened(part).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_image_is_made_smaller(kind: str) -> None:
    """With a longest side an image keeps its shape within it, and never grows."""
    content = picture(kind, (900, 300))
    assert opened(image_part(content, longest_side=90)).size == (90, 30)
    assert opened(image_part(content, longest_side=2000)).size == (900, 300)


def test_a_photo_is_turned_as_it_was_taken() -> None:
    """A photo whose camera was held upright stands upright when it is made smaller."""
    photo = Image.new("RGB", (40, 20))
    exif = photo.getexif()
    exif[0x0112] = 6
    written = io.BytesIO()
    photo.save(written, "JPEG", exif=exif)
    assert opened(image_part(written.getvalue(), longest_side=20)).size == (10, 20)
    given = Image.open(written)
    assert opened(image_part(given)).size == (20, 40)
    assert ImageOps.exif_transpose(given).size == (20, 40)


def test_a_given_image_is_left_as_it_was() -> None:
    """A PIL image that is made smaller to be sent keeps its own size."""
    given = Image.new("RGB", (100, 50))
    image_part(given, longest_side=10)
    assert given.size == (100, 50)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"no image", "no image that can be read"),
        (b"<svg onload=alert(1)></svg>", "no image that can be read"),
        (picture("WEBP")[:30], "no image that can be read"),
    ],
)
def test_what_is_no_image_is_refused(content: bytes, told: str) -> None:
    """Bytes that are no image, or half of one, are refused in a sentence."""
    with pytest.raises(ConfigurationError, match=told) as caught:
        image_part(content)
    assert "0x" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path that is no file is refused with its name and the reason."""
    with pytest.raises(ConfigurationError, match=r"none\.png.*No such file"):
        image_part(tmp_path / "none.png")
    with pytest.raises(ConfigurationError, match="directory"):
        image_part(tmp_path)
    with pytest.raises(ConfigurationError, match="null"):
        image_part("a\0b")


@pytest.mark.parametrize(
    "address", ["http://a.b/c.png", "HTTPS://a.b", "data:image/png;base64,AA=="]
)
def test_addresses_are_not_fetched(address: str) -> None:
    """An address is refused, with a word on what to do."""
    with pytest.raises(ConfigurationError, match="download it first"):
        image_part(address)


def test_other_things_are_refused() -> None:
    """An array is refused, with a word on how it becomes an image."""
    with pytest.raises(ConfigurationError, match=r"not ndarray.*fromarray"):
        image_part(np.zeros((2, 2, 3)))  # type: ignore[arg-type] # what is tested
    with pytest.raises(ConfigurationError, match="longest_side=0"):
        image_part(picture("PNG"), longest_side=0)


def test_what_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many bytes are refused with both figures; made smaller they may be sent."""
    content = picture("BMP", (3000, 2500))
    assert len(content) > _images.MOST_BYTES
    with pytest.raises(ConfigurationError, match=r"22\.5 MB.*20\.0 MB.*longest_side"):
        image_part(content)
    assert opened(image_part(content, longest_side=100)).size == (100, 83)
    sparse = tmp_path / "sparse.png"
    with sparse.open("wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(ConfigurationError, match=r"sparse\.png takes 300\.0 MB"):
        image_part(sparse, longest_side=100)


def test_without_pillow_plain_formats_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow a PNG is sent, and the rest says what is missing."""
    png, webp = picture("PNG"), picture("WEBP")
    for name in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None)
    assert taken_apart(image_part(png)) == ("image/png", png)
    with pytest.raises(ConfigurationError, match="pip install pillow"):
        image_part(webp)
    with pytest.raises(ConfigurationError, match="pip install pillow"):
        image_part(png, longest_side=4)


def test_neither_widgets_nor_pillow_are_imported(tmp_path: Path) -> None:
    """A PNG is made a part of a message without ipywidgets, matplotlib or Pillow."""
    file = tmp_path / "a.png"
    file.write_bytes(picture("PNG"))
    source = (
        "import sys\n"
        "from llamatelemetry.widgets import image_part\n"
        "image_part(sys.argv[1])\n"
        "for name in ('ipywidgets', 'IPython', 'matplotlib', 'PIL', 'markdown_it'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run(
        [sys.executable, "-c", source, str(file)],
        check=True,
        cwd=Path(__file__).parents[2],
    )
