#!/usr/bin/env python3
"""Writes tiny checkpoints of every model family, and what transformers
computes for them, to tests/goldens; or the same numbers for a given model.

  make_goldens.py                      all fixtures
  make_goldens.py --only olmoe         those whose name contains "olmoe"
  make_goldens.py --verify             compare with what is there, write nothing
  make_goldens.py --model models/demo --out tests/goldens/demo

tests/goldens/README.md describes the files.
"""

import argparse
import copy
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

import checkpoint
import fixtures
import reference

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"

# Nearer ties than this could be broken differently by correct arithmetic in
# another order. A fixture is drawn again until it has none; of a given model
# only the prompts are chosen.
MIN_GREEDY_GAP = 1e-3
MIN_ROUTER_GAP = 1e-3
MIN_ROUTER_GAP_OF_GIVEN_MODEL = 1e-4
# A wrong reading of a checkpoint must move some logit by this much, which is
# far above the tolerance of any test.
MIN_PROBE_EFFECT = 0.05
# A path that soon goes round in a circle would test little.
MIN_DISTINCT_GREEDY_IDS = 16
# --verify allows this much; tests/goldens/README.md says why.
TOLERANCE = 5e-4
# Logits of a given model are stored for this many positions at the end.
NUM_LAST_LOGITS = 8

FIXTURE_PROMPTS = [
    "A small fox & 7 owls met by the old oak.",
    "Mia said: \u201cLook, the caf\u00e9 is open!\u201d They ran in, "
    "out of 3 cold winds.",
]
# Short, middle and long, so that the KV blocks of a prompt are one, a few and
# many. One of each list is used: those with a near tie are passed over.
MODEL_PROMPTS = [
    [
        "Once upon a time, there was a little",
        "One day, Tom found a big red ball in the",
        "The sun was warm and the birds sang. A small rabbit came out and",
        "Anna liked to draw. She drew a house, a tree and a",
        "There was an old boat near the lake.",
        "Sam saw a dark cloud in the sky. He",
    ],
    [
        "Lily was sad because she could not find her cat. She looked under "
        "the bed and behind the door. Then her mom said, \"",
        "Ben and Mia wanted to make a cake for their grandma. They had flour, "
        "milk and three eggs, but no sugar. So they",
        "One morning a bird found a shiny key under a tree. It flew to the "
        "fox and asked, \"Is this your key?\" The fox",
        "\"Can I come with you?\" asked the little dog. The boy smiled and "
        "opened the gate. They walked down the road until",
        "The old man had a garden full of flowers. Every day he gave them "
        "water and sang to them. One day, a girl",
    ],
    [
        "Max was a small blue train. Every day he carried apples from the "
        "farm to the town. He was proud of his work.\n\nOne cold night it "
        "began to snow. The tracks were white and Max could not see the way. "
        "\"Oh no,\" he said. \"What shall I do?\" Then he saw a light. It was "
        "his friend, the",
        "A girl named Zoe had a kite. It was green and yellow with a long "
        "tail.\n\nZoe ran up the hill. The wind was strong and the kite flew "
        "high. But then the string broke! The kite went over the trees and "
        "far away. Zoe began to cry. Her brother came and said, \"Do not cry, "
        "we will",
        "Once there were two frogs who lived in a pond. The big frog was "
        "very loud and the little frog was very quiet.\n\nOne day a heron "
        "came to the pond. It was hungry. The big frog did not see it, but "
        "the little frog did. He jumped up and shouted for the first time. "
        "The big frog",
        "Nina had a box full of buttons. There were round ones, square ones "
        "and one that looked like a star.\n\nHer grandpa came to visit. His "
        "coat was old and a button was missing. \"I can help,\" said Nina. "
        "She opened the box and took out the star. Grandpa",
        "It was the first day of school. Leo had a new bag and new shoes. "
        "He held his dad's hand and did not want to let go.\n\nThe teacher "
        "came to the door. \"Hello, Leo,\" she said. \"We have a rabbit in our "
        "class. Do you want to see it?\" Leo looked at his dad and",
    ],
]


class Unsuitable(Exception):
    """A near tie, an end-of-text token or a weak probe: draw again."""


def _weights_sha256(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(directory.glob("model*.safetensors"))}


