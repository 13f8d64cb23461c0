"""Trains the model from the token ids that prepare.py wrote.

The step size rises for a few steps, stays, and falls to zero in the last part
of the budget (warm-up, stable, decay), so that a run may be given any budget,
in tokens or in minutes of training, and may be stopped and resumed: the state
is in WORK/RUN/last.pt. The last part also uses longer sequences.

On CPUs, each of --workers threads computes the gradient of one micro-batch, or
the update of one parameter, at a time, taken from a common list: with small
matrices this beats threads inside each operator, and a core that is busy with
something else delays nobody.
"""

import argparse
import dataclasses
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from model import Config, Model


class TokenStream:
    """The training text without end: each epoch is all stories, shuffled.
    A position in it is all that a resumed run needs."""

    def __init__(self, path: Path, seed: int):
        with np.load(path) as data:
            self.ids = data["ids"].astype(np.int64)
            self.starts = data["starts"]
        self.seed = seed
        self.epoch, self.shuffled = -1, None

    def _epoch_ids(self, epoch: int) -> np.ndarray:
        if epoch != self.epoch:
            stories = np.split(self.ids, self.starts[1:])
            order = np.random.default_rng(
                (self.seed, epoch)).permutation(len(stories))
            self.shuffled = np.concatenate([stories[i] for i in order])
            self.epoch = epoch
        return self.shuffled

    def read(self, position: int, count: int) -> torch.Tensor:
        pieces = []
        while count > 0:
            epoch, offset = divmod(position, len(self.ids))
            piece = self._epoch_ids(epoch)[offset:offset + count]
            pieces.append(piece)
            position += len(piece)
            count -= len(piece)
        return torch.from_numpy(np.concatenate(pieces))


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest half-orthogonal matrices, roughly: five Newton-Schulz steps
    with the coefficients of Muon (K. Jordan et al., 2024)."""
    wide = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if wide else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if wide else x


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalised update for matrices, scaled to the size
    of an AdamW update (arXiv 2502.16982), so that both share a step size."""

    def __init__(self, params, lr, weight_decay, pool, momentum=0.95):
        super().__init__(params, dict(
            lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.pool = pool
        for p in params:
            self.state[p]["momentum"] = torch.zeros_like(p)

    def step(self):
        for group in self.param_groups:
            largest_first = sorted(group["params"], key=lambda p: -p.numel())
            list(self.pool.map(lambda p: self._update(p, group),
                               largest_first))

    @torch.no_grad()
    def _update(self, p, group):
        momentum = self.state[p]["momentum"]
        momentum.lerp_(p.grad, 1 - group["momentum"])
        update = orthogonalize(p.grad.lerp(momentum, group["momentum"]))
        size = 0.2 * max(p.shape[-2:]) ** 0.5
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * size)


def make_optimizers(model: Model, lr: float, weight_decay: float,
                    pool) -> list:
    """Muon for the matrices of the layers, AdamW for embedding, gates and
    norms. In a short trial at equal time it was ahead of AdamW alone."""
    matrices, tables, norms = [], [], []
    for name, p in model.named_parameters():
        if p.dim() == 1:
            norms.append(p)
        elif name == "embedding" or name.endswith("gate"):
            tables.append(p)
        else:
            matrices.append(p)
    adamw = torch.optim.AdamW(
        [dict(params=tables, weight_decay=weight_decay),
         dict(params=norms, weight_decay=0.0)],
        lr=lr, betas=(0.9, 0.98), fused=True)
    return [adamw, Muon(matrices, lr, weight_decay, pool)]


class GradientWorkers:
    """Computes mean gradients over micro-batches on the threads of a pool."""

    def __init__(self, model: Model, num_workers: int, pool, aux: float):
        self.model = model
        self.num_workers = num_workers
        self.pool = pool
        self.aux = aux
        self.parameters = list(model.parameters())
        self.lock = threading.Lock()

    def _work(self, batches: list):
        """Takes micro-batches until there are none; None if it got none."""
        device = self.parameters[0].device
        gradients, entropies, all_loads = None, 0.0, 0
        while True:
            with self.lock:
                if not batches:
                    break
                inputs, targets = batches.pop()
            with torch.autocast(device.type, torch.bfloat16,
                                enabled=device.type == "cuda"):
                entropy, loads, balances = self.model.loss(inputs, targets)
                # Every layer adds its Switch loss.
                loss = entropy + self.aux * balances.sum()
            fresh = torch.autograd.grad(loss, self.parameters)
            if gradients is None:
                gradients = list(fresh)
            else:
                torch._foreach_add_(gradients, list(fresh))
            entropies += entropy.item()
            all_loads = all_loads + loads
        return gradients and (gradients, entropies, all_loads)

    def run(self, batches: list):
        """Sets .grad; returns the mean cross entropy and loads
        [layers, experts]."""
        count = len(batches)
        results = list(filter(None, self.pool.map(
            self._work, [batches] * self.num_workers)))
        total, entropies, loads = results[0]
        for gradients, entropy, load in results[1:]:
            torch._foreach_add_(total, gradients)
            entropies, loads = entropies + entropy, loads + load
        torch._foreach_div_(total, float(count))
        for p, gradient in zip(self.parameters, total):
            p.grad = gradient
        return entropies / count, loads


def save_atomically(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


@torch.no_grad()
def quick_validation(model: Model, ids: torch.Tensor, length: int) -> float:
    rows = ids[:len(ids) // length * length].view(-1, length)
    losses = [model.loss(r[None, :-1], r[None, 1:])[0].item() for r in rows]
    return sum(losses) / len(losses)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, required=True)
    add("--run", default="main", help="name of this run's folder in WORK")
    add("--max-tokens", type=float, default=20e6, help="budget in tokens")
    add("--minutes", type=float, default=1e9,
        help="budget in minutes of training, whichever ends first")
    add("--aux", type=float, default=0.01, help="factor of the Switch loss")
    add("--lr", type=float, default=4e-3)
    add("--weight-decay", type=float, default=0.1)
    add("--warmup-steps", type=int, default=60)
    add("--decay-from", type=float, default=0.5,
        help="share of the budget after which the step size falls; 1 = never")
    add("--batch-tokens", type=int, default=8192)
    add("--length", type=int, default=256)
    add("--final-length", type=int, default=512)
    add("--micro-tokens", type=int, default=0,
        help="tokens per micro-batch; 0 = 1024 on CPU, all on CUDA")
    add("--workers", type=int, default=0, help="0 = one per CPU core")
    add("--snapshot-at", type=float, nargs="*", default=[],
        help="after so many tokens, keep the weights in at-TOKENS.pt")
    add("--save-seconds", type=float, default=120)
    add("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        workers, micro_tokens = 1, args.micro_tokens or args.batch_tokens
    else:
        workers = args.workers or len(os.sched_getaffinity(0))
        micro_tokens = args.micro_tokens or 1024
        torch.set_num_threads(1)
    pool = ThreadPoolExecutor(
        workers, initializer=lambda: torch.set_num_threads(1))
    folder = args.work / args.run
    folder.mkdir(parents=True, exist_ok=True)

    model = Model(Config())
    model.init_weights(args.seed)
    model.to(device)
    optimizers = make_optimizers(model, args.lr, args.weight_decay, pool)
    progress = dict(step=0, tokens=0, seconds=0.0)
    last = folder / "last.pt"
    if last.exists():
        state = torch.load(last, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        progress = state["progress"]

    def save(path: Path, whole: bool) -> None:
        state = dict(model=model.state_dict(), progress=progress,
                     config=dataclasses.asdict(model.config))
        if whole:
            state["optimizers"] = [o.state_dict() for o in optimizers]
        save_atomically(state, path)

    stream = TokenStream(args.work / "train.npz", args.seed)
    with np.load(args.work / "valid.npz") as data:
        valid = torch.from_numpy(data["ids"][:16384].astype(np.int64))
    valid = valid.to(device)
    gradient_workers = GradientWorkers(model, workers, pool, args.aux)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(f"{model.num_parameters()} parameters, {device}, {workers} workers, "
          f"from {progress}", flush=True)

    saved_at = time.monotonic()
    log = open(folder / "log.jsonl", "a")
    while not stop.is_set():
        started = time.monotonic()
        spent = max(progress["tokens"] / args.max_tokens,
                    progress["seconds"] / (60 * args.minutes))
        if spent >= 1:
            break
        decaying = spent >= args.decay_from
        length = args.final_length if decaying else args.length
        lr = args.lr * min(1.0, (progress["step"] + 1) / args.warmup_steps)
        if decaying:
            lr *= (1 - spent) / (1 - args.decay_from)

        ids = stream.read(progress["tokens"], args.batch_tokens + 1).to(device)
        rows = max(1, micro_tokens // length)
        batches = list(zip(ids[:-1].view(-1, length).split(rows),
                           ids[1:].view(-1, length).split(rows)))
        entropy, loads = gradient_workers.run(batches)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

        seconds = time.monotonic() - started
        before = progress["tokens"]
        progress["step"] += 1
        progress["tokens"] += args.batch_tokens
        progress["seconds"] += seconds
        line = dict(progress, loss=round(entropy, 4), lr=lr,
                    rate=round(args.batch_tokens / seconds),
                    loads=loads.tolist())
        if progress["step"] % 100 == 0:
            line["valid"] = round(
                quick_validation(model, valid, args.final_length), 4)
        log.write(json.dumps(line) + "\n")
        log.flush()
        if progress["step"] % 10 == 0:
            worst = (loads.max(1).values / loads.float().mean(1)).tolist()
            print(f"step {progress['step']} tokens {progress['tokens']} "
                  f"seconds {progress['seconds']:.0f} spent {spent:.3f} "
                  f"loss {entropy:.3f} valid {line.get('valid', '')} "
                  f"rate {line['rate']} max/mean "
                  + " ".join(f"{w:.2f}" for w in worst), flush=True)
        for tokens in args.snapshot_at:
            if before < tokens <= progress["tokens"]:
                save(folder / f"at-{int(tokens)}.pt", whole=False)
        if time.monotonic() - saved_at > args.save_seconds:
            save(last, whole=True)
            saved_at = time.monotonic()
    save(last, whole=True)
    if stop.is_set():
        print("stopped; run again to resume", flush=True)
        raise SystemExit(3)
    print(f"done: {progress}", flush=True)


if __name__ == "__main__":
    main()
