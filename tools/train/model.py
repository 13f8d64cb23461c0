"""A Mixtral-architecture model, lean enough to be trained on a few CPU cores.

It computes what transformers' MixtralForCausalLM computes (export.py checks
this); matrices that share an input are stored together, so that each is one
matrix product:
  wqkv [(heads + 2 kv_heads) head_dim, hidden]       q, then k, then v
  w13  [experts, 2 width, hidden]                    w1, then w3
"""

import dataclasses

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclasses.dataclass
class Config:
    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 32
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 320
    max_positions: int = 1024
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5


class PermuteRows(torch.autograd.Function):
    """y[i] = x[order[i]]. The inverse is known, so that the gradient is a
    gather as well, which is much faster than adding up rows."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rope_tables(config: Config, length: int, device=None):
    """cos and sin, each [length, head_dim], both halves alike."""
    exponent = torch.arange(0, config.head_dim, 2, device=device).float()
    frequency = config.rope_theta ** (-exponent / config.head_dim)
    angle = torch.outer(torch.arange(length, device=device).float(), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def apply_rope(x, cos, sin):
    """x [batch, heads, length, head_dim], rotated by halves."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention without biases."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        c = config
        self.wqkv = nn.Parameter(torch.empty(
            (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, c.hidden_size))
        self.wo = nn.Parameter(
            torch.empty(c.hidden_size, c.num_heads * c.head_dim))

    def forward(self, x, cos, sin):
        c = self.config
        batch, length, _ = x.shape
        qkv = F.linear(x, self.wqkv).view(batch, length, -1, c.head_dim)
        q, k, v = qkv.transpose(1, 2).split(
            (c.num_heads, c.num_kv_heads, c.num_kv_heads), dim=1)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        group = c.num_heads // c.num_kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(batch, length, -1), self.wo)


class MoeMlp(nn.Module):
    """Softmax over all experts, the top k renormalised, no token dropped."""

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        self.gate = nn.Parameter(torch.empty(c.num_experts, c.hidden_size))
        self.w13 = nn.Parameter(
            torch.empty(c.num_experts, 2 * c.expert_width, c.hidden_size))
        self.w2 = nn.Parameter(
            torch.empty(c.num_experts, c.hidden_size, c.expert_width))

    def forward(self, x):
        """x [num_tokens, hidden] -> y like x, tokens_per_expert [num_experts]
        and the Switch loss N * sum_e f_e P_e of this layer: f_e is the share
        of routed copies that went to e, P_e its mean probability (eq. 4-6 of
        arXiv 2101.03961, with top-k copies in place of the argmax). It is 1
        when balanced."""
        c = self.config
        num_tokens = x.shape[0]
        probs = F.linear(x.float(), self.gate.float()).softmax(dim=-1)
        weights, topk_idx = probs.topk(c.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)

        # Copy j of token t is row t * top_k + j; sort the copies by expert.
        flat_idx = topk_idx.reshape(-1)
        order = flat_idx.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=x.device)
        tokens_per_expert = torch.bincount(flat_idx, minlength=c.num_experts)

        copies = x.unsqueeze(1).expand(-1, c.top_k, -1).reshape(
            num_tokens * c.top_k, -1)
        rows = PermuteRows.apply(copies, order, inverse)
        outputs = []
        # unbind, not w[e]: its gradient is one stack instead of num_experts
        # full-size sums.
        for part, w13, w2 in zip(rows.split(tokens_per_expert.tolist()),
                                 self.w13.unbind(0), self.w2.unbind(0)):
            gate, up = F.linear(part, w13).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, w2))
        y = PermuteRows.apply(torch.cat(outputs), inverse, order)
        y = y.view(num_tokens, c.top_k, -1)
        y = (y * weights.unsqueeze(-1).to(y.dtype)).sum(dim=1)

        share = tokens_per_expert.to(probs.dtype) / (num_tokens * c.top_k)
        balance = c.num_experts * (share * probs.mean(dim=0)).sum()
        return y, tokens_per_expert, balance


class Layer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.norm1 = RmsNorm(config.hidden_size, config.rms_eps)
        self.attention = Attention(config)
        self.norm2 = RmsNorm(config.hidden_size, config.rms_eps)
        self.mlp = MoeMlp(config)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm1(x), cos, sin)
        y, load, balance = self.mlp(self.norm2(x).flatten(0, 1))
        return x + y.view_as(x), load, balance


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(
            Layer(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_eps)

    def init_weights(self, seed: int) -> None:
        """Normal 0.02, also the gate; what feeds the residual stream is
        smaller by sqrt(2 layers), as in GPT-2."""
        generator = torch.Generator().manual_seed(seed)
        residual = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                scale = residual if name.endswith(("wo", "w2")) else 1.0
                parameter.data.normal_(0.0, 0.02 * scale, generator=generator)

    def hidden_states(self, ids):
        """ids [batch, length] -> hidden states [batch, length, hidden],
        tokens per layer and expert [layers, experts], mean Switch loss."""
        cos, sin = rope_tables(self.config, ids.shape[1], ids.device)
        x = F.embedding(ids, self.embedding)
        loads, balances = [], []
        for layer in self.layers:
            x, load, balance = layer(x, cos, sin)
            loads.append(load)
            balances.append(balance)
        return self.norm(x), torch.stack(loads), torch.stack(balances)

    def forward(self, ids):
        """ids [batch, length] -> logits [batch, length, vocab]."""
        return F.linear(self.hidden_states(ids)[0], self.embedding)

    def loss(self, ids, targets):
        """Mean cross entropy in nats, loads [layers, experts], Switch losses
        [layers]. A target of -100 is not scored."""
        x, loads, balances = self.hidden_states(ids)
        logits = F.linear(x, self.embedding).float()
        entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return entropy, loads, balances

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
