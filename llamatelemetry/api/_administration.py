"""The client's methods about the server itself: health, models, slots, adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamatelemetry._exchange import Reply
from llamatelemetry.api import _parsing
from llamatelemetry.api._errors import is_loading
from llamatelemetry.api._transport import Transport, require_success
from llamatelemetry.api.responses import LoraAdapter, ModelList, SlotAction


class Administration:
    """What a client asks of and tells the server, beside generation."""

    _transport: Transport

    def health(self) -> dict[str, Any]:
        """Return how the server is: ``{"status": "ok"}``, or "loading".

        Needs no API key. It says only that *some* server answers here.

        Raises:
            ConnectionFailedError: Nothing listens there.

        Example:
            >>> client.health()
            {'status': 'ok'}
        """

        def read(reply: Reply) -> dict[str, Any]:
            if is_loading(reply.status, reply.body):
                return {"status": "loading"}
            require_success(reply, "GET /health")
            return dict(_parsing.parse_with(dict, reply.json()))

        return self._transport.exchange("health", "GET", "/health", read)

    def list_models(self) -> ModelList:
        """Return the models that the server has: one, unless it is a router.

        Example:
            >>> [model.id for model in client.list_models().data]
            ['model']
        """
        return self._transport.call("models", "GET", "/v1/models", _parsing.model_list)

    def get_props(self) -> dict[str, Any]:
        """Return the server's properties: defaults, chat template, slots, build.

        ``default_generation_settings["n_ctx"]`` is the context of one slot.

        Example:
            >>> props = client.get_props()
            >>> props["total_slots"], props["default_generation_settings"]["n_ctx"]
            (2, 512)
        """
        return self._transport.call("props", "GET", "/props", dict)

    def get_slots(self) -> list[dict[str, Any]]:
        """Return what each slot does.

        Raises:
            NotSupportedError: The server was started with ``--no-slots``.

        Example:
            >>> [(slot["id"], slot["is_processing"]) for slot in client.get_slots()]
            [(0, False), (1, False)]
        """
        return self._transport.call("slots", "GET", "/slots", list)

    def metrics(self) -> dict[str, float]:
        """Return the server's Prometheus metrics, name to value.

        Raises:
            NotSupportedError: The server was started without ``--metrics``.

        Example:
            >>> client.metrics()["llamacpp:requests_deferred"]
            0.0
        """

        def read(reply: Reply) -> dict[str, float]:
            require_success(reply, "GET /metrics")
            text = reply.body.decode(errors="replace")
            return _parsing.parse_with(_parsing.prometheus_values, text)

        return self._transport.exchange("metrics", "GET", "/metrics", read)

    def save_slot(self, slot_id: int, filename: str) -> SlotAction:
        """Save a slot's cache to a file in the server's ``--slot-save-path``.

        Args:
            slot_id: The slot.
            filename: A bare file name, without folders.

        Raises:
            NotSupportedError: The server was started without ``--slot-save-path``.

        Example:
            >>> answer = client.completion("The KV cache", 8, id_slot=0)
            >>> client.save_slot(0, "conversation.bin").filename
            'conversation.bin'
        """
        return self._slot_action(slot_id, "save", {"filename": filename})

    def restore_slot(self, slot_id: int, filename: str) -> SlotAction:
        """Load a slot's cache from a file that :meth:`save_slot` wrote.

        Raises:
            NotSupportedError: The server was started without ``--slot-save-path``.

        Args:
            slot_id: The slot.
            filename: A bare file name, without folders.

        Example:
            >>> saved = client.save_slot(0, "conversation.bin")
            >>> client.restore_slot(0, "conversation.bin").tokens == saved.tokens
            True
        """
        return self._slot_action(slot_id, "restore", {"filename": filename})

    def erase_slot(self, slot_id: int) -> SlotAction:
        """Forget a slot's cache.

        Raises:
            NotSupportedError: The server was started without ``--slot-save-path``.

        Args:
            slot_id: The slot.

        Example:
            >>> client.erase_slot(0).action
            'erase'
        """
        return self._slot_action(slot_id, "erase", {})

    def list_lora_adapters(self) -> list[LoraAdapter]:
        """Return the LoRA adapters that the server has loaded, with their scales.

        Example:
            >>> client.list_lora_adapters()  # of a server without --lora
            []
        """
        return self._transport.call(
            "lora", "GET", "/lora-adapters", _parsing.lora_adapters
        )

    def set_lora_adapters(self, scales: Mapping[int, float]) -> None:
        """Set how strongly LoRA adapters are applied from now on.

        Args:
            scales: Adapter id to scale. **Adapters that are not named get 0**: that
                is llama-server's rule.

        Example:
            >>> adapters = client.list_lora_adapters()
            >>> client.set_lora_adapters({adapter.id: 0.5 for adapter in adapters})
        """
        adapters = [{"id": number, "scale": scale} for number, scale in scales.items()]
        self._transport.call("lora", "POST", "/lora-adapters", dict, json=adapters)

    def _slot_action(
        self, slot_id: int, action: str, body: dict[str, str]
    ) -> SlotAction:
        return self._transport.call(
            "slots",
            "POST",
            f"/slots/{slot_id}",
            _parsing.slot_action,
            json=body,
            parameters={"action": action},
        )
