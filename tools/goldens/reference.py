"""What transformers computes for a checkpoint: logits, routing, greedy path.

All of it in float32 with eager attention and eager experts, on one thread and
without a KV cache, so that nothing but the checkpoint decides the numbers.
"""

import dataclasses
import re
from pathlib import Path

import torch
import transformers
from torch.overrides import TorchFunctionMode

NUM_GREEDY = 64


@dataclasses.dataclass
class LayerRouting:
    router_logits: torch.Tensor  # [num_tokens, num_experts]
    topk_idx: torch.Tensor       # [num_tokens, top_k], ascending expert id
    topk_weights: torch.Tensor   # [num_tokens, top_k], aligned with topk_idx

    def gap(self) -> float:
        """Smallest distance, over the tokens, from the last chosen expert's
        router logit to the best one that was not chosen."""
        top = self.router_logits.sort(dim=-1, descending=True).values
        k = self.topk_idx.shape[-1]
        if k == top.shape[-1]:
            return float("inf")
        return (top[:, k - 1] - top[:, k]).min().item()


@dataclasses.dataclass
class Forward:
    logits: torch.Tensor  # [num_tokens, vocab_size]
    routing: dict[int, LayerRouting]  # by layer, MoE layers only


@dataclasses.dataclass
class Greedy:
    ids: list[int]
    logprobs: torch.Tensor  # [num_greedy]
    gap: float              # smallest top-1 to top-2 logit distance
    router_gap: float       # over prompt and continuation


def load(directory: Path) -> transformers.PreTrainedModel:
    """Loads in float32; fails unless every tensor of the checkpoint was used
    and every parameter of the model was found."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager", output_loading_info=True)
    problems = {key: value for key, value in info.items() if value}
    if problems:
        raise ValueError(f"{directory}: {problems}")
    return model.eval()


@torch.no_grad()
def forward(model: transformers.PreTrainedModel, ids: list[int]) -> Forward:
    """One pass over all of `ids`."""
    routing = {}

    def record(layer: int):
        def hook(module, inputs, outputs):
            router_logits, weights, idx = outputs
            idx, order = idx.sort(dim=-1)
            routing[layer] = LayerRouting(
                router_logits, idx, weights.gather(-1, order))
        return hook

    handles = []
    for name, module in model.named_modules():
        if type(module).__name__.endswith("TopKRouter"):
            layer = int(re.search(r"layers\.(\d+)\.", name)[1])
            handles.append(module.register_forward_hook(record(layer)))
    try:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return Forward(logits, dict(sorted(routing.items())))


def greedy(model: transformers.PreTrainedModel, prompt: list[int]) -> Greedy:
    """Most likely token, NUM_GREEDY times. An end-of-text token does not stop
    it; the caller rejects prompts that reach one."""
    ids = list(prompt)
    for _ in range(NUM_GREEDY):
        ids.append(forward(model, ids).logits[-1].argmax().item())
    whole = forward(model, ids)
    chosen = whole.logits[len(prompt) - 1:-1]
    if chosen.argmax(dim=-1).tolist() != ids[len(prompt):]:
        raise ValueError("one pass and step by step disagree")
    top = chosen.topk(2, dim=-1).values
    logprobs = chosen.double().log_softmax(dim=-1).gather(
        -1, torch.tensor(ids[len(prompt):]).unsqueeze(-1))
    return Greedy(
        ids=ids[len(prompt):],
        logprobs=logprobs.squeeze(-1).float(),
        gap=(top[:, 0] - top[:, 1]).min().item(),
        router_gap=min((r.gap() for r in whole.routing.values()),
                       default=float("inf")))


@torch.no_grad()
def cached_greedy_ids(model: transformers.PreTrainedModel,
                      prompt: list[int]) -> list[int]:
    """The same path as generate() takes it, with a KV cache."""
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
        do_sample=False, max_new_tokens=NUM_GREEDY,
        min_new_tokens=NUM_GREEDY, pad_token_id=0)
    return output[0, len(prompt):].tolist()


class _InFloat64(TorchFunctionMode):
    """Turns every explicit request for float32 into float64, such as those
    inside norms and softmax."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def widen(value):
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(widen, args),
                    **{k: widen(v) for k, v in (kwargs or {}).items()})


def forward_in_float64(directory: Path, ids: list[int]) -> Forward:
    """The same pass with float64 arithmetic (rope frequencies stay rounded to
    float32): what is left of a difference to it is rounding."""
    model = load(directory).double()
    with _InFloat64():
        return forward(model, ids)
