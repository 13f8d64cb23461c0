// Parity with Hugging Face transformers in float32: logits, chosen experts,
// gate weights, greedy continuation. Tolerances: tests/goldens/README.md.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/golden_file.h"
#include "tools/bench/local_cluster.h"

namespace troupe {
namespace {

constexpr float kLogitTolerance = 5e-4f;
constexpr float kWeightTolerance = 5e-5f;

const char* const kFixtures[] = {"mixtral_window",
                                 "mixtral_sharded",
                                 "qwen2_moe_sparse_step",
                                 "qwen2_moe_layer_types",
                                 "qwen3_moe_window",
                                 "qwen3_moe_dense_first",
                                 "olmoe_clip",
                                 "olmoe_gqa",
                                 "llama_llama3_rope",
                                 "llama_linear_rope"};

struct Routing {
  std::vector<int32_t> topk_idx;
  std::vector<float> topk_weights;
};

// Prints where the largest difference is.
void ExpectNear(const std::vector<float>& want, const float* got,
                float tolerance, const std::string& what) {
  size_t worst = 0;
  float worst_error = 0.0f;
  for (size_t i = 0; i < want.size(); ++i) {
    const float error = std::abs(want[i] - got[i]);
    if (!(error <= worst_error)) {  // NaN is an error
      worst = i;
      worst_error = error;
    }
  }
  EXPECT_LE(worst_error, tolerance)
      << what << ": element " << worst << " is " << got[worst] << " instead of "
      << want[worst];
}

struct Greedy {
  std::vector<int32_t> token_ids;
  std::vector<float> logprobs;
};

Greedy GenerateGreedy(ServingLoop& loop, std::vector<int32_t> prompt,
                      size_t num_tokens) {
  SequenceRequest request;
  request.prompt_length = prompt.size();
  request.tokens = std::move(prompt);
  request.max_tokens = num_tokens;
  request.logprobs = true;
  Greedy greedy;
  std::promise<absl::Status> done;
  request.on_event = [&](SequenceEvent event) {
    for (const SequenceToken& token : event.tokens) {
      greedy.token_ids.push_back(token.token_id);
      greedy.logprobs.push_back(token.logprob.logprob);
    }
    if (event.finish != Finish::kNot || !event.status.ok()) {
      done.set_value(event.status);
    }
  };
  const absl::StatusOr<uint64_t> seq_id = loop.Submit(std::move(request));
  EXPECT_TRUE(seq_id.ok()) << seq_id.status();
  EXPECT_TRUE(done.get_future().get().ok());
  return greedy;
}

void CheckPrompt(LocalCluster& cluster, const GoldenFile& golden,
                 const std::string& prompt, size_t chunk) {
  const std::vector<int32_t> input_ids = golden.Ints(prompt + ".input_ids");
  const size_t num_tokens = input_ids.size();
  const ModelConfig& config = cluster.config();
  std::vector<Routing> routing(config.num_layers);
  cluster.runner().set_routing_observer(
      [&](size_t layer, const RoutingDecision& decision) {
        Routing& all = routing[layer];
        all.topk_idx.insert(all.topk_idx.end(), decision.topk_idx.begin(),
                            decision.topk_idx.end());
        all.topk_weights.insert(all.topk_weights.end(),
                                decision.topk_weights.begin(),
                                decision.topk_weights.end());
      });
  // Blocks in descending order, so that a wrong block table shows.
  std::vector<int32_t> block_table;
  for (size_t i = 0; i * kKvBlockSize < num_tokens; ++i) {
    block_table.push_back(static_cast<int32_t>(20 - i));
  }
  std::vector<float> logits;
  for (size_t begin = 0; begin < num_tokens; begin += chunk) {
    const size_t end = std::min(begin + chunk, num_tokens);
    const absl::StatusOr<ConstFloatMatrix> part = cluster.runner().Forward(
        SequenceBatch(input_ids, begin, end, block_table), cluster.dispatcher(),
        [](TokenDispatcher::WaitingFor) { return absl::OkStatus(); });
    ASSERT_TRUE(part.ok()) << part.status();
    for (size_t row = 0; row < part->rows; ++row) {
      logits.insert(logits.end(), part->row(row), part->row(row) + part->cols);
    }
  }
  const std::vector<float> want = golden.Floats(prompt + ".logits");
  ASSERT_LE(want.size(), logits.size());  // of the last positions, or all
  ExpectNear(want, logits.data() + (logits.size() - want.size()),
             kLogitTolerance, prompt + ".logits");
  for (size_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string name = absl::StrCat(prompt, ".layer", layer);
    ASSERT_EQ(golden.Has(name + ".topk_idx"), bool{config.is_moe_layer[layer]});
    if (!config.is_moe_layer[layer]) continue;
    EXPECT_EQ(golden.Ints(name + ".topk_idx"), routing[layer].topk_idx) << name;
    ExpectNear(golden.Floats(name + ".topk_weights"),
               routing[layer].topk_weights.data(), kWeightTolerance,
               name + ".topk_weights");
  }
  cluster.runner().set_routing_observer(nullptr);
}

void CheckAll(const std::string& model_dir, const std::string& golden_dir) {
  LocalClusterOptions options;
  options.model_dir = model_dir;
  options.num_expert_groups = 2;
  options.num_kv_blocks = 21;
  absl::StatusOr<std::unique_ptr<LocalCluster>> cluster =
      LocalCluster::Start(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const GoldenFile golden(golden_dir + "/golden.safetensors");
  size_t num_prompts = 0;
  for (; golden.Has(absl::StrCat("prompt", num_prompts, ".input_ids"));
       ++num_prompts) {
    const std::string prompt = absl::StrCat("prompt", num_prompts);
    CheckPrompt(**cluster, golden, prompt, 1000);
    CheckPrompt(**cluster, golden, prompt, 7);
  }
  ASSERT_GE(num_prompts, 2u);
  ServingLoop& loop = (*cluster)->StartLoop();
  for (size_t i = 0; i < num_prompts; ++i) {
    const std::string prompt = absl::StrCat("prompt", i);
    const Greedy greedy =
        GenerateGreedy(loop, golden.Ints(prompt + ".input_ids"), 64);
    EXPECT_EQ(greedy.token_ids, golden.Ints(prompt + ".greedy_ids"));
    const std::vector<float> want = golden.Floats(prompt + ".greedy_logprobs");
    ASSERT_EQ(greedy.logprobs.size(), want.size());
    ExpectNear(want, greedy.logprobs.data(), kLogitTolerance,
               prompt + ".greedy_logprobs");
  }
}

class ParityTest : public testing::TestWithParam<const char*> {};

TEST_P(ParityTest, LogitsRoutingAndGreedyContinuation) {
  const std::string dir =
      absl::StrCat(TROUPE_SOURCE_DIR, "/tests/goldens/", GetParam());
  CheckAll(dir, dir);
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ParityTest, testing::ValuesIn(kFixtures),
                         [](const auto& param) {
                           return std::string(param.param);
                         });

TEST(DemoParityTest, LogitsRoutingAndGreedyContinuation) {
  CheckAll(TROUPE_SOURCE_DIR "/models/demo",
           TROUPE_SOURCE_DIR "/tests/goldens/demo");
}

}  // namespace
}  // namespace troupe
