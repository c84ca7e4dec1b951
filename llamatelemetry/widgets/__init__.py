"""Panels for notebooks: start and stop a server, chat with it, watch the cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamatelemetry._lazy import lazy

if TYPE_CHECKING:
    from llamatelemetry.widgets._images import image_part
    from llamatelemetry.widgets.chat_panel import ChatPanel
    from llamatelemetry.widgets.dashboard import Dashboard
    from llamatelemetry.widgets.server_panel import ServerPanel
    from llamatelemetry.widgets.vram_panel import VRAMPanel

__all__ = ["ChatPanel", "Dashboard", "ServerPanel", "VRAMPanel", "image_part"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ChatPanel": "chat_panel",
        "Dashboard": "dashboard",
        "ServerPanel": "server_panel",
        "VRAMPanel": "vram_panel",
        "image_part": "_images",
    },
)
