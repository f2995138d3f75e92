#!/usr/bin/env python3
"""Trains tiny_llm and writes tiny.bin.

    examples/tiny_llm/corpus.sh > corpus.txt
    python3 examples/tiny_llm/train.py --text corpus.txt --out examples/tiny_llm/tiny.bin

Needs PyTorch 2.0 or newer, and nothing else.  The model is a byte-level transformer of the usual
modern shape: RMSNorm before each block, rotary positions, grouped-query attention, SwiGLU, and one
matrix for both embedding and output.  README.md beside this file describes the file it writes.
"""

import argparse
import math
import struct
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Dims:
    """The numbers in tiny.bin's header."""

    dim: int = 128
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    hidden: int = 288
    vocab: int = 256
    context: int = 512
    rope_theta: int = 10000


def rms_norm(x, weight):
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
    return (x.float() * scale).type_as(x) * weight.type_as(x)


def rope_tables(dims, device):
    """cos and sin of position * theta^(-2i/head_dim), each [context, head_dim / 2]."""
    inverse = dims.rope_theta ** (-torch.arange(0, dims.head_dim, 2).double() / dims.head_dim)
    angle = torch.outer(torch.arange(dims.context).double(), inverse)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x, cos, sin):
    """Turns the pairs (x[2i], x[2i + 1]); x is [batch, heads, tokens, head_dim]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.type_as(x), sin.type_as(x)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def attention(q, k, v):
    """Causal.  Written out: compiled, for heads this small, it beats torch's own on a CPU."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.float().masked_fill(future, -1e9), -1).type_as(v) @ v


class Layer(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.dims = dims
        width, kv_width = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
        self.attention_norm = nn.Parameter(torch.ones(dims.dim))
        self.query = nn.Linear(dims.dim, width, bias=False)
        self.key = nn.Linear(dims.dim, kv_width, bias=False)
        self.value = nn.Linear(dims.dim, kv_width, bias=False)
        self.output = nn.Linear(width, dims.dim, bias=False)
        self.mlp_norm = nn.Parameter(torch.ones(dims.dim))
        self.gate = nn.Linear(dims.dim, dims.hidden, bias=False)
        self.up = nn.Linear(dims.dim, dims.hidden, bias=False)
        self.down = nn.Linear(dims.hidden, dims.dim, bias=False)

    def heads(self, x, count):
        return x.unflatten(-1, (count, self.dims.head_dim)).transpose(1, 2)

    def forward(self, x, cos, sin):
        dims = self.dims
        h = rms_norm(x, self.attention_norm)
        q = rotate(self.heads(self.query(h), dims.heads), cos, sin)
        k = rotate(self.heads(self.key(h), dims.kv_heads), cos, sin)
        v = self.heads(self.value(h), dims.kv_heads)
        # Query head i reads key/value head i / (heads / kv_heads).
        group = dims.heads // dims.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        a = attention(q, k, v)
        x = x + self.output(a.transpose(1, 2).flatten(-2))
        h = rms_norm(x, self.mlp_norm)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class TinyLlm(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.dims = dims
        self.embedding = nn.Parameter(torch.randn(dims.vocab, dims.dim) * 0.02)
        self.layers = nn.ModuleList(Layer(dims) for _ in range(dims.layers))
        self.final_norm = nn.Parameter(torch.ones(dims.dim))
        for name, p in self.named_parameters():
            if p.dim() == 2 and name != "embedding":
                # The two matrices that write into the residual stream start smaller.
                residual = "output" in name or "down" in name
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * dims.layers) if residual else 1.0))

    def forward(self, tokens, cos, sin):
        x = F.embedding(tokens, self.embedding)
        for layer in self.layers:
            x = layer(x, cos[: tokens.shape[1]], sin[: tokens.shape[1]])
        return F.linear(rms_norm(x, self.final_norm), self.embedding)


def tensors_in_file_order(model):
    yield model.embedding
    for layer in model.layers:
        yield layer.attention_norm
        yield from (m.weight for m in (layer.query, layer.key, layer.value, layer.output))
        yield layer.mlp_norm
        yield from (m.weight for m in (layer.gate, layer.up, layer.down))
    yield model.final_norm


def fnv1a(data):
    h = 0x811C9DC5
    for byte in data:
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def save(model, path):
    """Header of 64 bytes, then the weights as fp16; everything little-endian."""
    weights = torch.cat([p.detach().float().cpu().flatten() for p in tensors_in_file_order(model)])
    payload = bytes(weights.half().view(torch.uint8).tolist())
    d = model.dims
    header = struct.pack(
        "<8s14I", b"TINYLLM\0", 1, 64, d.dim, d.layers, d.heads, d.kv_heads, d.head_dim, d.hidden,
        d.vocab, d.context, d.rope_theta, 16, weights.numel(), fnv1a(payload))
    assert len(header) == 64
    with open(path, "wb") as f:
        f.write(header + payload)
    print(f"{path}: {weights.numel()} weights, {64 + len(payload)} bytes")


def schedule(step, args):
    """A short linear start, a plateau, and a linear way down over the last half."""
    left = (args.steps - step) / args.steps
    return min(1.0, (step + 1) / args.warmup, 2 * left)


