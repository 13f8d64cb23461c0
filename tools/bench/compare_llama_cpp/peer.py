"""One model in llama.cpp: its decode and prefill rates, or its logits.

Runs in the virtual environment, a process per model. The C API through
llama-cpp-python's bindings: llama_decode, then llama_synchronize, with the
logits of only the rows that are needed; the choice of the next token is not
timed. `peer.py --help`.
"""

import argparse
import ctypes
import json
import os
import random
import time

import llama_cpp
import numpy as np

_FLASH_ATTENTION = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}
_CONTEXT_STEP = 256  # what the peer rounds a sequence's context up to


class Model:
    """A loaded model. Contexts are made per run, since their size differs."""

    def __init__(self, flags):
        self.flags = flags
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = flags.repack
        params.load_mode = (
            llama_cpp.LLAMA_LOAD_MODE_MMAP
            if flags.mmap
            else llama_cpp.LLAMA_LOAD_MODE_NONE
        )
        self.model = llama_cpp.llama_model_load_from_file(
            flags.gguf.encode(), params
        )
        if not self.model:
            raise SystemExit(f"{flags.gguf}: llama.cpp cannot load it")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def context(self, num_sequences, tokens_each):
        return Context(self, num_sequences, tokens_each)


class Context:
    """KV cache and scratch memory of some sequences."""

    def __init__(self, model, num_sequences, tokens_each):
        flags = model.flags
        self.vocab_size = model.vocab_size
        each = -(-tokens_each // _CONTEXT_STEP) * _CONTEXT_STEP
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = each * num_sequences
        params.n_seq_max = num_sequences
        params.n_batch = max(flags.ubatch, num_sequences * tokens_each)
        params.n_ubatch = flags.ubatch
        params.n_threads = flags.threads
        params.n_threads_batch = flags.threads
        params.flash_attn_type = _FLASH_ATTENTION[flags.flash_attention]
        params.kv_unified = flags.unified_kv
        params.offload_kqv = False
        params.op_offload = False
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(model.model, params)
        if not self.context:
            raise SystemExit(f"{flags.gguf}: no context of {params.n_ctx} tokens")
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def clear(self):
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, False)

    def step(self, rows):
        """rows: (token, position, sequence, wants logits). Seconds taken."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wants_logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants_logits
        start = time.perf_counter()
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        if status != 0:
            raise SystemExit(f"llama_decode returned {status}")
        return seconds

    def logits(self, row):
        pointer = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))

    def prefill(self, prompt, sequence=0):
        last = len(prompt) - 1
        return self.step(
            [(token, i, sequence, i == last) for i, token in enumerate(prompt)]
        )

    def decode(self, prompts, max_tokens):
        """Greedy continuation of all prompts at once: tokens per second after
        every sequence has its first token."""
        self.clear()
        rows = []
        last_rows = []
        for sequence, prompt in enumerate(prompts):
            for i, token in enumerate(prompt):
                rows.append((token, i, sequence, i + 1 == len(prompt)))
            last_rows.append(len(rows) - 1)
        self.step(rows)
        tokens = [int(np.argmax(self.logits(row))) for row in last_rows]
        seconds = 0.0
        for step in range(max_tokens - 1):
            seconds += self.step(
                [
                    (token, len(prompts[sequence]) + step, sequence, True)
                    for sequence, token in enumerate(tokens)
                ]
            )
            tokens = [
                int(np.argmax(self.logits(row))) for row in range(len(prompts))
            ]
        return len(prompts) * (max_tokens - 1) / seconds


def bench(model, flags):
    rng = random.Random(flags.seed)

    def prompt(length):
        return [rng.randrange(model.vocab_size) for _ in range(length)]

    result = {"threads": flags.threads, "prefill_tokens_per_second": []}
    context = model.context(1, flags.prefill_tokens)
    for run in range(flags.runs + 1):  # the first one warms up
        context.clear()
        seconds = context.prefill(prompt(flags.prefill_tokens))
        if run > 0:
            result["prefill_tokens_per_second"].append(
                flags.prefill_tokens / seconds
            )
    context.close()
    result["decode"] = []
    for concurrency in flags.concurrency:
        context = model.context(concurrency, flags.prompt_tokens + flags.max_tokens)
        prompts = [prompt(flags.prompt_tokens) for _ in range(concurrency)]
        context.decode(prompts, 4)  # warms up
        rates = []
        for _ in range(flags.runs):
            prompts = [prompt(flags.prompt_tokens) for _ in range(concurrency)]
            rates.append(context.decode(prompts, flags.max_tokens))
        context.close()
        result["decode"].append(
            {"concurrency": concurrency, "tokens_per_second": rates}
        )
    return result


def write_logits(model, flags):
    """Logits of every position of one prompt, float32 [tokens, vocabulary]."""
    context = model.context(1, len(flags.tokens))
    context.step([(token, i, 0, True) for i, token in enumerate(flags.tokens)])
    with open(flags.logits, "wb") as file:
        for row in range(len(flags.tokens)):
            file.write(context.logits(row).astype("<f4").tobytes())
    context.close()


def _ids(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument(
        "--flash-attention", choices=_FLASH_ATTENTION, default="auto"
    )
    parser.add_argument("--unified-kv", action="store_true")
    parser.add_argument("--mmap", action="store_true")
    parser.add_argument("--no-repack", dest="repack", action="store_false")
    parser.add_argument("--concurrency", type=_ids, default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=_ids, help="prompt of --logits")
    parser.add_argument("--logits", help="write them to this file; no rates")
    parser.add_argument("--verbose", action="store_true", help="the peer's log")
    flags = parser.parse_args()

    if not flags.verbose:
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = Model(flags)
    if flags.logits:
        write_logits(model, flags)
        return
    result = bench(model, flags)
    result["system"] = llama_cpp.llama_print_system_info().decode()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
