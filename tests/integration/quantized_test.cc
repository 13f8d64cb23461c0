// Quantised checkpoints from `troupe quantize` to the answers of real
// processes: the exactness contract holds in every format and mix of formats,
// the logits are those of the same weights as floats but for what rounding the
// activations costs, and the demo model still predicts.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cluster/expert_range.h"
#include "common/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/safetensors_writer.h"
#include "tests/fakes/process_cluster.h"
#include "tests/fakes/temp_dir.h"
#include "tests/integration/mixed_requests.h"
#include "tools/bench/local_cluster.h"
#include "tools/bench/perplexity.h"
#include "tools/cli/quantize.h"

namespace troupe {
namespace {

constexpr char kDemo[] = TROUPE_SOURCE_DIR "/models/demo";

QuantizeRequest Uniform(WeightFormat format, size_t group_size) {
  QuantizeRequest request;
  request.experts = request.router = request.embedding = format;
  request.group_size = group_size;
  return request;
}

// As uneven as a checkpoint can be.
QuantizeRequest Mixed() {
  QuantizeRequest request;
  request.experts = WeightFormat::kInt4;
  request.router = WeightFormat::kInt8;
  request.embedding = WeightFormat::kInt4Zero;
  request.expert_overrides = {"3=int8", "5=int4-zero", "1-2:6=keep",
                              "*:0,4/down=int8", "5:7/gate-up=int4-zero"};
  return request;
}

struct Case {
  const char* name;
  QuantizeRequest request;
  // Of a logit, relative to their root mean square; see FloatsOfTheSameWeights.
  double tolerance;
};

std::vector<Case> Cases() {
  return {
      {"int8", Uniform(WeightFormat::kInt8, 32), 0.05},
      {"int8_in_groups_of_64", Uniform(WeightFormat::kInt8, 64), 0.06},
      {"int4", Uniform(WeightFormat::kInt4, 32), 0.05},
      {"int4_zero_in_groups_of_64", Uniform(WeightFormat::kInt4Zero, 64), 0.06},
      {"mixed", Mixed(), 0.05}};
}

std::string MakeQuantized(const TempDir& dir, const QuantizeRequest& request) {
  QuantizeOptions options;
  options.model_dir = kDemo;
  options.output_dir = dir.File("quantized");
  options.request = request;
  const absl::StatusOr<QuantizeReport> report = Quantize(options);
  EXPECT_TRUE(report.ok()) << report.status();
  return options.output_dir;
}

// The same weights as float32, in a checkpoint without quantisation.
std::string WriteDequantized(const TempDir& dir, const std::string& from) {
  const std::string to = dir.File("dequantized");
  std::filesystem::create_directories(to);
  const auto checkpoint = *Checkpoint::Open(from);
  ModelConfig config = checkpoint->config();
  config.quantized = false;
  config.dtype = DataType::kF32;
  WriteFile(to + "/config.json", ConfigJson(config));
  std::vector<TensorInfo> infos;
  CHECK(ForEachTensor(config, [&](const TensorSpec& spec) {
          TensorInfo info;
          info.name = spec.name;
          info.type = SafetensorsType::kF32;
          info.shape = spec.shape;
          infos.push_back(info);
          return absl::OkStatus();
        }).ok());
  auto writer = SafetensorsWriter::Create(to + "/model.safetensors", infos);
  CHECK(writer.ok());
  for (const TensorInfo& info : infos) {
    const MappedTensor tensor = *checkpoint->Map(info.name);
    std::vector<float> values(tensor.num_elements());
    CopyToFloat(tensor, values.data());
    CHECK(writer->Append(values.data(), values.size() * sizeof(float)).ok());
  }
  CHECK(writer->Finish().ok());
  return to;
}

class QuantizedTest : public testing::TestWithParam<Case> {};

// Each request alone with one expert process, against all at once with one, two
// and four: every byte is the same.
TEST_P(QuantizedTest, BatchesAndProcessesDoNotMatter) {
  const TempDir dir;
  ProcessClusterOptions options;
  options.model_dir = MakeQuantized(dir, GetParam().request);
  const std::vector<v1::RouterGenerateRequest> requests = MixedRequests(4096);
  std::vector<std::string> alone;
  {
    ProcessCluster cluster(options);
    size_t num_tokens = 0;
    for (const v1::RouterGenerateRequest& request : requests) {
      const Outcome outcome = Generate(cluster.stub(), request);
      ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
      alone.push_back(outcome.Bytes());
      num_tokens += outcome.num_tokens();
    }
    ASSERT_GT(num_tokens, 200u);
    ASSERT_EQ(std::set(alone.begin(), alone.end()).size(), alone.size());
  }
  options.num_threads = 2;
  for (const size_t num_processes : {1, 2, 4}) {
    options.expert_ranges = SplitExperts(8, num_processes);
    ProcessCluster cluster(options);
    const std::vector<Outcome> outcomes = GenerateAll(cluster.stub(), requests);
    for (size_t i = 0; i < outcomes.size(); ++i) {
      EXPECT_EQ(outcomes[i].Bytes(), alone[i])
          << "request " << i << ", " << num_processes << " expert processes";
    }
  }
}

struct Forwarded {
  std::vector<std::vector<float>> logits;     // by position
  std::vector<std::vector<int32_t>> experts;  // by position, all layers
};

Forwarded Forward(const std::string& model_dir,
                  const std::vector<int32_t>& token_ids) {
  LocalClusterOptions options;
  options.model_dir = model_dir;
  options.num_expert_groups = 2;
  options.num_kv_blocks = 32;
  auto cluster = LocalCluster::Start(options);
  CHECK(cluster.ok());
  Forwarded result;
  result.experts.resize(token_ids.size());
  const size_t top_k = (*cluster)->config().top_k;
  (*cluster)->runner().set_routing_observer(
      [&](size_t, const RoutingDecision& decision) {
        for (size_t i = 0; i < decision.topk_idx.size(); ++i) {
          result.experts[i / top_k].push_back(decision.topk_idx[i]);
        }
      });
  std::vector<int32_t> block_table(32);
  for (size_t i = 0; i < 32; ++i) block_table[i] = static_cast<int32_t>(i);
  const auto logits = (*cluster)->runner().Forward(
      SequenceBatch(token_ids, 0, token_ids.size(), block_table),
      (*cluster)->dispatcher(), [](auto) { return absl::OkStatus(); });
  CHECK(logits.ok());
  for (size_t i = 0; i < logits->rows; ++i) {
    result.logits.emplace_back(logits->row(i), logits->row(i) + logits->cols);
  }
  return result;
}

// The kernels of quantised weights round their inputs to 8 bits too, one scale
// per group. A group of 32 normal numbers has its largest near 2.5 standard
// deviations s: a step is 2.5 s / 127, and rounding to it adds noise of
// 2.5 / 127 / sqrt(12) = 0.6 % of s; of 64, 0.65 %; heavier tails make it
// about 0.9 %. Products with the weights keep that ratio. A token passes
// 6 layers * 4 rounded inputs (q k v, o, gate and up, down) and the head, whose
// noises are independent and add up in the residual stream by their squares: at
// most sqrt(25) * 0.9 % = 4.5 % of the logits. Where a token went to another
// expert because two router scores were as good as equal, no bound holds; such
// positions are counted, and must be few.
TEST_P(QuantizedTest, FloatsOfTheSameWeights) {
  const TempDir dir;
  const std::string quantized = MakeQuantized(dir, GetParam().request);
  const std::string floats = WriteDequantized(dir, quantized);
  std::vector<int32_t> token_ids;
  std::mt19937 random(7);
  for (size_t i = 0; i < 200; ++i) {
    token_ids.push_back(static_cast<int32_t>(random() % 4096));
  }
  const Forwarded a = Forward(floats, token_ids);
  const Forwarded b = Forward(quantized, token_ids);
  size_t rerouted = 0;
  double error = 0, square = 0, worst = 0;
  size_t num_logits = 0;
  for (size_t i = 0; i < token_ids.size(); ++i) {
    ASSERT_EQ(a.experts[i].size(), 12u);
    if (a.experts[i] != b.experts[i]) {
      ++rerouted;
      continue;
    }
    double row_error = 0, row_square = 0;
    for (size_t j = 0; j < a.logits[i].size(); ++j) {
      const double difference = a.logits[i][j] - b.logits[i][j];
      row_error += difference * difference;
      row_square += static_cast<double>(a.logits[i][j]) * a.logits[i][j];
    }
    worst = std::max(worst, std::sqrt(row_error / row_square));
    error += row_error;
    square += row_square;
    num_logits += a.logits[i].size();
  }
  const double relative = std::sqrt(error / square);
  RecordProperty("relative", std::to_string(relative));
  std::printf(
      "relative error of the logits %.4f, worst row %.4f, %zu of %zu "
      "tokens took another way\n",
      relative, worst, rerouted, token_ids.size());
  EXPECT_LT(relative, GetParam().tolerance);
  // Integers were in play at all: floats would agree to 1e-6.
  EXPECT_GT(relative, 1e-4);
  EXPECT_LT(rerouted, token_ids.size() / 3);
  ASSERT_GT(num_logits, 0u);
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizedTest, testing::ValuesIn(Cases()),
                         [](const auto& param) {
                           return std::string(param.param.name);
                         });

// Written for this test, in the words that the demo model knows.
constexpr char kStories[] =
    R"(Once upon a time, there was a little boy named Tom. Tom had a red ball.
He liked to play with his ball in the park every day. One day, the ball rolled
away and went into a big bush. Tom was sad because he could not find it. Then
a small dog came and barked at the bush. The dog went in and came out with the
red ball. Tom was very happy and said, "Thank you, dog!" They played together
until the sun went down.
<|endoftext|>
Lily and her mom went to the beach. Lily wanted to make a big castle in the
sand. She filled her bucket and put the sand on the ground. A wave came and
took the castle away. Lily started to cry. Her mom gave her a hug and said,
"We can make a new one, far from the water." So they did, and the new castle
was even better. Lily smiled and put a pretty shell on the top.
<|endoftext|>
There was an old cat who lived in a warm house. The cat liked to sleep near
the window. One morning, a bird sat on the tree outside and sang a song. The
cat opened one eye and looked at the bird. It did not want to run. It only
wanted to listen. From that day on, the bird came every morning, and the cat
and the bird were good friends.
)";

double PerplexityOf(const std::string& model_dir) {
  PerplexityOptions options;
  options.model_dir = model_dir;
  options.text = kStories;
  const absl::StatusOr<PerplexityResult> result = MeasurePerplexity(options);
  EXPECT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->num_tokens, 250u);
  return result->perplexity;
}

// docs/quantisation.md has the figures on more text.
TEST(QuantizedDemoTest, StillPredicts) {
  const double floats = PerplexityOf(kDemo);
  EXPECT_GT(floats, 2.0);
  // 15.5 on the stories that it was not trained on.
  EXPECT_LT(floats, 30.0);
  const TempDir dir8, dir4, dir4_zero;
  EXPECT_NEAR(
      PerplexityOf(MakeQuantized(dir8, Uniform(WeightFormat::kInt8, 32))) /
          floats,
      1.0, 0.01);
  EXPECT_LT(
      PerplexityOf(MakeQuantized(dir4, Uniform(WeightFormat::kInt4, 32))) /
          floats,
      1.15);
  EXPECT_LT(PerplexityOf(MakeQuantized(dir4_zero,
                                       Uniform(WeightFormat::kInt4Zero, 32))) /
                floats,
            1.15);
}

}  // namespace
}  // namespace troupe