def _rounded(value: float) -> float | None:
    """Four digits; None stands for "there is none" (a dense model)."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _stop_ids(directory: Path) -> set[int]:
    ids = set()
    for name in ("config.json", "generation_config.json"):
        if (directory / name).exists():
            value = json.loads((directory / name).read_text()).get(
                "eos_token_id")
            ids |= set(value if isinstance(value, list) else [value])
    return ids - {None}


def _max_abs(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


def prompt_goldens(directory: Path, model: transformers.PreTrainedModel,
                   text: str, num_last: int | None, min_router_gap: float
                   ) -> tuple[dict[str, torch.Tensor], dict]:
    """-> tensors (names without the prompt) and the entry of golden.json."""
    tokenizer = tokenizers.Tokenizer.from_file(
        str(directory / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
    result = reference.forward(model, ids)
    router_gap = min((r.gap() for r in result.routing.values()),
                     default=math.inf)
    if router_gap < min_router_gap:
        raise Unsuitable(f"router gap {router_gap:.2g}")
    path = reference.greedy(model, ids)
    router_gap = min(router_gap, path.router_gap)
    if router_gap < min_router_gap:
        raise Unsuitable(f"router gap {router_gap:.2g}")
    if path.gap < MIN_GREEDY_GAP:
        raise Unsuitable(f"greedy gap {path.gap:.2g}")
    if len(set(path.ids)) < MIN_DISTINCT_GREEDY_IDS:
        raise Unsuitable("the path goes round in a circle")
    if _stop_ids(directory) & set(path.ids) or max(path.ids) >= vocab_size:
        raise Unsuitable("an end-of-text token, or one without text")
    if reference.cached_greedy_ids(model, ids) != path.ids:
        raise ValueError(f"{directory}: generate() takes another path")

    exact = reference.forward_in_float64(directory, ids)
    logits = result.logits if num_last is None else result.logits[-num_last:]
    tensors = {
        "input_ids": torch.tensor(ids, dtype=torch.int32),
        "logits": logits,
        "greedy_ids": torch.tensor(path.ids, dtype=torch.int32),
        "greedy_logprobs": path.logprobs,
    }
    weights_error = 0.0
    for layer, routing in result.routing.items():
        tensors[f"layer{layer}.topk_idx"] = routing.topk_idx.int()
        tensors[f"layer{layer}.topk_weights"] = routing.topk_weights
        other = exact.routing[layer]
        if not torch.equal(routing.topk_idx, other.topk_idx):
            raise Unsuitable("float64 chooses other experts")
        weights_error = max(weights_error, _max_abs(
            routing.topk_weights - other.topk_weights))
    entry = {
        "text": text,
        "greedy_text": tokenizer.decode(path.ids),
        "num_tokens": len(ids),
        "num_distinct_greedy_ids": len(set(path.ids)),
        "logits_std": _rounded(result.logits.std().item()),
        "min_router_gap": _rounded(router_gap),
        "min_greedy_gap": _rounded(path.gap),
        "float32_error_of_logits": _rounded(
            _max_abs(result.logits - exact.logits)),
        "float32_error_of_topk_weights": _rounded(weights_error),
    }
    return tensors, entry


def write_goldens(directory: Path, prompts: list[tuple[dict, dict]],
                  about: dict) -> None:
    tensors = {f"prompt{i}.{name}": tensor.contiguous()
               for i, (named, _) in enumerate(prompts)
               for name, tensor in named.items()}
    save_file(tensors, directory / "golden.safetensors")
    about = {
        "format": 1,
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
        },
        "computed_in": "float32, eager attention, eager experts, no cache",
    } | about | {"prompts": [entry for _, entry in prompts]}
    (directory / "golden.json").write_text(
        json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def check_fused_experts(model: transformers.PreTrainedModel,
                        tensors: fixtures.Tensors) -> None:
    """The fused tensors in memory hold exactly the tensors on disk."""
    names = {"gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
             "down_proj": (("w2",), ("down_proj",))}
    for layer, module in enumerate(model.model.layers):
        experts = getattr(module.mlp, "experts", None)
        if experts is None:
            continue
        mixtral = model.config.model_type == "mixtral"
        block = "block_sparse_moe" if mixtral else "mlp"
        prefix = f"model.layers.{layer}.{block}.experts."
        for fused, (of_mixtral, of_others) in names.items():
            parts = of_mixtral if mixtral else of_others
            for expert, value in enumerate(getattr(experts, fused)):
                stored = torch.cat([tensors[f"{prefix}{expert}.{p}.weight"]
                                    for p in parts])
                if not torch.equal(value, stored.float()):
                    raise ValueError(f"{prefix}{expert} is not {fused}")


def check_saved_again(model: transformers.PreTrainedModel,
                      tensors: fixtures.Tensors) -> None:
    """transformers itself writes the same names and values."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        again = load_file(Path(directory) / "model.safetensors")
    if again.keys() != tensors.keys():
        raise ValueError(f"names differ: {again.keys() ^ tensors.keys()}")
    for name, tensor in tensors.items():
        if not torch.equal(again[name], tensor.float()):
            raise ValueError(f"{name} differs after saving")


def probe_effects(fixture: fixtures.Fixture, tensors: fixtures.Tensors,
                  baseline: list[dict[str, torch.Tensor]]
                  ) -> dict[str, float]:
    """How far each wrong reading moves a logit of some prompt."""
    effects = {}
    for name, probe in fixture.probes.items():
        config, changed = copy.deepcopy(fixture.config), dict(tensors)
        probe(config, changed)
        with tempfile.TemporaryDirectory() as directory:
            checkpoint.write_checkpoint(
                Path(directory), config, changed, 1, config["vocab_size"])
            model = reference.load(Path(directory))
        effect = max(
            _max_abs(reference.forward(model, golden["input_ids"].tolist())
                     .logits - golden["logits"])
            for golden in baseline)
        if effect < MIN_PROBE_EFFECT:
            raise Unsuitable(f"\"{name}\" moves logits by only {effect:.2g}")
        effects[name] = _rounded(effect)
    return effects


