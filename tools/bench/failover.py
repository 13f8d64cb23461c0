#!/usr/bin/env python3
"""The longest gap between two pieces of a stream around a fault of an expert
process, while another replica is there.

    tools/bench/failover.py models/demo [--runs 20] [--fault kill|stop]

Each run streams one text and strikes one of two replicas in the middle of it.
The text must be that of an undisturbed run. Prints the undisturbed gaps and
those around the fault in milliseconds: median, 99th percentile, longest. Runs of
`--fault control` strike nobody. More flags of the router after `--`, for example
`-- --no-hedging --no-ejection --hop-timeout-ms 2000`. Needs a built
build/release.
"""

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import measure

_PATIENCE_SECONDS = 120


class Cluster:
    """Two replicas of all experts, a router and a gateway, until closed."""

    def __init__(self, model_dir, router_flags, directory):
        self._model_dir = model_dir
        self._directory = pathlib.Path(directory)
        self._children = []
        self.experts = [None, None]
        for i in range(2):
            self.start_expert(i)
        self._start(
            "router",
            "troupe-router",
            "--threads=1",
            "--experts=" + ",".join(self._address(f"expert{i}") for i in range(2)),
            *router_flags,
        )
        self._start(
            "gateway", "troupe-gateway", f"--routers={self._address('router')}"
        )
        self.address = self._address("gateway")
        self.wait_until_ready()

    def _address(self, name):
        return f"unix:{self._directory}/{name}.sock"

    def _start(self, name, program, *flags):
        with open(self._directory / f"{name}.log", "a", encoding="utf-8") as log:
            child = subprocess.Popen(
                [
                    measure.BIN / program,
                    self._model_dir,
                    f"--listen={self._address(name)}",
                    *flags,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._children.append(child)
        return child

    def start_expert(self, i):
        self.experts[i] = self._start(
            f"expert{i}", "troupe-expert", f"--name=expert{i}", "--threads=1"
        )

    def stats(self):
        command = [measure.BIN / "troupe", "stats", "--address", self.address]
        return measure.json.loads(measure.run([*command, "--json"]))

    def wait_until_ready(self):
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                peers = self.stats()["routers"][0]["peers"]
                if [peer["state"] for peer in peers] == ["ready"] * 2:
                    return
            except (measure.BenchError, LookupError):
                pass
            time.sleep(0.05)
        raise measure.BenchError("the cluster is not ready")

    def close(self):
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.kill()
            child.wait()


def stream(address, max_tokens, at_piece, strike):
    """The text, and the times of its pieces; `strike` is called at one."""
    client = subprocess.Popen(
        [
            measure.BIN / "troupe",
            "generate",
            "--address",
            address,
            f"--max-tokens={max_tokens}",
            "--temperature=1",
            "--seed=1",
            "Once upon a time",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    text = b""
    times = []
    while piece := os.read(client.stdout.fileno(), 1 << 16):
        text += piece
        times.append(time.monotonic())
        if len(times) == at_piece:
            strike()
    if client.wait() != 0:
        raise measure.BenchError("the stream failed")
    return text, times


def gaps_ms(times):
    return [1000 * (b - a) for a, b in zip(times, times[1:])]


def row(name, gaps):
    ordered = sorted(gaps)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return (
        f"| {name} | {len(gaps)} | {statistics.median(gaps):.2f} | {p99:.2f} "
        f"| {ordered[-1]:.2f} |"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument(
        "--fault", choices=("kill", "stop", "control"), default="kill"
    )
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("router_flags", nargs="*", metavar="-- FLAGS")
    flags = parser.parse_args()

    quiet = []
    longest = []
    with tempfile.TemporaryDirectory() as directory:
        cluster = Cluster(flags.model_dir, flags.router_flags, directory)
        try:
            for _ in range(3):  # the first ones teach the router how long it takes
                expected, times = stream(cluster.address, flags.max_tokens, -1, None)
                quiet += gaps_ms(times)
            for run in range(flags.runs):
                victim = run % 2

                def strike():
                    if flags.fault == "kill":
                        cluster.experts[victim].kill()
                    elif flags.fault == "stop":
                        cluster.experts[victim].send_signal(signal.SIGSTOP)

                text, times = stream(
                    cluster.address, flags.max_tokens, flags.max_tokens // 4, strike
                )
                if text != expected:
                    sys.exit(f"failover: run {run}: the text is another one")
                longest.append(max(gaps_ms(times[flags.max_tokens // 4 - 1 :])))
                if flags.fault == "kill":
                    cluster.experts[victim].wait()
                    cluster.start_expert(victim)
                elif flags.fault == "stop":
                    cluster.experts[victim].send_signal(signal.SIGCONT)
                cluster.wait_until_ready()
            failover = cluster.stats()["routers"][0]["failover"]
        finally:
            cluster.close()
    print("| gaps in ms | number | median | p99 | longest |")
    print("|---|---|---|---|---|")
    print(row("undisturbed, each", quiet))
    print(row(f"{flags.fault}, longest of each stream", longest))
    print(f"\n{flags.runs} of {flags.runs} texts are the undisturbed one; {failover}")


if __name__ == "__main__":
    main()
