#!/usr/bin/env python3
"""A day of load, with expert processes that come and go: what that saves.

Replays a day-shaped load (24 steps of an open loop, compressed into minutes)
twice against models/demo with real processes: once with as many expert
processes as the peak needs all day long, once with a controller that reads
`troupe stats --json` every second and starts and stops expert processes by the
busy share of their group, by the rule of Kubernetes' autoscaler. Prints a table
for docs/benchmarks.md: expert-process time and the time per output token of
both. Needs a built build/release.

All processes share this machine. Each expert process is therefore made as slow
as a small machine of its own: it takes --pace-us per routed copy, sleeping after
the real computing. Adding a process then adds service rate, as on a cluster;
what is not real is only the speed of a process. Routers have the addresses of
all processes that may come, and connect to those that are there.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

import measure

# Requests per second by hour, of the peak: an office day with a small evening.
DAY = (
    0.15, 0.12, 0.10, 0.10, 0.10, 0.12, 0.20, 0.35, 0.60, 0.85, 0.95, 1.00,
    0.90, 0.95, 1.00, 0.95, 0.80, 0.65, 0.50, 0.45, 0.45, 0.40, 0.30, 0.20,
)  # fmt: skip
GROUPS = ("0-3", "4-7")
_READY_SECONDS = 20


class ElasticCluster:
    """Gateway and routers, and for each group of experts up to max_replicas
    processes, of which some run."""

    def __init__(self, flags, directory, replicas):
        self._flags = flags
        self._dir = pathlib.Path(directory)
        self._processes = []  # gateway and routers
        self._experts = {}  # (group, replica) -> Popen
        self._draining = []
        self._lock = threading.Lock()
        self.process_seconds = 0.0
        self._accounted = time.monotonic()
        self._log = open(self._dir / "log", "w+", encoding="utf-8")
        self.address = f"unix:{self._dir}/gateway.sock"
        for group in range(len(GROUPS)):
            for _ in range(replicas):
                self.scale_out(group)
        routers = []
        every = [
            self._expert_address(group, replica)
            for group in range(len(GROUPS))
            for replica in range(flags.max_replicas)
        ]
        for i in range(flags.routers):
            address = f"unix:{self._dir}/router-{i}.sock"
            routers.append(address)
            self._start(
                "troupe-router",
                f"router-{i}",
                address,
                f"--experts={','.join(every)}",
                "--threads=1",
            )
        self._start(
            "troupe-gateway", "gateway", self.address, f"--routers={','.join(routers)}"
        )

    def _expert_address(self, group, replica):
        return f"unix:{self._dir}/e{group}.{replica}.sock"

    def _spawn(self, binary, name, address, *arguments):
        return subprocess.Popen(
            [
                measure.BIN / binary,
                self._flags.model_dir,
                f"--name={name}",
                f"--listen={address}",
                "--log-level=warn",
                "--die-with-parent",
                *arguments,
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def _start(self, *arguments):
        self._processes.append(self._spawn(*arguments))

    def _account(self):
        """Adds the time of the processes that have run since the last call; one
        that drains still costs."""
        now = time.monotonic()
        self._draining = [p for p in self._draining if p.poll() is None]
        running = len(self._experts) + len(self._draining)
        self.process_seconds += running * (now - self._accounted)
        self._accounted = now

    def replicas(self, group):
        with self._lock:
            return sum(1 for g, _ in self._experts if g == group)

    def scale_out(self, group):
        with self._lock:
            self._account()
            replica = next(
                i
                for i in range(self._flags.max_replicas)
                if (group, i) not in self._experts
            )
            self._experts[group, replica] = self._spawn(
                "troupe-expert",
                f"e{group}.{replica}",
                self._expert_address(group, replica),
                f"--experts={GROUPS[group]}",
                "--threads=1",
                f"--pace-us-per-copy={self._flags.pace_us}",
            )

    def scale_in(self, group):
        with self._lock:
            self._account()
            replica = max(r for g, r in self._experts if g == group)
            process = self._experts.pop((group, replica))
            process.send_signal(signal.SIGTERM)
            self._draining.append(process)

    def check(self):
        """An expert process that died of itself spoils the run."""
        with self._lock:
            self._account()
            for (group, replica), process in self._experts.items():
                if process.poll() is not None:
                    raise measure.BenchError(f"e{group}.{replica} died")
            for process in self._processes:
                if process.poll() is not None:
                    raise measure.BenchError(f"{process.args[0]} died")

    def stats(self):
        return json.loads(
            measure.run(
                [measure.BIN / "troupe", "stats", "--address", self.address, "--json"]
            )
        )

    def wait_until_ready(self):
        deadline = time.monotonic() + _READY_SECONDS
        said = ""
        while time.monotonic() < deadline:
            self.check()
            try:
                stats = self.stats()
                if len(stats["expert_groups"]) == len(GROUPS):
                    return
                said = f"{len(stats['expert_groups'])} groups"
            except measure.BenchError as error:
                said = str(error)
            time.sleep(0.2)
        self._log.seek(0)
        raise measure.BenchError(f"not ready: {said}\n{self._log.read()[-2000:]}")

    def reset_account(self):
        with self._lock:
            self._account()
            self.process_seconds = 0.0

    def close(self):
        everything = [*self._experts.values(), *self._draining, *self._processes]
        for process in reversed(everything):
            process.send_signal(signal.SIGTERM)
        for process in everything:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()


class Controller(threading.Thread):
    """desired = ceil(running * busy share / target), out at once, in when the
    last `hold` seconds wanted no more."""

    def __init__(self, cluster, flags):
        super().__init__(daemon=True)
        self._cluster = cluster
        self._flags = flags
        self._stop_event = threading.Event()
        self._wanted = {group: [] for group in range(len(GROUPS))}
        self.error = None
        self.events = 0
        self.peak = 0

    def stop(self):
        self._stop_event.set()
        self.join()

    def run(self):
        try:
            while not self._stop_event.wait(1.0):
                self._step()
        except Exception as error:  # the run fails with it
            self.error = error

    def _step(self):
        self._cluster.check()
        now = time.monotonic()
        for seen in self._cluster.stats()["expert_groups"]:
            group = int(seen["processes"][0][1])
            running = self._cluster.replicas(group)
            self.peak = max(self.peak, running)
            # Those that are still starting do no work yet.
            ready = max(1, int(seen["ready"]))
            desired = math.ceil(
                ready * float(seen["busy_share_mean"]) / self._flags.target
            )
            desired = min(max(desired, 1), self._flags.max_replicas)
            wanted = self._wanted[group]
            wanted.append((now, desired))
            while wanted[0][0] < now - self._flags.hold:
                wanted.pop(0)
            if desired > running:
                for _ in range(desired - running):
                    self._cluster.scale_out(group)
                    self.events += 1
            elif max(d for _, d in wanted) < running:
                self._cluster.scale_in(group)
                self.events += 1
                wanted.append((now, running - 1))


def replay(cluster, flags):
    """The day; TPOT in ms of every request, by hour, and how many failed."""
    by_hour = []
    failures = 0
    runs = []
    start = time.monotonic()
    for hour, share in enumerate(DAY):
        time.sleep(max(0, start + hour * flags.hour - time.monotonic()))
        runs.append(
            subprocess.Popen(
                [
                    measure.BIN / "troupe",
                    "bench",
                    f"--address={cluster.address}",
                    f"--rate={share * flags.peak_rate}",
                    f"--duration={flags.hour}",
                    f"--prompt-tokens={flags.prompt_tokens}",
                    f"--max-tokens={flags.max_tokens}",
                    "--warmup=0",
                    f"--seed={flags.seed + hour}",
                    "--timeout=120",
                    "--json",
                    "--samples",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    time.sleep(max(0, start + len(DAY) * flags.hour - time.monotonic()))
    process_seconds = None
    with cluster._lock:
        cluster._account()
        process_seconds = cluster.process_seconds
    for run in runs:
        report = json.loads(run.communicate()[0])
        failures += report["failures"]
        by_hour.append(report["tpot_ms_samples"])
    return by_hour, failures, process_seconds


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def day(flags, replicas, elastic):
    with tempfile.TemporaryDirectory(prefix="troupe-") as directory:
        cluster = ElasticCluster(flags, directory, replicas)
        with contextlib.closing(cluster):
            cluster.wait_until_ready()
            controller = Controller(cluster, flags) if elastic else None
            cluster.reset_account()
            if controller:
                controller.start()
            by_hour, failures, seconds = replay(cluster, flags)
            events = peak = 0
            if controller:
                controller.stop()
                if controller.error:
                    raise controller.error
                events, peak = controller.events, controller.peak
    tpot = [value for hour in by_hour for value in hour]
    return {
        "requests": len(tpot),
        "failures": failures,
        "process_seconds": seconds,
        "tpot_p50": percentile(tpot, 0.5),
        "tpot_p99": percentile(tpot, 0.99),
        "worst_hour_p99": max(percentile(hour, 0.99) for hour in by_hour if hour),
        "events": events,
        "peak_replicas": peak or replicas,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", default=measure.ROOT / "models/demo")
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--max-replicas", type=int, default=4, help="of each group")
    parser.add_argument(
        "--static", type=int, default=0, help="replicas of the static run; 0: the max"
    )
    parser.add_argument("--pace-us", type=float, default=100, help="per routed copy")
    parser.add_argument("--peak-rate", type=float, default=6, help="requests/s")
    parser.add_argument("--hour", type=float, default=6, help="seconds")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.5, help="busy share")
    parser.add_argument("--hold", type=float, default=6, help="seconds before in")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    static = day(flags, flags.static or flags.max_replicas, elastic=False)
    print(static, file=sys.stderr)
    elastic = day(flags, 1, elastic=True)
    print(elastic, file=sys.stderr)
    saved = 1 - elastic["process_seconds"] / static["process_seconds"]
    if flags.json:
        print(json.dumps({"static": static, "elastic": elastic, "saved": saved}))
        return
    machine = measure.describe_machine()
    print(
        f"{machine['cpu']}, {machine['cores']} cores, load before "
        f"{os.getloadavg()[0]:.1f}, commit {machine['commit']}; {len(GROUPS)} groups "
        f"of experts, at most {flags.max_replicas} processes each, {flags.pace_us:g} "
        f"us per copy, {flags.routers} routers, peak {flags.peak_rate:g} requests/s, "
        f"an hour is {flags.hour:g} s.\n"
    )
    print("| | static peak | elastic |\n|---|---|---|")
    for name, text in (
        ("requests", "requests (all answered unless stated)"),
        ("failures", "failed"),
        ("process_seconds", "expert-process time, s"),
        ("tpot_p50", "TPOT p50, ms"),
        ("tpot_p99", "TPOT p99, ms"),
        ("worst_hour_p99", "TPOT p99 of the worst hour, ms"),
        ("peak_replicas", "most processes of a group"),
        ("events", "processes started or stopped"),
    ):
        print(f"| {text} | {static[name]:.4g} | {elastic[name]:.4g} |")
    print(
        f"\nExpert-process time saved: {100 * saved:.1f}%, TPOT p99 "
        f"{elastic['tpot_p99'] / static['tpot_p99']:.2f} times the static one."
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            main()
        except measure.BenchError as error:
            sys.exit(f"elasticity: {error}")
