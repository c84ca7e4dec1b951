"""OpenTelemetry's names, units and buckets as plain data. Pure.

Three sources, all in development when they were read:

* GenAI: `CONVENTIONS_VERSION`, the last state that was found in which spans and
  metrics belong together and the metrics have the names that dashboards know. The
  repository has no release. Its drafts after that rename the metrics of inference
  (``gen_ai.client.operation.duration`` to ``gen_ai.client.inference.duration``) and put
  counters in the place of ``gen_ai.client.token.usage``.
* Hardware: ``docs/hardware`` of open-telemetry/semantic-conventions 1.44.0.
* llama-server's own ``/metrics``, for which there is no convention: ``llamacpp:`` is
  ``llamacpp.`` here, and counters lose their ``_total``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CONVENTIONS_VERSION"]

CONVENTIONS_VERSION = "1.42.0-dev (004902b8cb70aa5ae6ca4ae07132b7daabcd3e10)"
"""The GenAI conventions that are kept: the version that their schema says, and the
commit of open-telemetry/semantic-conventions-genai that was read."""

GEN_AI_SCHEMA_URL = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"
HARDWARE_SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

PROVIDER = "llama_cpp"
"""``gen_ai.provider.name``; none of the conventions' own names is llama.cpp's."""

Kind = Literal["histogram", "gauge", "counter", "up_down_counter"]


@dataclass(frozen=True, slots=True)
class Instrument:
    """A metric as a convention describes it.

    Attributes:
        name: Its name.
        kind: What kind of instrument it is.
        unit: Its unit by UCUM.
        description: What it is.
        buckets: The upper bounds of a histogram's buckets.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    buckets: tuple[float, ...] | None = None


# fmt: off
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304,
           16777216, 67108864)
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48,
            40.96, 81.92)
_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
                  2.5)
# fmt: on

TOKEN_USAGE = Instrument(
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    "Number of input and output tokens used.",
    _TOKENS,
)
OPERATION_DURATION = Instrument(
    "gen_ai.client.operation.duration",
    "histogram",
    "s",
    "GenAI operation duration.",
    _SECONDS,
)
TIME_TO_FIRST_CHUNK = Instrument(
    "gen_ai.client.operation.time_to_first_chunk",
    "histogram",
    "s",
    "Time to receive the first chunk, measured from when the client issues the "
    "generation request to when the first chunk is received in the response stream.",
    _SECONDS,
)
TIME_PER_OUTPUT_CHUNK = Instrument(
    "gen_ai.client.operation.time_per_output_chunk",
    "histogram",
    "s",
    "Time per output chunk, recorded for each chunk received after the first one, "
    "measured as the time elapsed from the end of the previous chunk to the end of the "
    "current chunk.",
    _SECONDS,
)
TIME_PER_OUTPUT_TOKEN = Instrument(
    "gen_ai.server.time_per_output_token",
    "histogram",
    "s",
    "Time per output token generated after the first token for successful responses.",
    _TOKEN_SECONDS,
)
REQUEST_INSTRUMENTS = (
    TOKEN_USAGE,
    OPERATION_DURATION,
    TIME_TO_FIRST_CHUNK,
    TIME_PER_OUTPUT_CHUNK,
    TIME_PER_OUTPUT_TOKEN,
)
"""Recorded once a request is over. The conventions' other server metrics are left out:
they count the wait for a slot, of which llama-server's timings do not tell."""

MEMORY_USAGE = Instrument(
    "hw.gpu.memory.usage", "up_down_counter", "By", "GPU memory used."
)
MEMORY_LIMIT = Instrument(
    "hw.gpu.memory.limit", "up_down_counter", "By", "Size of the GPU memory."
)
UTILIZATION = Instrument(
    "hw.gpu.utilization", "gauge", "1", "Fraction of time spent in a specific task."
)
POWER = Instrument(
    "hw.power", "gauge", "W", "Instantaneous power consumed by the component."
)
TEMPERATURE = Instrument(
    "hw.temperature", "gauge", "Cel", "Temperature in degrees Celsius."
)
CARD_INSTRUMENTS = (MEMORY_USAGE, MEMORY_LIMIT, UTILIZATION, POWER, TEMPERATURE)

SERVER_INSTRUMENTS = {
    # Two have no fixed kind in llama-server: one is a maximum and one a mean.
    "llamacpp:n_tokens_max": Instrument(
        "llamacpp.n_tokens_max",
        "gauge",
        "{token}",
        "Largest sequence seen, prompt and generation together.",
    ),
    "llamacpp:n_busy_slots_per_decode": Instrument(
        "llamacpp.n_busy_slots_per_decode",
        "gauge",
        "{slot}",
        "Mean number of busy slots in a call of llama_decode().",
    ),
    "llamacpp:prompt_tokens_total": Instrument(
        "llamacpp.prompt_tokens",
        "counter",
        "{token}",
        "Prompt tokens processed, without those from the cache.",
    ),
    "llamacpp:prompt_tokens_cached_total": Instrument(
        "llamacpp.prompt_tokens_cached",
        "counter",
        "{token}",
        "Prompt tokens taken from the cache.",
    ),
    "llamacpp:prompt_seconds_total": Instrument(
        "llamacpp.prompt_seconds", "counter", "s", "Time spent on prompts."
    ),
    "llamacpp:tokens_predicted_total": Instrument(
        "llamacpp.tokens_predicted", "counter", "{token}", "Tokens generated."
    ),
    "llamacpp:tokens_predicted_seconds_total": Instrument(
        "llamacpp.tokens_predicted_seconds", "counter", "s", "Time spent on generation."
    ),
    "llamacpp:n_decode_total": Instrument(
        "llamacpp.n_decode", "counter", "{call}", "Calls of llama_decode()."
    ),
    "llamacpp:spec_decode_num_draft_tokens_total": Instrument(
        "llamacpp.spec_decode_num_draft_tokens",
        "counter",
        "{token}",
        "Tokens drafted by speculative decoding.",
    ),
    "llamacpp:spec_decode_num_accepted_tokens_total": Instrument(
        "llamacpp.spec_decode_num_accepted_tokens",
        "counter",
        "{token}",
        "Drafted tokens that the model accepted.",
    ),
    "llamacpp:spec_decode_num_drafts_total": Instrument(
        "llamacpp.spec_decode_num_drafts", "counter", "{draft}", "Drafts made."
    ),
    "llamacpp:prompt_tokens_seconds": Instrument(
        "llamacpp.prompt_tokens_per_second",
        "gauge",
        "{token}/s",
        "Mean speed on prompts since the server was last asked for its metrics.",
    ),
    "llamacpp:predicted_tokens_seconds": Instrument(
        "llamacpp.predicted_tokens_per_second",
        "gauge",
        "{token}/s",
        "Mean speed of generation since the server was last asked for its metrics.",
    ),
    "llamacpp:requests_processing": Instrument(
        "llamacpp.requests_processing",
        "gauge",
        "{request}",
        "Requests that have a slot.",
    ),
    "llamacpp:requests_deferred": Instrument(
        "llamacpp.requests_deferred",
        "gauge",
        "{request}",
        "Requests that wait for a slot.",
    ),
}
"""What llama-server's names in ``/metrics`` are here."""
