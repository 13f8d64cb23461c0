"""Troupe beside llama.cpp: decode and prefill rates, and their ratios.

Makes a random checkpoint and the same model as GGUF, checks that both programs
compute the same logits from it, then measures in rounds: our engine in one
process, our cluster at the client's API, and the peer, one after the other, the
order reversed in every second round. Everything is kept in --work and used
again. `--resume` adds rounds to those of an earlier call; ours are dropped when
our programs have changed since.
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import random
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import checkpoint  # noqa: E402
import convert  # noqa: E402
import measure  # noqa: E402
import numpy as np  # noqa: E402
import report  # noqa: E402

# Ours and the peer's name of a format. The peer's formats have a float16 scale
# for 32 weights, as ours with --group-size 32.
PEER_FORMAT = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
SHAPE_FORMATS = {"olmoe": ("int8", "int4")}  # 14 GB of bf16 are not measured
PROGRAMS = ("troupe-engine-bench", "troupe-gateway", "troupe-router", "troupe-expert")

# Bound on the median over positions of the relative rms difference of logits.
# bf16: the peer rounds activations to bfloat16, we do not. 8 bit: both round
# weights and activations, in different places. 4 bit: the peer rounds to
# [-8, 7] by the largest weight, we to a symmetric range or with a zero point,
# so the weights themselves differ.
CHECK_TOKENS = 48
CHECK_BOUND = {"f32": 1e-3, "bf16": 0.02, "int8": 0.05, "int4": 0.35}


class Models:
    """The model of one shape in all formats: makes what is not there yet."""

    def __init__(self, work, shape):
        self.shape = shape
        self._base = pathlib.Path(work) / shape

    def _path(self, suffix):
        return self._base.with_name(f"{self._base.name}{suffix}")

    def ours(self, form):
        """Folder of a checkpoint; None when this build cannot quantise."""
        source = measure.make_model(self.shape, self._base)
        if form == "bf16":
            return source
        target = self._path(f"-{form}")
        if not (target / "config.json").exists():
            commands = measure.run([measure.BIN / "troupe", "--help"])
            if "quantize" not in commands:
                return None
            parts = ("experts", "router", "head", "embedding")
            measure.run(
                [
                    measure.BIN / "troupe",
                    "quantize",
                    source,
                    target,
                    "--group-size=32",
                    *(f"--{part}={form}" for part in parts),
                ]
            )
        return target

    def peer(self, form):
        """GGUF file."""
        path = self._path(f"-{PEER_FORMAT[form]}.gguf")
        if path.exists():
            return path
        if form == "bf16":
            convert.write_gguf(self.ours("bf16"), path)
        else:
            convert.quantise_gguf(self.peer("bf16"), path, PEER_FORMAT[form])
        return path


def peer_command(gguf, *flags):
    return [sys.executable, HERE / "peer.py", gguf, *flags]


def peer_rates(gguf, runs):
    result = json.loads(measure.run(peer_command(gguf, *measure.bench_flags(runs))))
    return measure.rates_of(result), result["system"]


def compare_logits(model_dir, gguf, num_tokens=CHECK_TOKENS):
    """How far the two programs are apart on one random prompt."""
    vocab_size = checkpoint.read_config(model_dir)["vocab_size"]
    rng = random.Random(3)
    ids = ",".join(str(rng.randrange(vocab_size)) for _ in range(num_tokens))
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in ("ours", "peer")]
        measure.run(
            [measure.BIN / "troupe-logits", model_dir, files[0], f"--tokens={ids}"]
        )
        measure.run(peer_command(gguf, f"--tokens={ids}", f"--logits={files[1]}"))
        ours, peer = (
            np.fromfile(file, "<f4").reshape(num_tokens, vocab_size) for file in files
        )
    difference = ours - peer
    relative = np.sqrt((difference**2).mean(axis=1) / (ours**2).mean(axis=1))
    return {
        "median_relative_rms": float(np.median(relative)),
        "max_relative_rms": float(relative.max()),
        "max_difference": float(np.abs(difference).max()),
        "same_argmax": int((ours.argmax(axis=1) == peer.argmax(axis=1)).sum()),
        "positions": num_tokens,
    }


def check(what, bound, model_dir, gguf):
    """Ends the comparison when the two programs run different models."""
    result = compare_logits(model_dir, gguf)
    print(
        f"{what}: logits differ by {result['median_relative_rms']:.2g} (relative rms, "
        f"median), at most {result['max_difference']:.2g}; same choice in "
        f"{result['same_argmax']} of {result['positions']}",
        file=sys.stderr,
    )
    if not result["median_relative_rms"] <= bound:  # NaN is too much
        raise measure.BenchError(f"{what}: not the same model; bound {bound}")
    return result


def check_exactly(work, family):
    """A small model in float32, where both programs round almost nothing."""
    folder = pathlib.Path(work) / f"check-{family}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        kv_heads = "2" if family == "mixtral" else "8"
        measure.run(
            [
                *(measure.BIN / "troupe", "make-model", folder / "model"),
                *("--family", family, "--dtype", "float32", "--kv-heads", kv_heads),
                *("--layers", "3", "--vocab", "1000"),
            ]
        )
        gguf = folder / "model.gguf"
        convert.write_gguf(folder / "model", gguf)
        name = f"small {family} in float32"
        return check(name, CHECK_BOUND["f32"], folder / "model", gguf)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build_id():
    """Of the programs that are measured."""
    digest = hashlib.sha256()
    for name in PROGRAMS:
        digest.update((measure.BIN / name).read_bytes())
    return digest.hexdigest()[:16]


def peer_description():
    from importlib import metadata

    import llama_cpp

    library = next(
        pathlib.Path(llama_cpp.__file__).parent.glob("lib/libggml-base.so.*.*.*")
    )
    stamp = pathlib.Path(sys.prefix) / "peer-build"
    flags = [
        word
        for word in (stamp.read_text().split() if stamp.exists() else [])
        if word.startswith("-D")
    ]
    return {
        "llama_cpp_python": metadata.version("llama-cpp-python"),
        "ggml": library.name.split(".so.")[1],
        "build": " ".join(flags),
        "settings": "threads = cores, no mmap, repacking, flash attention auto, "
        "separate KV streams, ubatch 512",
    }


def load_results(path, resume):
    build = build_id()
    if resume and path.exists():
        results = json.loads(path.read_text())
        if results["build"] != build:
            for rounds in results["rounds"].values():
                for one in rounds:
                    for who in ("engine", "cluster"):
                        one.pop(who, None)
            results["checks"] = {}
    else:
        results = {"rounds": {}, "checks": {}}
    results["build"] = build
    return results


def save(path, results):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1))
    part.replace(path)


def measure_round(models, form, flags, backwards, results):
    """One round of one format: {"peak", "peer", "engine", "cluster"}."""
    ours = models.ours(form)
    taken = {"peak": measure.machine_peak()}

    def take_peer():
        taken["peer"], results["peer"]["system"] = peer_rates(
            models.peer(form), flags.runs
        )

    def take_engine():
        taken["engine"] = measure.engine_rates(ours, flags.runs)

    def take_cluster():
        taken["cluster"], _ = measure.cluster_rates(ours, flags.experts, flags.runs)

    steps = [take_peer]
    if ours is not None:
        steps = [take_engine, take_peer, take_cluster]
    for step in reversed(steps) if backwards else steps:
        step()
    return taken


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=measure.SHAPES, default="mixtral")
    parser.add_argument(
        "--formats", help=f"of {','.join(PEER_FORMAT)}; default: all of the shape"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1, help="of each in a round")
    parser.add_argument("--experts", type=int, default=4, help="expert processes")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--resume", action="store_true", help="add rounds")
    parser.add_argument(
        "--prepare", action="store_true", help="models and checks, no measurement"
    )
    parser.add_argument(
        "--allow-busy",
        action="store_true",
        help="also rounds that begin while other processes compute",
    )
    parser.add_argument("--no-check", dest="check", action="store_false")
    parser.add_argument("--work", default=measure.ROOT / "build/bench")
    flags = parser.parse_args()
    if flags.quick:
        flags.rounds = 1
    flags.formats = (
        flags.formats.split(",")
        if flags.formats
        else list(SHAPE_FORMATS.get(flags.shape, PEER_FORMAT))
    )
    unknown = set(flags.formats) - set(PEER_FORMAT)
    if unknown:
        parser.error(f"--formats: {sorted(unknown)} are none of {list(PEER_FORMAT)}")
    return flags


def run_checks(flags, models, results):
    config = checkpoint.read_config(models.ours("bf16"))
    family = config["model_type"]
    if family not in results["checks"]:
        results["checks"][family] = check_exactly(flags.work, family)
    for form in flags.formats:
        if form in results["checks"]:
            continue
        if models.ours(form) is None:
            print(f"{form}: this build has no `troupe quantize`", file=sys.stderr)
            continue
        results["checks"][form] = check(
            f"{flags.shape} {form}",
            CHECK_BOUND[form],
            models.ours(form),
            models.peer(form),
        )


def main():
    flags = parse_flags()
    models = Models(flags.work, flags.shape)
    path = pathlib.Path(flags.work) / f"compare-{flags.shape}.json"
    for form in flags.formats:
        models.ours(form)
        models.peer(form)
    results = load_results(path, flags.resume or flags.prepare)
    results["shape"] = flags.shape
    results["command"] = " ".join(
        ["tools/bench/compare_llama_cpp/compare.sh", *sys.argv[1:]]
    )
    results["machine"] = measure.describe_machine()
    results["peer"] = {**results.get("peer", {}), **peer_description()}
    results["active_weights"] = checkpoint.active_matrix_weights(
        checkpoint.read_config(models.ours("bf16"))
    )
    results["tensor_types"] = {
        form: convert.tensor_types(models.peer(form)) for form in flags.formats
    } | results.get("tensor_types", {})
    if flags.check:
        run_checks(flags, models, results)
    save(path, results)
    if flags.prepare:
        return
    for number in range(flags.rounds):
        for form in flags.formats:
            rounds = results["rounds"].setdefault(form, [])
            print(
                f"round {number + 1} of {flags.rounds}: {flags.shape} {form}",
                file=sys.stderr,
            )
            busy = measure.wait_until_idle()
            if busy > measure.MAX_BUSY and not flags.allow_busy:
                print(
                    f"other processes take {100 * busy:.0f}% of the processors: "
                    "left out",
                    file=sys.stderr,
                )
                continue
            taken = measure_round(models, form, flags, len(rounds) % 2 == 1, results)
            rounds.append(taken | {"busy": busy})
            save(path, results)
    if not any(results["rounds"].values()):
        raise measure.BenchError("no round was taken on an idle machine")
    text = report.markdown(results)
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        try:
            main()
        except (measure.BenchError, checkpoint.CheckpointError) as error:
            sys.exit(f"compare_llama_cpp: {error}")
