"""Names, rows and arithmetic of the comparison with llama.cpp."""

import json
import pathlib
import struct
import sys
import tempfile
import unittest

BENCH = pathlib.Path(__file__).resolve().parents[3] / "tools/bench"
sys.path[:0] = [str(BENCH), str(BENCH / "compare_llama_cpp")]

import checkpoint  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}
OLMOE = {
    "model_type": "olmoe",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 50304,
    "norm_topk_prob": False,
}


class PlanTest(unittest.TestCase):
    def test_every_source_is_used_once(self):
        for config, per_layer in ((MIXTRAL, 7 + 24), (OLMOE, 9 + 192)):
            plan = checkpoint.plan_gguf(config)
            sources = [source for entry in plan for source in entry.sources]
            layers = config["num_hidden_layers"]
            self.assertEqual(len(sources), 3 + layers * per_layer)
            self.assertEqual(len(set(sources)), len(sources))
            names = [entry.name for entry in plan]
            self.assertEqual(len(set(names)), len(names))

    def test_experts_are_stacked_in_order(self):
        entries = {entry.name: entry for entry in checkpoint.plan_gguf(MIXTRAL)}
        experts = entries["blk.3.ffn_up_exps.weight"].sources
        self.assertEqual(
            experts,
            tuple(
                f"model.layers.3.block_sparse_moe.experts.{i}.w3.weight"
                for i in range(8)
            ),
        )
        down = entries["blk.0.ffn_down_exps.weight"].sources[0]
        self.assertTrue(down.endswith(".w2.weight"))

    def test_only_llama_reorders_queries_and_keys(self):
        entries = {entry.name: entry for entry in checkpoint.plan_gguf(MIXTRAL)}
        self.assertEqual(entries["blk.0.attn_q.weight"].rotary_heads, 16)
        self.assertEqual(entries["blk.0.attn_k.weight"].rotary_heads, 4)
        self.assertEqual(entries["blk.0.attn_v.weight"].rotary_heads, 0)
        for entry in checkpoint.plan_gguf(OLMOE):
            self.assertEqual(entry.rotary_heads, 0, entry.name)

    def test_rotary_rows_pair_the_halves_of_each_head(self):
        self.assertEqual(
            checkpoint.rotary_row_order(8, 2), [0, 2, 1, 3, 4, 6, 5, 7]
        )
        self.assertEqual(checkpoint.rotary_row_order(6, 1), [0, 3, 1, 4, 2, 5])

    def test_active_weights(self):
        layer = 2 * 1024 * 1024 + 2 * 1024 * 256 + 3 * 1024 * 2816 * 2 + 1024 * 8
        self.assertEqual(
            checkpoint.active_matrix_weights(MIXTRAL), 12 * layer + 1024 * 32000
        )


class FolderTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.folder = pathlib.Path(self._folder.name)

    def write(self, header, data):
        text = json.dumps(header).encode()
        (self.folder / "model.safetensors").write_bytes(
            struct.pack("<Q", len(text)) + text + data
        )

    def test_finds_tensors(self):
        self.write(
            {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [4, 16]}},
            bytes(16),
        )
        tensor = checkpoint.read_tensors(self.folder)["a"]
        self.assertEqual(tensor.num_bytes, 12)
        size = (self.folder / "model.safetensors").stat().st_size
        self.assertEqual(tensor.offset + tensor.num_bytes, size)

    def test_refuses_tensors_beyond_the_file(self):
        for offsets, data in (([0, 11], 12), ([4, 16], 12)):
            self.write(
                {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": offsets}},
                bytes(data),
            )
            with self.assertRaisesRegex(checkpoint.CheckpointError, "a has wrong"):
                checkpoint.read_tensors(self.folder)

    def test_refuses_what_the_peer_computes_otherwise(self):
        for key, value in (
            ("norm_topk_prob", False),
            ("sliding_window", 128),
            ("tie_word_embeddings", True),
            ("model_type", "qwen3_moe"),
            ("head_dim", 128),
        ):
            config = MIXTRAL | {key: value}
            (self.folder / "config.json").write_text(json.dumps(config))
            with self.assertRaisesRegex(checkpoint.CheckpointError, key):
                checkpoint.read_config(self.folder)
        (self.folder / "config.json").write_text(json.dumps(MIXTRAL))
        self.assertEqual(checkpoint.read_config(self.folder), MIXTRAL)


def rates(rate):
    return dict.fromkeys(measure.MEASURES, rate)


class ReportTest(unittest.TestCase):
    def setUp(self):
        peak = {
            "threads": 2,
            "read_gb_s": 32.0,
            "usual_read_gb_s": 16.0,
            "gflop_s": 200.0,
        }
        self.rounds = [
            {"peak": peak, "peer": rates(10.0), "engine": rates(40.0)},
            {"peak": peak, "peer": rates(20.0), "engine": rates(30.0)},
            {"peak": peak, "peer": rates(50.0)},  # ours were of another build
        ]

    def test_spread(self):
        self.assertEqual(measure.spread([3.0, 1.0, 2.0]), "2.00 (1.00 - 3.00)")
        self.assertEqual(measure.spread([120.4, 80.0]), "100 (80 - 120)")

    def test_hop_share_is_of_the_time_between(self):
        def stats(*routers):
            return {
                "routers": [
                    {"step_seconds": steps, "hop_seconds": hops}
                    for steps, hops in routers
                ]
            }

        before = stats((1.0, 1.0), (0.0, 0.0))
        after = stats((4.0, 1.5), (2.0, 0.0))
        self.assertEqual(measure.hop_share(before, after), 0.1)
        self.assertEqual(measure.hop_share(after, after), 0.0)

    def test_ratios_are_within_rounds(self):
        self.assertEqual(report._ratio(self.rounds, "engine", "prefill"), [4.0, 1.5])
        self.assertEqual(report._ratio(self.rounds, "cluster", "prefill"), [])

    def test_bandwidth(self):
        # 40 and 30 tokens/s of 0.8 GB.
        shares = [
            report.bandwidth_share(self.rounds, who, 4e8, 16, bandwidth)
            for who in ("engine", "cluster")
            for bandwidth in ("read_gb_s", "usual_read_gb_s")
        ]
        self.assertEqual(shares, ["88%", "175%", "-", "-"])

    def test_markdown_has_a_row_per_measure(self):
        text = report.markdown(
            {
                "shape": "mixtral",
                "command": "compare.sh",
                "active_weights": 4e8,
                "machine": {
                    "cpu": "a",
                    "cores": 2,
                    "memory_gib": 1,
                    "instruction_set": "instruction set AVX2",
                    "kernel": "6",
                    "compiler": "c",
                    "commit": "d",
                },
                "peer": {
                    "llama_cpp_python": "1",
                    "ggml": "2",
                    "build": "",
                    "settings": "",
                },
                "checks": {},
                "rounds": {"int8": self.rounds},
            }
        )
        rows = [line for line in text.splitlines() if line.startswith("| int8, ")]
        self.assertEqual(len(rows), len(measure.MEASURES))
        self.assertIn("20.0 (10.0 - 50.0) | 35.0 (30.0 - 40.0) | 2.75", rows[0])


if __name__ == "__main__":
    unittest.main()
