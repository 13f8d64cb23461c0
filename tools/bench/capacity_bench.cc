// capacity_bench: what a capacity factor costs in quality and brings in speed,
// for each fallback and each choice of refused copies. One JSON line per row of
// the table; tools/bench/capacity_report.py makes table and picture of them.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/clock.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "model/tokenizer/tokenizer.h"
#include "nlohmann/json.hpp"
#include "tools/bench/local_cluster.h"
#include "tools/bench/perplexity.h"

namespace troupe {
namespace {

struct Options {
  std::string model_dir;
  std::string text_path;
  size_t num_documents = 150;
  size_t num_sequences = 16;    // of the skewed load
  size_t sequence_tokens = 16;  // all of them the same ones
  size_t rounds = 9;
  size_t steps = 20;  // per round
  std::vector<double> factors = {0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0};
  std::vector<std::string> fallbacks = {"drop", "next_best", "next_best,drop"};
  std::vector<std::string> refusals = {"position", "weight", "random"};
};

// One way to run: a row of the table.
struct Setting {
  double factor = 0;
  std::string fallback = "exact";
  std::string refuse = "position";
};

// The same short text in every sequence of a step: all of them want the same
// experts at the same time. One model for all settings.
class SkewedLoad {
 public:
  static absl::StatusOr<std::unique_ptr<SkewedLoad>> Start(
      const Options& options, const std::vector<int32_t>& tokens) {
    auto load = std::make_unique<SkewedLoad>();
    LocalClusterOptions cluster;
    cluster.model_dir = options.model_dir;
    // Two processes for the experts, each with a core of its own; the router
    // waits while they compute.
    cluster.num_expert_groups = 2;
    cluster.router_threads = 1;
    cluster.expert_threads = 1;
    const size_t blocks_per_sequence =
        (tokens.size() + kKvBlockSize - 1) / kKvBlockSize;
    cluster.num_kv_blocks = options.num_sequences * blocks_per_sequence;
    ABSL_ASSIGN_OR_RETURN(load->cluster_, LocalCluster::Start(cluster));
    for (size_t b = 0; b < cluster.num_kv_blocks; ++b) {
      load->blocks_.push_back(static_cast<int32_t>(b));
    }
    for (size_t s = 0; s < options.num_sequences; ++s) {
      AttentionSequence rows;
      rows.block_table =
          std::span<const int32_t>(load->blocks_)
              .subspan(s * blocks_per_sequence, blocks_per_sequence);
      rows.first_row = load->batch_.token_ids.size();
      rows.num_rows = tokens.size();
      rows.first_position = 0;
      load->batch_.sequences.push_back(rows);
      for (size_t i = 0; i < tokens.size(); ++i) {
        load->batch_.token_ids.push_back(tokens[i]);
        load->batch_.positions.push_back(static_cast<int32_t>(i));
      }
      load->batch_.logit_rows.push_back(load->batch_.token_ids.size() - 1);
    }
    load->cluster_->runner().set_routing_observer(
        [l = load.get()](size_t layer, const RoutingDecision& decision) {
          l->Observe(layer, decision);
        });
    return load;
  }

  absl::StatusOr<std::unique_ptr<TokenDispatcher>> MakeDispatcher(
      const Setting& setting) const {
    TokenDispatcherOptions options;
    options.hidden_size = cluster_->config().hidden_size;
    options.num_experts = cluster_->config().num_experts;
    options.capacity_factor = setting.factor;
    ABSL_ASSIGN_OR_RETURN(options.refuse, ParseRefuseBy(setting.refuse));
    return std::make_unique<TokenDispatcher>(cluster_->dispatcher()->experts(),
                                             options);
  }

  // Tokens per second of so many steps.
  absl::StatusOr<double> Run(TokenDispatcher& dispatcher,
                             const FallbackPolicy& policy, size_t steps) {
    const SteadyTime start = std::chrono::steady_clock::now();
    for (size_t i = 0; i < steps; ++i) {
      dispatcher.set_policies({PolicyRows{batch_.token_ids.size(), policy}});
      ABSL_RETURN_IF_ERROR(cluster_->runner()
                               .Forward(batch_, &dispatcher,
                                        [](auto) { return absl::OkStatus(); })
                               .status());
    }
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
            .count();
    return static_cast<double>(steps * batch_.token_ids.size()) / seconds;
  }

  // Of the last step, which `dispatcher` did: copies of the busiest expert, as
  // a multiple of the mean of all when nothing is refused; the mean over
  // layers. With a process and a core for each expert a step takes that long.
  double BusiestExpert(const TokenDispatcher& dispatcher) const {
    std::vector<std::vector<int64_t>> load = load_;
    for (const FatedCopy& copy : dispatcher.fates()) {
      if (copy.fate < CopyFate::kNextBest) continue;
      --load[copy.layer][copy.expert];
      if (copy.stand_in < 0) continue;
      ++load[copy.layer][static_cast<size_t>(copy.stand_in)];
    }
    double sum = 0;
    size_t num_layers = 0;
    for (const std::vector<int64_t>& experts : load) {
      if (experts.empty()) continue;
      sum += static_cast<double>(
          *std::max_element(experts.begin(), experts.end()));
      ++num_layers;
    }
    const ModelConfig& config = cluster_->config();
    const double mean =
        static_cast<double>(batch_.token_ids.size() * config.top_k) /
        static_cast<double>(config.num_experts);
    return sum / static_cast<double>(num_layers) / mean;
  }

