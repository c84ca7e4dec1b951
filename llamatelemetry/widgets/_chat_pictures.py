"""Images to go with the next message: chosen, named, taken away again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from llamatelemetry._units import printable
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.widgets._images import image_part
from llamatelemetry.widgets._outbox import Outbox

__all__ = ["Pictures"]

Part = Mapping[str, Any]
_Watch = Callable[[Any, Callable[[Any], object]], None]
_Press = Callable[[Any, Callable[[], object]], None]


class Pictures:
    """Lets the reader choose images; shown only where the model sees them.

    Args:
        toolkit: The module ipywidgets.
        outbox: Where changes go.
        on_change: Calls a function with a widget's new value.
        on_click: Calls a function when a button is clicked.
    """

    def __init__(
        self, toolkit: Any, outbox: Outbox, on_change: _Watch, on_click: _Press
    ) -> None:
        self._w, self._outbox, self._on_change = toolkit, outbox, on_change
        self._chosen: list[tuple[str, Part]] = []
        self._sees_pictures = False
        self._names = toolkit.HTML()
        self._remove = toolkit.Button(
            description="Remove images", tooltip="Send the message without images"
        )
        self._remove.layout.display = "none"
        on_click(self._remove, lambda: self.attach(()))
        self._upload = self._new_upload()
        self.box = toolkit.HBox([self._upload, self._names, self._remove])
        self.box.layout.display = "none"

    def offer(self, *, sees_pictures: bool) -> None:
        """Show the buttons, or not: whether the model sees images.

        Chosen ones can be taken away also where it sees none any more.
        """
        self._sees_pictures = sees_pictures
        self._tell()

    def attach(self, parts: Sequence[Part]) -> None:
        """Have these images, and no others, go with the next message."""
        self._chosen = [
            (f"image {number}", part) for number, part in enumerate(parts, 1)
        ]
        self._tell()

    @property
    def parts(self) -> list[Part]:
        """The images as parts of a message."""
        return [part for _, part in self._chosen]

    def _take(self, value: Any) -> None:
        """Take in what was uploaded, and be ready for the next."""
        files = list(_files(value))
        if not files:
            return
        try:
            self._chosen += [(name, _part(name, content)) for name, content in files]
        finally:
            # ipywidgets 7 cannot be told to forget what was chosen.
            self._outbox.do(self._renew)
            self._tell()

    def _tell(self) -> None:
        names = ", ".join(escape(printable(name)) for name, _ in self._chosen)
        told = f"<span>With the next message: {names}</span>" if names else ""
        self._outbox.set(self._names, value=told)
        self._outbox.set(self._remove.layout, display=None if names else "none")
        shown = self._sees_pictures or names
        self._outbox.set(self.box.layout, display=None if shown else "none")

    def _renew(self) -> None:
        old, self._upload = self._upload, self._new_upload()
        self.box.children = (self._upload, *self.box.children[1:])
        old.close()

    def _new_upload(self) -> Any:
        upload = self._w.FileUpload(
            accept="image/*", multiple=True, description="Add images"
        )
        self._on_change(upload, self._take)
        return upload


def _part(name: str, content: bytes) -> Part:
    """Return an uploaded file as a part of a message.

    Raises:
        ConfigurationError: It is no image; names it, as several may be chosen at once.
    """
    try:
        return image_part(content)
    except ConfigurationError as error:
        raise ConfigurationError(f"{printable(name)}: {error}") from None


def _files(value: Any) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each uploaded file, as ipywidgets 7 and 8 hold them."""
    if isinstance(value, Mapping):
        for name, file in value.items():
            yield str(name), bytes(file["content"])
        return
    for file in value:
        yield str(file["name"]), bytes(file["content"])
