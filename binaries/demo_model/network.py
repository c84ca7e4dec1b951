"""A small llama-architecture network in PyTorch.

The modules carry the tensor names of GGUF (``blk.0.attn_q.weight`` and so on), so a
state dict can be written to a GGUF file without renaming anything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of the network.

    Every row length is a multiple of 32, as Q8_0 and Q4_0 need.
    """

    vocabulary_size: int = 1024
    context_length: int = 1024
    embedding_length: int = 192
    block_count: int = 4
    feed_forward_length: int = 512
    head_count: int = 6
    head_count_kv: int = 2
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_length(self) -> int:
        """The number of values in one attention head."""
        return self.embedding_length // self.head_count

    def to_dict(self) -> dict[str, int | float]:
        """The shape as plain values, for ``config.json``."""
        return asdict(self)


def rotate_pairs(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply rotary positions to neighbouring pairs, as llama.cpp does for ``llama``.

    Hugging Face checkpoints pair the two *halves* of a head instead and have to be
    permuted for GGUF; training with neighbouring pairs makes that unnecessary.
    """
    even, odd = values[..., 0::2], values[..., 1::2]
    return torch.stack(
        (even * cosine - odd * sine, even * sine + odd * cosine), dim=-1
    ).flatten(-2)


class Block(nn.Module):
    """One transformer block: grouped-query attention and a gated feed-forward part."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, head = config.embedding_length, config.head_length
        self._heads, self._heads_kv, self._head_length = (
            config.head_count,
            config.head_count_kv,
            head,
        )
        self.attn_norm = nn.RMSNorm(width, config.norm_epsilon)
        self.attn_q = nn.Linear(width, config.head_count * head, bias=False)
        self.attn_k = nn.Linear(width, config.head_count_kv * head, bias=False)
        self.attn_v = nn.Linear(width, config.head_count_kv * head, bias=False)
        self.attn_output = nn.Linear(config.head_count * head, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, config.norm_epsilon)
        self.ffn_gate = nn.Linear(width, config.feed_forward_length, bias=False)
        self.ffn_up = nn.Linear(width, config.feed_forward_length, bias=False)
        self.ffn_down = nn.Linear(config.feed_forward_length, width, bias=False)

    def forward(
        self, hidden: Tensor, mask: Tensor, cosine: Tensor, sine: Tensor
    ) -> Tensor:
        """Run the block on ``(batch, tokens, width)``."""
        hidden = hidden + self._attention(self.attn_norm(hidden), mask, cosine, sine)
        normed = self.ffn_norm(hidden)
        gated = functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed)
        output: Tensor = hidden + self.ffn_down(gated)
        return output

    def _attention(
        self, normed: Tensor, mask: Tensor, cosine: Tensor, sine: Tensor
    ) -> Tensor:
        batch, tokens, _ = normed.shape

        def heads(values: Tensor, count: int) -> Tensor:
            return values.view(batch, tokens, count, self._head_length).transpose(1, 2)

        query = rotate_pairs(heads(self.attn_q(normed), self._heads), cosine, sine)
        key = rotate_pairs(heads(self.attn_k(normed), self._heads_kv), cosine, sine)
        value = heads(self.attn_v(normed), self._heads_kv)
        repeats = self._heads // self._heads_kv
        key, value = (
            key.repeat_interleave(repeats, dim=1),
            value.repeat_interleave(repeats, dim=1),
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask
        )
        joined = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        output: Tensor = self.attn_output(joined)
        return output


class DemoNetwork(nn.Module):
    """The whole network; the output layer shares the token embedding's weights."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocabulary_size, config.embedding_length)
        self.blk = nn.ModuleList(Block(config) for _ in range(config.block_count))
        self.output_norm = nn.RMSNorm(config.embedding_length, config.norm_epsilon)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Smaller steps into the residual stream keep its size the same
                # at any depth.
                residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(
                    parameter,
                    std=0.02 / ((2 * config.block_count) ** 0.5 if residual else 1.0),
                )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Compute the last hidden states of ``(batch, tokens)``.

        Args:
            tokens: Token numbers.
            mask: True where attention may look.

        Returns:
            Hidden states, ``(batch, tokens, width)``.
        """
        cosine, sine = self._rotations(tokens.shape[1])
        hidden = self.token_embd(tokens)
        for block in self.blk:
            hidden = block(hidden, mask, cosine, sine)
        normed: Tensor = self.output_norm(hidden)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every vocabulary entry as the next token."""
        return hidden @ self.token_embd.weight.T

    def _rotations(self, tokens: int) -> tuple[Tensor, Tensor]:
        head = self.config.head_length
        frequencies = self.config.rope_base ** (
            -torch.arange(0, head, 2, dtype=torch.float32) / head
        )
        angles = torch.outer(torch.arange(tokens, dtype=torch.float32), frequencies)
        return angles.cos(), angles.sin()