 private:
  void Observe(size_t layer, const RoutingDecision& decision) {
    if (load_.size() <= layer) load_.resize(layer + 1);
    load_[layer].assign(cluster_->config().num_experts, 0);
    for (const int32_t expert : decision.topk_idx) {
      ++load_[layer][static_cast<size_t>(expert)];
    }
  }

  std::unique_ptr<LocalCluster> cluster_;
  std::vector<int32_t> blocks_;
  Batch batch_;
  std::vector<std::vector<int64_t>> load_;  // [layer][expert], of the gate
};

std::vector<Setting> Settings(const Options& options) {
  std::vector<Setting> settings = {{}};  // dropless first: the yardstick
  for (const std::string& fallback : options.fallbacks) {
    for (const std::string& refuse : options.refusals) {
      for (const double factor : options.factors) {
        settings.push_back({factor, fallback, refuse});
      }
    }
  }
  return settings;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file.is_open() || text.empty()) {
    return absl::NotFoundError(absl::StrCat("cannot read ", path));
  }
  return text;
}

absl::Status Run(const Options& options) {
  ABSL_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.text_path));
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<const Tokenizer> tokenizer,
                        Tokenizer::Load(options.model_dir));
  ABSL_ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                        tokenizer->Encode(text.substr(0, 4096), {}));
  tokens.resize(std::min(tokens.size(), options.sequence_tokens));
  const std::vector<Setting> settings = Settings(options);

  // Rounds over all settings, so that a busy moment of the machine spoils one
  // run of each and not all of one: the median counts.
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<SkewedLoad> load,
                        SkewedLoad::Start(options, tokens));
  std::vector<std::unique_ptr<TokenDispatcher>> dispatchers;
  std::vector<FallbackPolicy> policies;
  std::vector<double> busiest;
  for (const Setting& setting : settings) {
    ABSL_ASSIGN_OR_RETURN(dispatchers.emplace_back(),
                          load->MakeDispatcher(setting));
    ABSL_ASSIGN_OR_RETURN(policies.emplace_back(),
                          ParseFallback(setting.fallback));
    ABSL_RETURN_IF_ERROR(
        load->Run(*dispatchers.back(), policies.back(), 2).status());
    busiest.push_back(load->BusiestExpert(*dispatchers.back()));
  }
  std::vector<std::vector<double>> speeds(settings.size());
  for (size_t round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < settings.size(); ++i) {
      ABSL_ASSIGN_OR_RETURN(
          const double speed,
          load->Run(*dispatchers[i], policies[i], options.steps));
      speeds[i].push_back(speed);
    }
  }
  for (size_t i = 0; i < settings.size(); ++i) {
    const Setting& setting = settings[i];
    PerplexityOptions quality;
    quality.model_dir = options.model_dir;
    quality.text = text;
    quality.max_documents = options.num_documents;
    quality.capacity_factor = setting.factor;
    ABSL_ASSIGN_OR_RETURN(quality.refuse, ParseRefuseBy(setting.refuse));
    quality.fallback = policies[i];
    ABSL_ASSIGN_OR_RETURN(const PerplexityResult result,
                          MeasurePerplexity(quality));
    std::sort(speeds[i].begin(), speeds[i].end());
    nlohmann::json line = {{"capacity_factor", setting.factor},
                           {"fallback", setting.fallback},
                           {"refuse", setting.refuse},
                           {"tokens", result.num_tokens},
                           {"perplexity", result.perplexity},
                           {"next_best", result.copies.next_best()},
                           {"dropped", result.copies.dropped()},
                           {"first_choice", result.copies.first_choice()},
                           {"busiest_expert", busiest[i]}};
    if (options.rounds > 0) {
      line["tokens_per_second"] = speeds[i][speeds[i].size() / 2];
      line["tokens_per_second_runs"] = speeds[i];
    }
    std::printf("%s\n", line.dump().c_str());
    std::fflush(stdout);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Perplexity on held-out text and speed under a skewed load, by capacity "
      "factor, fallback and choice of refused copies");
  app.add_option("MODEL_DIR", options.model_dir)->required();
  app.add_option("TEXT", options.text_path,
                 "UTF-8, documents end with a line <|endoftext|>")
      ->required();
  app.add_option("--documents", options.num_documents, "Of the text; 0: all")
      ->capture_default_str();
  app.add_option("--rounds", options.rounds,
                 "Of measuring speed, on an idle machine; 0: quality alone")
      ->capture_default_str();
  app.add_option("--steps", options.steps, "Of a round")->capture_default_str();
  app.add_option("--factors", options.factors)->delimiter(',');
  app.footer(
      "Example:\n"
      "  capacity_bench models/demo stories-valid.txt > capacity.jsonl\n"
      "  python3 tools/bench/capacity_report.py capacity.jsonl docs");
  CLI11_PARSE(app, argc, argv);
  InitLogging("capacity", "warn");
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "capacity_bench: %s\n",
               std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) { return troupe::Main(argc, argv); }