def make_fixture(fixture: fixtures.Fixture, out: Path) -> None:
    for seed in itertools.count(1):
        tensors = checkpoint.make_tensors(fixture.config, fixture.dtype, seed)
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary) / fixture.name
            checkpoint.write_checkpoint(
                directory, fixture.config, tensors, fixture.num_shards,
                fixture.tokenizer_size or fixture.config["vocab_size"])
            model = reference.load(directory)
            check_fused_experts(model, tensors)
            try:
                prompts = [prompt_goldens(directory, model, text, None,
                                          MIN_ROUTER_GAP)
                           for text in FIXTURE_PROMPTS]
                effects = probe_effects(
                    fixture, tensors, [named for named, _ in prompts])
            except Unsuitable as reason:
                print(f"{fixture.name}: seed {seed}: {reason}", flush=True)
                continue
            check_saved_again(model, tensors)
            write_goldens(directory, prompts, {
                "seed": seed,
                "probes_max_abs_logit_change": effects,
            })
            target = out / fixture.name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(directory, target)
        size = sum(f.stat().st_size for f in target.iterdir())
        print(f"{fixture.name}: seed {seed}, {size / 1e3:.0f} kB")
        for _, entry in prompts:
            print("   ", {k: v for k, v in entry.items() if "text" not in k})
        print("    weakest probe:", min(effects.items(), key=lambda e: e[1]),
              flush=True)
        return


def make_model_goldens(directory: Path, out: Path) -> None:
    model = reference.load(directory)
    prompts = []
    for choice in MODEL_PROMPTS:
        for text in choice:
            try:
                prompts.append(prompt_goldens(
                    directory, model, text, NUM_LAST_LOGITS,
                    MIN_ROUTER_GAP_OF_GIVEN_MODEL))
            except Unsuitable as reason:
                print(f"passed over: {text!r}: {reason}", flush=True)
                continue
            print(prompts[-1][1], flush=True)
            break
        else:
            raise ValueError("every prompt of a list has a near tie; add some "
                             "to MODEL_PROMPTS")
    out.mkdir(parents=True, exist_ok=True)
    write_goldens(out, prompts, {
        "num_last_logits": NUM_LAST_LOGITS,
        "sha256": _weights_sha256(directory),
    })


def verify(directory: Path, model_directory: Path) -> bool:
    """Computes the goldens of a directory again; says how far they are off."""
    about = json.loads((directory / "golden.json").read_text())
    if about.get("sha256") not in (None, _weights_sha256(model_directory)):
        print(f"{directory.name}: made for other weights")
        return False
    model = reference.load(model_directory)
    stored = load_file(directory / "golden.safetensors")
    worst, same_choice = 0.0, True
    for i, entry in enumerate(about["prompts"]):
        golden = {name.removeprefix(f"prompt{i}."): tensor
                  for name, tensor in stored.items()
                  if name.startswith(f"prompt{i}.")}
        ids = golden["input_ids"].tolist()
        result = reference.forward(model, ids)
        num_logits = len(golden["logits"])
        worst = max(worst, _max_abs(
            result.logits[-num_logits:] - golden["logits"]))
        for layer, routing in result.routing.items():
            same_choice &= torch.equal(
                routing.topk_idx.int(), golden[f"layer{layer}.topk_idx"])
            worst = max(worst, _max_abs(
                routing.topk_weights - golden[f"layer{layer}.topk_weights"]))
        path = reference.greedy(model, ids)
        same_choice &= path.ids == golden["greedy_ids"].tolist()
    ok = same_choice and worst < TOLERANCE
    print(f"{directory.name}: {'ok' if ok else 'DIFFERS'}, largest "
          f"difference {worst:.2g}, choices "
          f"{'the same' if same_choice else 'differ'}", flush=True)
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT",
                        help="fixtures whose name contains TEXT")
    parser.add_argument("--verify", action="store_true",
                        help="compare instead of writing")
    parser.add_argument("--model", type=Path,
                        help="a model directory instead of the fixtures")
    parser.add_argument("--out", type=Path, default=GOLDENS,
                        help="default: tests/goldens")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    if args.model:
        if args.verify:
            return 0 if verify(args.out, args.model) else 1
        make_model_goldens(args.model, args.out)
        return 0
    chosen = [f for f in fixtures.FIXTURES if args.only in f.name]
    if not chosen:
        parser.error(f"no fixture's name contains {args.only!r}")
    if args.verify:
        results = [verify(args.out / f.name, args.out / f.name)
                   for f in chosen]
        return 0 if all(results) else 1
    for fixture in chosen:
        make_fixture(fixture, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
