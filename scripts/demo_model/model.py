"""A LLaMA-architecture network small enough to train on two CPU cores.

Pre-norm decoder with RMSNorm, rotary positions, grouped-query attention, SwiGLU and tied embeddings: exactly what
GGUF engines call `llama`, so that the export needs no custom code. The rotary embedding rotates *adjacent* pairs
of channels (the original Meta layout, which GGUF's `llama` expects), so no weight is permuted on export.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """Shape of the network. Every matrix row length divides by 32, the block size of Q8_0."""

    vocab: int = 6144
    dim: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 704
    context: int = 512
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def rope_tables(cfg: Config) -> tuple[Tensor, Tensor]:
    """Cosine and sine for every position and channel pair: shape (context, head_dim / 2)."""
    freqs = cfg.rope_base ** (-torch.arange(0, cfg.head_dim, 2, dtype=torch.float32) / cfg.head_dim)
    angles = torch.outer(torch.arange(cfg.context, dtype=torch.float32), freqs)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of x (batch, time, heads, head_dim) by the position's angle."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        kv = cfg.kv_heads * cfg.head_dim
        self.attn_norm = nn.RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.q = nn.Linear(cfg.dim, cfg.dim, bias=False)
        self.k = nn.Linear(cfg.dim, kv, bias=False)
        self.v = nn.Linear(cfg.dim, kv, bias=False)
        self.o = nn.Linear(cfg.dim, cfg.dim, bias=False)
        self.ffn_norm = nn.RMSNorm(cfg.dim, eps=cfg.norm_eps)
        self.gate = nn.Linear(cfg.dim, cfg.ffn, bias=False)
        self.up = nn.Linear(cfg.dim, cfg.ffn, bias=False)
        self.down = nn.Linear(cfg.ffn, cfg.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.cfg
        b, t, _ = x.shape
        h = self.attn_norm(x)
        q = rotate(self.q(h).view(b, t, c.heads, c.head_dim), cos, sin).transpose(1, 2)
        k = rotate(self.k(h).view(b, t, c.kv_heads, c.head_dim), cos, sin).transpose(1, 2)
        v = self.v(h).view(b, t, c.kv_heads, c.head_dim).transpose(1, 2)
        rep = c.heads // c.kv_heads
        k, v = k.repeat_interleave(rep, dim=1), v.repeat_interleave(rep, dim=1)
        a = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, t, c.dim))
        h = self.ffn_norm(x)
        out: Tensor = x + self.down(functional.silu(self.gate(h)) * self.up(h))
        return out


class Llama(nn.Module):
    """The whole network; `hidden` stops before the tied output matrix so a caller may score some positions only."""

    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = nn.RMSNorm(cfg.dim, eps=cfg.norm_eps)
        cos, sin = rope_tables(cfg)
        self.register_buffer("cos", cos[:, None, :], persistent=False)
        self.register_buffer("sin", sin[:, None, :], persistent=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        for name, p in self.named_parameters():
            if p.ndim == 2 and "embed" not in name:
                nn.init.normal_(p, std=0.02)
            if name.endswith(("o.weight", "down.weight")):
                nn.init.zeros_(p)  # every layer starts as the identity, which steadies the first steps

    def hidden(self, tokens: Tensor) -> Tensor:
        t = tokens.shape[1]
        x: Tensor = self.embed(tokens)
        cos, sin = self.cos[:t], self.sin[:t]
        for block in self.blocks:
            x = block(x, cos, sin)
        out: Tensor = self.norm(x)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = functional.linear(self.hidden(tokens), self.embed.weight)
        return logits

    def loss(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Mean cross-entropy of the next token where `weights` is set (the answers); other logits are not computed."""
        h = self.hidden(tokens[:, :-1])
        pick = weights[:, 1:] > 0
        logits = functional.linear(h[pick], self.embed.weight)
        return functional.cross_entropy(logits, tokens[:, 1:][pick])

    def count(self) -> int:
        return sum(p.numel() for p in self.parameters())
