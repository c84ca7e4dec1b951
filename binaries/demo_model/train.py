"""Train the demo model on a CPU and write a checkpoint.

The run depends only on the corpus, the seed and ``--steps``: no clock, no network, no
GPU. The checkpoint folder holds ``weights.npz`` (with GGUF tensor names),
``config.json`` and ``tokenizer.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import CORPUS_PATH, load_corpus
from network import DemoNetwork, NetworkConfig
from packing import Batch, DocumentSource, batches, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

PENALTY_WINDOW = 64  # llama-server's default repeat_last_n
ROWS = 4
ROW_LENGTH = 448
WARM_UP_STEPS = 60
FINAL_RATE_SHARE = 0.03

log = logging.getLogger("train")


def penalise_repeats(
    logits: Tensor, tokens: Tensor, places: Tensor, penalty: float
) -> Tensor:
    """Lower the scores of recent tokens as llama-server's ``repeat_penalty`` does.

    Learning under the penalty keeps the answers whole for clients that send one. The
    window may reach into the row's previous document, which only adds variety.
    """
    seen = functional.one_hot(tokens, logits.shape[-1]).to(torch.int16)
    seen = seen.cumsum(1, dtype=torch.int16)
    recent = seen.clone()
    recent[:, PENALTY_WINDOW:] -= seen[:, :-PENALTY_WINDOW]
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(recent[:, :-1][places] > 0, lowered, logits)


def batch_loss(network: DemoNetwork, batch: Batch, penalty: float) -> Tensor:
    """Weighted cross entropy of the answer tokens."""
    length = batch.tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = batch.documents[:, None, :, None] == batch.documents[:, None, None, :]
    hidden = network(batch.tokens, causal & same)
    inside = batch.documents[:, 1:] == batch.documents[:, :-1]
    places = (batch.weights[:, 1:] > 0) & inside
    logits = network.logits(hidden[:, :-1][places])
    if penalty > 1.0:
        logits = penalise_repeats(logits, batch.tokens, places, penalty)
    losses = functional.cross_entropy(
        logits, batch.tokens[:, 1:][places], reduction="none"
    )
    weights = batch.weights[:, 1:][places]
    return (losses * weights).sum() / weights.sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rise linearly, then fall along a cosine to a small share of the peak."""
    warm_up = min(WARM_UP_STEPS, max(1, steps // 4))
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine)


def train(
    corpus: dict[str, Any], steps: int, seed: int, peak_rate: float
) -> tuple[DemoNetwork, Tokenizer]:
    """Train a network from its random start.

    Args:
        corpus: The loaded corpus.
        steps: The number of batches; the learning rate's course depends on it.
        seed: Fixes the start, the dialogues and their order.
        peak_rate: The highest learning rate.

    Returns:
        The trained network and its tokenizer.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(mode=True)
    config = NetworkConfig()
    tokenizer = train_tokenizer(corpus, config.vocabulary_size)
    network = DemoNetwork(config)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.1
    )
    source = batches(DocumentSource(corpus, tokenizer, seed), ROWS, ROW_LENGTH)
    choice = random.Random(seed + 2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_rate)
        penalty = choice.uniform(1.0, 1.2) if choice.random() < 0.5 else 1.0
        loss = batch_loss(network, next(source), penalty)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            log.info("step %d loss %.5f", step, loss.item())
    return network, tokenizer


def save_checkpoint(network: DemoNetwork, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint folder that ``convert.py`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    weights = {name: tensor.detach().numpy() for name, tensor in state.items()}
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)
    config = json.dumps(network.config.to_dict(), indent=1)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--corpus", type=Path, default=CORPUS_PATH)
    parser.add_argument("--out", type=Path, default=Path("checkpoint"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    network, tokenizer = train(
        load_corpus(arguments.corpus),
        arguments.steps,
        arguments.seed,
        arguments.learning_rate,
    )
    log.info("parameters: %d", sum(p.numel() for p in network.parameters()))
    save_checkpoint(network, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