def orthogonal(g):
    """Near each matrix of a stack, one whose singular values are about 1 (Newton-Schulz)."""
    wide = g if g.shape[-2] <= g.shape[-1] else g.mT
    x = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if wide is g else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: for matrices, worth several times AdamW's steps.

    After Keller Jordan's Muon.  Matrices of one shape are treated as one stack, which is what makes
    it cheap on a CPU.
    """

    def __init__(self, matrices, lr, weight_decay, momentum=0.95):
        super().__init__([{"params": list(matrices)}],
                         {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            stacks = {}
            for p in group["params"]:
                stacks.setdefault(p.shape, []).append(p)
            for shape, params in stacks.items():
                self.step_stack(params, shape, group)

    def step_stack(self, params, shape, group):
        directions = []
        for p in params:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(momentum, group["momentum"]))
        steps = orthogonal(torch.stack(directions))
        size = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        for p, direction in zip(params, steps):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-size)


class Optimizers:
    """Muon for the layers' matrices, AdamW for embedding and norms; one schedule for both."""

    def __init__(self, model, args):
        matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
        others = [p for name, p in model.named_parameters() if "norm" in name or "embed" in name]
        self.args = args
        self.each = (Muon(matrices, args.muon_lr, args.weight_decay),
                     torch.optim.AdamW(others, args.adam_lr, betas=(0.9, 0.98), weight_decay=0.0))
        self.rates = [o.param_groups[0]["lr"] for o in self.each]

    def step(self, step):
        for optimizer, rate in zip(self.each, self.rates):
            optimizer.param_groups[0]["lr"] = rate * schedule(step, self.args)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


class Batches:
    """Random windows of the text: short ones at first, which are cheaper, then full ones."""

    def __init__(self, data, args):
        self.data, self.args = data.to(args.device), args

    def __call__(self, step):
        args = self.args
        width = args.context if step >= args.full_from * args.steps else args.short_context
        start = torch.randint(len(self.data) - width - 1, (args.batch // width, 1))
        window = self.data[(start + torch.arange(width + 1)).to(args.device)].long()
        return window[:, :-1], window[:, 1:]


def loss_of(forward, batch, cos, sin, device):
    x, y = batch
    with torch.autocast(device, torch.bfloat16):
        logits = forward(x, cos, sin)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten())


@torch.no_grad()
def validate(model, data, cos, sin, args):
    """Mean loss in nats per byte over the whole of `data`, in full precision."""
    n = (len(data) - 1) // args.context
    x = data[: n * args.context].view(n, -1).long().to(args.device)
    y = data[1: n * args.context + 1].view(n, -1).long().to(args.device)
    total = 0.0
    for i in range(0, n, 64):
        logits = model(x[i: i + 64], cos, sin)
        total += F.cross_entropy(logits.flatten(0, 1), y[i: i + 64].flatten(),
                                 reduction="sum").item()
    return total / (n * args.context)


@torch.no_grad()
def sample(model, prompt, count, temperature, top_k, cos, sin, args):
    tokens = torch.tensor([list(prompt.encode())], device=args.device)
    for _ in range(count):
        logits = model(tokens[:, -args.context:], cos, sin)[0, -1]
        if temperature > 0:
            best = torch.topk(logits, top_k)
            choice = torch.multinomial(F.softmax(best.values / temperature, -1), 1)
            token = best.indices[choice]
        else:
            token = logits.argmax().view(1)
        tokens = torch.cat((tokens, token.view(1, 1)), 1)
    return bytes(tokens[0].tolist()).decode(errors="replace")


def train(model, data, args):
    held_out = len(data) // 50
    # The held-out text lies in the middle, so that both ends of the book are learnt.
    middle = len(data) // 2
    batches = Batches(torch.cat((data[:middle], data[middle + held_out:])), args)
    validation = data[middle: middle + held_out]
    cos, sin = rope_tables(model.dims, args.device)
    optimizers = Optimizers(model, args)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    begin = time.monotonic()
    for step in range(args.steps):
        loss = loss_of(forward, batches(step), cos, sin, args.device)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(step)
        if (step + 1) % args.report == 0 or step + 1 == args.steps:
            held = validate(model, validation, cos, sin, args)
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.4f}  held out {held:.4f}  "
                  f"{time.monotonic() - begin:.0f} s", flush=True)
            save(model, args.out)
    return cos, sin


PROMPTS = (
    "And it came to pass in those days, that the king sent messengers unto the people, saying, ",
    "Now there was a man in the land of Judah, whose name was Benaiah; and he said unto his son, ",
    "The LORD is my shepherd; ",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="the training text")
    parser.add_argument("--out", required=True, help="the file to write, tiny.bin")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=6144, help="bytes per step")
    parser.add_argument("--context", type=int, default=512, help="bytes per window, in the end")
    parser.add_argument("--short-context", type=int, default=256, help="bytes per window, before")
    parser.add_argument("--full-from", type=float, default=0.85, help="the share of steps before")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=4e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=int, default=250, help="steps between reports")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile: faster, needs a C++ compiler")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    with open(args.text, "rb") as f:
        data = torch.frombuffer(bytearray(f.read()), dtype=torch.uint8)
    model = TinyLlm(Dims()).to(args.device)
    cos, sin = train(model, data, args)
    for p in model.parameters():
        p.data = p.data.half().float()
    for prompt in PROMPTS:
        for temperature in (0.0, 0.7):
            text = sample(model, prompt, 300, temperature, 20, cos, sin, args)
            print(f"--- temperature {temperature}\n{text}")


if __name__ == "__main__":
    main()
