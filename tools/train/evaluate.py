"""Held-out perplexity and expert loads of checkpoints, and samples.

Every held-out story is scored by itself after <|endoftext|>, up to and with
its closing <|endoftext|>. Stories longer than the context are scored in
windows that overlap by half; only the part not yet scored counts. Weights are
rounded to bfloat16 as in the exported model, the arithmetic is float32.

Writes one JSON object: per name of a checkpoint its tokens of training,
perplexity per token, bits per byte and tokens_per_expert [layers, experts].
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from export import load_checkpoint
from prepare import END_ID

CONTEXT = 512  # tokens; the longest sequence seen in training
PROMPTS = ("Once upon a time,", "One day, a little fox",
           "Tom and Lily were playing in the park.")


def windows(story: torch.Tensor):
    """Yields (ids, first): targets ids[first:] are scored in this window."""
    last = len(story) - 1
    scored = 1  # the leading <|endoftext|> is given
    while scored <= last:
        begin = 0 if scored == 1 else scored - CONTEXT // 2
        end = min(begin + CONTEXT + 1, last + 1)
        yield story[begin:end], scored - begin
        scored = end


def parallel(function, items: list) -> list:
    """Results in order; one thread per core, each with one core. Stories are
    too short for threads inside an operator to help."""
    with ThreadPoolExecutor(
            len(os.sched_getaffinity(0)),
            initializer=lambda: torch.set_num_threads(1)) as pool:
        return list(pool.map(function, items))


@torch.no_grad()
def score(model, story: np.ndarray):
    """Nats, number of scored tokens, loads [layers, experts]."""
    story = torch.from_numpy(np.append(story, END_ID).astype(np.int64))
    nats, count, loads = 0.0, 0, 0
    for ids, first in windows(story):
        x, load, _ = model.hidden_states(ids[None, :-1])
        logits = F.linear(x[0, first - 1:], model.embedding)
        nats += F.cross_entropy(logits.double(), ids[first:],
                                reduction="sum").item()
        count += len(ids) - first
        loads = loads + load
    return nats, count, loads


def held_out(model, data: dict) -> dict:
    stories = np.split(data["ids"], data["starts"][1:])
    scores = parallel(lambda story: score(model, story), stories)
    nats = sum(s[0] for s in scores)
    count = sum(s[1] for s in scores)
    loads = sum(s[2] for s in scores)
    num_bytes = int(data["bytes"].sum())
    return dict(stories=len(stories), scored_tokens=count, bytes=num_bytes,
                perplexity=float(np.exp(nats / count)),
                nats_per_token=nats / count,
                bits_per_byte=nats / np.log(2) / num_bytes,
                tokens_per_expert=loads.tolist())


@torch.no_grad()
def greedy(model, ids: list, max_new: int) -> list:
    """Continues ids with the likeliest tokens until <|endoftext|>."""
    for _ in range(max_new):
        logits = model(torch.tensor([ids[-CONTEXT:]]))[0, -1]
        ids = ids + [int(logits.argmax())]
        if ids[-1] == END_ID:
            break
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples-of", default="",
                        help="name of the checkpoint to sample from")
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=PATH")
    args = parser.parse_args()

    with np.load(args.work / "valid.npz") as data:
        valid = dict(data)
    results = {}
    for item in args.checkpoints:
        name, path = item.split("=", 1)
        model, progress = load_checkpoint(Path(path))
        model.load_state_dict({k: v.to(torch.bfloat16).float()
                               for k, v in model.state_dict().items()})
        result = held_out(model, valid)
        result["trained_tokens"] = progress["tokens"]
        result["trained_seconds"] = progress["seconds"]
        result["parameters"] = model.num_parameters()
        if name == args.samples_of:
            result["samples"] = samples(model, args.work)
        results[name] = result
        print(f"{name}: {progress['tokens']} tokens of training, perplexity "
              f"{result['perplexity']:.3f}, "
              f"{result['bits_per_byte']:.4f} bits per byte", flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


def samples(model, work: Path) -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))

    def tell(prompt: str) -> str:
        ids = tokenizer.encode(prompt).ids
        return tokenizer.decode(greedy(model, ids, 300),
                                skip_special_tokens=True)

    return parallel(tell, PROMPTS)


if __name__ == "__main__":
    main()
