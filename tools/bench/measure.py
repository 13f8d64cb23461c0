"""What the benchmark scripts share: runs of our programs, and their summary.

Rates are tokens per second. A measure is "decode 1" (so many sequences at
once, 16 prompt and 64 output tokens each) or "prefill" (one prompt of 512
tokens). Standard library only.
"""

import contextlib
import json
import os
import pathlib
import platform
import re
import signal
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build/release/bin"
CONCURRENCY = (1, 8, 32)
PROMPT_TOKENS = 16
MAX_TOKENS = 64
PREFILL_TOKENS = 512
MEASURES = tuple(f"decode {n}" for n in CONCURRENCY) + ("prefill",)

SHAPES = {
    # About 1 billion parameters.
    "mixtral": (
        "--family mixtral --hidden 1024 --layers 12 --heads 16 --kv-heads 4 "
        "--experts 8 --expert-width 2816 --top-k 2 --vocab 32000"
    ).split(),
    # That of OLMoE-1B-7B: 6.9 billion.
    "olmoe": (
        "--family olmoe --hidden 2048 --layers 16 --heads 16 --kv-heads 16 "
        "--experts 64 --expert-width 1024 --top-k 8 --vocab 50304"
    ).split(),
    # For trying the tools.
    "tiny": (
        "--family mixtral --hidden 256 --layers 2 --heads 4 --kv-heads 2 "
        "--experts 8 --expert-width 512 --top-k 2 --vocab 4096"
    ).split(),
}

MAX_BUSY = 0.1  # of all processors, before a round
_START_SECONDS = 300
_STOP_SECONDS = 60


class BenchError(Exception):
    """A program failed; the message says which and how."""


def run(command, **options):
    """Its standard output; an error carries the end of what it said."""
    command = [str(part) for part in command]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    if result.returncode != 0:
        said = (result.stderr or result.stdout)[-2000:]
        raise BenchError(f"{' '.join(command)}: status {result.returncode}\n{said}")
    return result.stdout


def make_model(shape, directory):
    """The random checkpoint of that shape, made unless it is there."""
    directory = pathlib.Path(directory)
    if not (directory / "config.json").exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        run([BIN / "troupe", "make-model", directory, *SHAPES[shape]])
    return directory


def rates_of(result):
    """The JSON of one program's bench: {measure: median of its runs}."""
    rates = {
        f"decode {entry['concurrency']}": statistics.median(
            entry["tokens_per_second"]
        )
        for entry in result["decode"]
    }
    rates["prefill"] = statistics.median(result["prefill_tokens_per_second"])
    return rates


def bench_flags(runs):
    return [
        f"--concurrency={','.join(str(n) for n in CONCURRENCY)}",
        f"--prompt-tokens={PROMPT_TOKENS}",
        f"--max-tokens={MAX_TOKENS}",
        f"--prefill-tokens={PREFILL_TOKENS}",
        f"--runs={runs}",
    ]


def engine_rates(model_dir, runs):
    """Our engine in one process."""
    command = [BIN / "troupe-engine-bench", model_dir, "--json", *bench_flags(runs)]
    return rates_of(json.loads(run(command)))


