"""Panels for notebooks: start and stop a server, chat with it, watch the cards."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamatelemetry.widgets._images import image_part
    from llamatelemetry.widgets.chat_panel import ChatPanel
    from llamatelemetry.widgets.dashboard import Dashboard
    from llamatelemetry.widgets.server_panel import ServerPanel
    from llamatelemetry.widgets.vram_panel import VRAMPanel

__all__ = ["ChatPanel", "Dashboard", "ServerPanel", "VRAMPanel", "image_part"]

_HOMES = {
    "ChatPanel": "chat_panel",
    "Dashboard": "dashboard",
    "ServerPanel": "server_panel",
    "VRAMPanel": "vram_panel",
    "image_part": "_images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
