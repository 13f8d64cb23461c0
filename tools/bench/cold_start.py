#!/usr/bin/env python3
"""Time from the start of `troupe serve` until it says that it is ready.

    tools/bench/cold_start.py build/release/bin/troupe MODEL_DIR [--runs 5]
        [--cold] [--experts 4] [-- more flags of troupe serve]

Several programs, separated by commas, take turns. --cold drops the weights from
the page cache before each run (needs no privileges). Prints the median, the
least and the largest time in seconds, and the CPU time of all processes.
"""
import argparse
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import time


def drop_from_cache(model_dir):
    for path in pathlib.Path(model_dir).glob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_start(program, args, more):
    if args.cold:
        drop_from_cache(args.model_dir)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    serve = subprocess.Popen(
        [program, "serve", args.model_dir, "--experts", str(args.experts),
         "--listen", "127.0.0.1:0", "--http", "none", *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = []
    seconds = None
    for line in serve.stderr:
        lines.append(line)
        if args.verbose:
            print(f"  {time.monotonic() - start:6.3f} {line}", end="")
        if "| ready:" in line:
            seconds = time.monotonic() - start
            break
    serve.send_signal(signal.SIGINT)
    lines.extend(serve.stderr.readlines())
    serve.wait()
    if seconds is None:
        raise SystemExit(f"{program} did not get ready:\n{''.join(lines)}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (after.ru_utime - before.ru_utime) + (after.ru_stime -
                                                before.ru_stime)
    return seconds, cpu


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("programs")
    parser.add_argument("model_dir")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    args, more = parser.parse_known_args()
    more = [flag for flag in more if flag != "--"]
    programs = args.programs.split(",")
    results = {program: [] for program in programs}
    for _ in range(args.runs):
        for program in programs:
            results[program].append(one_start(program, args, more))
    for program, runs in results.items():
        seconds = [run[0] for run in runs]
        cpu = statistics.median(run[1] for run in runs)
        print(f"{program}: median {statistics.median(seconds):.2f} s "
              f"({min(seconds):.2f} to {max(seconds):.2f}), "
              f"CPU {cpu:.2f} s until the end")


if __name__ == "__main__":
    main()