class Cluster:
    """`troupe serve` on a free port of this machine, until closed."""

    def __init__(self, model_dir, num_experts):
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                BIN / "troupe",
                "serve",
                model_dir,
                f"--experts={num_experts}",
                "--listen=127.0.0.1:0",
                "--http=none",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self.address = self._wait_for_address()
        except BaseException:
            self.close()
            raise

    def _said(self):
        self._log.seek(0)
        return self._log.read()

    def _wait_for_address(self):
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            said = self._said()
            ready = re.search(r"^troupe \| ready: gateway on ([^,\s]+)", said, re.M)
            if ready:
                return ready.group(1)
            if self._process.poll() is not None:
                raise BenchError(f"troupe serve ended:\n{said[-2000:]}")
            time.sleep(0.1)
        raise BenchError(f"troupe serve is not ready:\n{self._said()[-2000:]}")

    def close(self):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def bench(self, *flags):
        return json.loads(
            run([BIN / "troupe", "bench", "--address", self.address, "--json", *flags])
        )

    def stats(self):
        return json.loads(
            run([BIN / "troupe", "stats", "--address", self.address, "--json"])
        )

    def rates(self, runs):
        """By the client's clock: decode from the mean time per further token,
        prefill from the mean time to the first one. Also the share of the
        routers' time that the hop took in each, from their counters."""
        rates = {}
        hop_shares = {}
        # A seed for each: the same prompts would come from the prefix cache.
        for seed, name in enumerate(MEASURES):
            before = self.stats()
            if name == "prefill":
                prefill = self.bench(
                    f"--prompt-tokens={PREFILL_TOKENS}",
                    "--max-tokens=1",
                    f"--requests={runs}",
                    "--warmup=1",
                    f"--seed={seed}",
                )
                rates[name] = 1000 * PREFILL_TOKENS / prefill["ttft_ms"]["mean"]
            else:
                n = int(name.split()[1])
                decode = self.bench(
                    f"--concurrency={n}",
                    f"--requests={n * runs}",
                    f"--prompt-tokens={PROMPT_TOKENS}",
                    f"--max-tokens={MAX_TOKENS}",
                    f"--warmup={n}",
                    f"--seed={seed}",
                )
                rates[name] = 1000 * n / decode["tpot_ms"]["mean"]
            hop_shares[name] = hop_share(before, self.stats())
        return rates, hop_shares


def hop_share(before, after):
    """Of the routers' step time between two answers of `troupe stats --json`,
    what is neither their own nor the experts' computing."""

    def grown(key):
        def total(stats):
            return sum(float(router[key]) for router in stats["routers"])

        return total(after) - total(before)

    steps = grown("step_seconds")
    return grown("hop_seconds") / steps if steps > 0 else 0.0


def cluster_rates(model_dir, num_experts, runs):
    """Rates and hop shares, each {measure: number}."""
    with contextlib.closing(Cluster(model_dir, num_experts)) as cluster:
        return cluster.rates(runs)


def wait_until_idle(seconds=30):
    """What other processes take of the processors, once that is little or the
    time is up: a share in [0, 1]. Rounds of a busy machine mean nothing; above
    all threads that spin, as the peer's do, collapse beside another process."""

    def times():
        with open("/proc/stat", encoding="utf-8") as file:
            values = [int(value) for value in file.readline().split()[1:9]]
        return values[3] + values[4], sum(values)  # idle and waiting for disks

    deadline = time.monotonic() + seconds
    while True:
        idle, total = times()
        time.sleep(1)
        new_idle, new_total = times()
        busy = 1 - (new_idle - idle) / max(1, new_total - total)
        if busy <= MAX_BUSY or time.monotonic() > deadline:
            return max(0.0, busy)


def machine_peak():
    """{"threads", "read_gb_s", "gflop_s", "usual_read_gb_s"} of all threads."""
    row = run([BIN / "machine_peak"]).strip().splitlines()[-1].split()
    return {
        "threads": int(row[0]),
        "read_gb_s": float(row[1]),
        "gflop_s": float(row[2]),
        "usual_read_gb_s": float(row[5]),
    }


def describe_machine():
    cpu = platform.processor()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
    if names:
        cpu = names[0]
    with open("/proc/meminfo", encoding="utf-8") as file:
        memory = next(line.split()[1] for line in file if line.startswith("MemTotal"))
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory) / 2**20, 1),
        "kernel": platform.release(),
        "compiler": run(["c++", "--version"]).splitlines()[0],
        "instruction_set": run([BIN / "machine_peak"]).splitlines()[0],
        "commit": commit(),
    }


def commit():
    """Of this tree; "-dirty" when tracked files differ from it."""
    try:
        return run(["git", "describe", "--always", "--dirty"], cwd=ROOT).strip()
    except (BenchError, FileNotFoundError):
        return "unknown"


def spread(values):
    """ "12.3 (11.0 - 14.1)": median, least and most."""
    middle = statistics.median(values)
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def ratios(ours, theirs):
    """Of runs that were taken side by side, in the same round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]
