"""What a memory plan assumes, what it could not follow, and what would fail."""

from __future__ import annotations

from llamatelemetry._units import format_file_size, format_memory
from llamatelemetry.gguf._html import printable
from llamatelemetry.gguf._places import Request
from llamatelemetry.gguf._settings import FEW_OUTPUTS_BUILD, has_flag
from llamatelemetry.gguf.estimates import GPU_MARGIN_BYTES, GPU_MARGIN_SHARE

# Arguments that move weights in ways a plan does not follow.
_UNFOLLOWED = (
    "--override-tensor", "-ot", "--model-draft", "-md", "--hf-repo-draft", "-hfd",
    "--spec-type", "--spec-default", "--control-vector", "--override-kv",
    "--no-op-offload", "--lora", "--lora-scaled", "--mmproj", "-mm", "--load-mode",
    "-lm",
    "--no-mmap", "--mlock", "--cache-ram", "-cram", "--embeddings", "--embedding",
    "--pooling", "--rerank", "--reranking",
    # These have fields of their own in ServerConfig, which a plan goes by.
    "--ctx-size", "-c", "--parallel", "-np", "--batch-size", "-b", "--ubatch-size",
    "-ub",
    "--cache-type-k", "-ctk", "--cache-type-v", "-ctv", "--flash-attn", "-fa",
    "--gpu-layers", "--n-gpu-layers", "-ngl", "--tensor-split", "-ts", "--split-mode",
    "-sm", "--main-gpu", "-mg", "--device", "-dev",
)  # fmt: skip


def notes(request: Request) -> list[str]:
    """Return the notes of a plan: first what matters most."""
    return [*_refused(request), *_surprising(request), *_assumed(request)]


def _chosen(told: dict[str, object]) -> list[str]:
    return [note for note, holds in told.items() if holds]


def _refused(request: Request) -> list[str]:
    """What llama.cpp would not start with."""
    shape, settings = request.shape, request.settings
    quantized = settings.value_type.block_size > 1
    return _chosen({
        "llama.cpp refuses a quantized value cache without flash_attn":
            quantized and not settings.flash,
        "llama.cpp refuses two cache types for this model":
            shape.latent and settings.key_type != settings.value_type,
        f"llama.cpp ends with an error where {settings.slots} slots share batches of "
        f"{settings.tokens} tokens unevenly and embeddings are means":
            settings.pooling == "mean" and settings.tokens % settings.slots,
    })  # fmt: skip


def _surprising(request: Request) -> list[str]:
    """What the reader may not have meant."""
    shape, config, settings = request.shape, request.config, request.settings
    cards, trained = request.cards, shape.training_context
    shares = len(config.tensor_split.split(",")) if config.tensor_split else 0
    partly = 0 < config.n_gpu_layers <= shape.layer_count
    return _chosen({
        "n_gpu_layers=0: the cards are not used; n_gpu_layers=99 puts every layer on "
        "them": request.gpus and config.n_gpu_layers == 0,
        f"{settings.cells:,} tokens per slot are more than the {trained:,} the model "
        "was made for": 0 < trained < settings.cells,
        f"tensor_split has {shares} shares for {len(cards)} cards":
            cards and shares and shares != len(cards),
        "the host's weights are what stays mapped of the file, from the first tensor "
        "that stays there to the last": cards and partly and not config.no_mmap,
    })  # fmt: skip


def _with_states(request: Request) -> str:
    count = sum(layer.stateful for layer in request.shape.layers)
    return f", with the states of {count} recurrent layers" if count else ""


def _assumed(request: Request) -> list[str]:
    """What was assumed, and what could not be followed."""
    shape, config, settings = request.shape, request.config, request.settings
    unfollowed = [flag for flag in _UNFOLLOWED if has_flag(config.extra_args, flag)]
    return _chosen({
        f"not followed by the plan: {', '.join(unfollowed)}": unfollowed,
        f"{printable(shape.architecture)} was not compared with llama.cpp: its cache "
        "and compute buffer are estimated as full attention"
        f"{_with_states(request)}": not shape.traits.known,
        "the tensors are not those that a model of this architecture is built from: "
        "its compute buffer is a rough estimate": not request.buildable,
        f"before build {FEW_OUTPUTS_BUILD}, llama.cpp may keep logits of every token "
        "of a batch; planned so": settings.all_outputs,
        "the weights are scaled to a file of "
        f"{format_file_size(request.scaled_to or 0)}": request.scaled_to,
        f"split_mode={config.split_mode!r} is planned like 'layer'":
            config.split_mode in ("row", "tensor") and len(request.cards) > 1,
        "projector and adapters: their weights only, not what they compute":
            config.mmproj_path is not None or config.lora_paths,
        "cards are estimated, a T4 was not measured: "
        f"{format_memory(request.cuda_context)} for CUDA itself, a margin of "
        f"{GPU_MARGIN_SHARE:.0%} of what is needed and "
        f"{format_memory(GPU_MARGIN_BYTES)}": request.cards,
        "cached prompts may take a tenth of the host's memory besides, at most 8 GiB "
        "(cache_ram)":
            config.cache_ram is None and shape.traits.cache,
    })  # fmt: skip
