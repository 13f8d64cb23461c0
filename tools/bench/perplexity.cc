#include "tools/bench/perplexity.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "kernels/elementwise.h"
#include "model/tokenizer/tokenizer.h"
#include "tools/bench/local_cluster.h"

namespace troupe {
namespace {

// Rows of one step: bounds the logits that are held.
constexpr size_t kStepRows = 128;
constexpr size_t kMaxContext = 4096;

struct Model {
  std::unique_ptr<LocalCluster> cluster;
  std::vector<int32_t> block_table;

  FallbackPolicy fallback = FallbackPolicy::Exact();

  static absl::StatusOr<Model> Load(const std::string& dir, size_t num_threads,
                                    LocalClusterOptions options = {}) {
    options.model_dir = dir;
    options.router_threads =
        num_threads == 0 ? AvailableThreads() : num_threads;
    options.expert_threads = 0;
    options.num_kv_blocks = kMaxContext / kKvBlockSize;
    Model model;
    ABSL_ASSIGN_OR_RETURN(model.cluster, LocalCluster::Start(options));
    for (size_t i = 0; i < options.num_kv_blocks; ++i) {
      model.block_table.push_back(static_cast<int32_t>(i));
    }
    return model;
  }

  // Logits of the rows [begin, end) of one text, given those before.
  absl::StatusOr<ConstFloatMatrix> Step(const std::vector<int32_t>& token_ids,
                                        size_t begin, size_t end) {
    if (cluster->dispatcher() != nullptr) {
      cluster->dispatcher()->set_policies({PolicyRows{end - begin, fallback}});
    }
    return cluster->runner().Forward(
        SequenceBatch(token_ids, begin, end, block_table),
        cluster->dispatcher(), [](auto) { return absl::OkStatus(); });
  }
};

std::vector<std::string> Documents(const PerplexityOptions& options) {
  std::vector<std::string> documents;
  for (const absl::string_view part :
       absl::StrSplit(options.text, "<|endoftext|>")) {
    const absl::string_view text = absl::StripAsciiWhitespace(part);
    if (text.empty()) continue;
    documents.emplace_back(text);
    if (documents.size() == options.max_documents) break;
  }
  return documents;
}

void CountCopies(LocalCluster& cluster, size_t num_tokens,
                 v1::CopyUsage& copies) {
  if (cluster.dispatcher() == nullptr) return;
  const ModelConfig& config = cluster.config();
  const auto num_layers = static_cast<uint64_t>(
      std::count(config.is_moe_layer.begin(), config.is_moe_layer.end(), true));
  uint64_t next_best = 0;
  uint64_t dropped = 0;
  for (const FatedCopy& copy : cluster.dispatcher()->fates()) {
    next_best += copy.fate == CopyFate::kNextBest;
    dropped += copy.fate == CopyFate::kDropped;
  }
  copies.set_computed_tokens(copies.computed_tokens() + num_tokens);
  copies.set_next_best(copies.next_best() + next_best);
  copies.set_dropped(copies.dropped() + dropped);
  copies.set_first_choice(copies.first_choice() - next_best - dropped +
                          num_tokens * num_layers * config.top_k);
}

size_t Best(std::span<const float> row) {
  return static_cast<size_t>(std::max_element(row.begin(), row.end()) -
                             row.begin());
}

// Sum over tokens of p log(p / q), p the reference.
double Divergence(std::span<const float> reference,
                  std::span<const float> logits) {
  const double reference_sum = LogSumExp(reference);
  const double sum = LogSumExp(logits);
  double divergence = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double log_p = reference[i] - reference_sum;
    divergence += std::exp(log_p) * (log_p - (logits[i] - sum));
  }
  return divergence;
}

}  // namespace

absl::StatusOr<PerplexityResult> MeasurePerplexity(
    const PerplexityOptions& options) {
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<const Tokenizer> tokenizer,
                        Tokenizer::Load(options.model_dir));
  LocalClusterOptions cluster;
  cluster.capacity_factor = options.capacity_factor;
  cluster.refuse = options.refuse;
  ABSL_ASSIGN_OR_RETURN(Model model, Model::Load(options.model_dir,
                                                 options.num_threads, cluster));
  model.fallback = options.fallback;
  Model reference;
  if (!options.reference_dir.empty()) {
    ABSL_ASSIGN_OR_RETURN(
        reference, Model::Load(options.reference_dir, options.num_threads));
    if (reference.cluster->config().vocab_size !=
        model.cluster->config().vocab_size) {
      return absl::InvalidArgumentError(options.reference_dir +
                                        ": has another vocabulary");
    }
  }
  const size_t context =
      std::min(kMaxContext, model.cluster->config().max_position_embeddings);
  PerplexityResult result;
  double nats = 0;
  double divergence = 0;
  size_t same_best = 0;
  for (const std::string& document : Documents(options)) {
    ABSL_ASSIGN_OR_RETURN(std::vector<int32_t> token_ids,
                          tokenizer->Encode(document, {}));
    token_ids.resize(std::min(token_ids.size(), context));
    if (token_ids.size() < 2) continue;
    ++result.num_documents;
    // The last token predicts nothing that is known.
    const size_t num_rows = token_ids.size() - 1;
    for (size_t begin = 0; begin < num_rows; begin += kStepRows) {
      const size_t end = std::min(begin + kStepRows, num_rows);
      ABSL_ASSIGN_OR_RETURN(const ConstFloatMatrix logits,
                            model.Step(token_ids, begin, end));
      CountCopies(*model.cluster, end - begin, result.copies);
      ConstFloatMatrix others;
      if (reference.cluster != nullptr) {
        ABSL_ASSIGN_OR_RETURN(others, reference.Step(token_ids, begin, end));
      }
      for (size_t i = 0; i < end - begin; ++i) {
        const std::span<const float> row(logits.row(i), logits.cols);
        nats += LogSumExp(row) - row[token_ids[begin + i + 1]];
        if (reference.cluster == nullptr) continue;
        const std::span<const float> other(others.row(i), others.cols);
        divergence += Divergence(other, row);
        same_best += Best(row) == Best(other);
      }
      result.num_tokens += end - begin;
    }
  }
  if (result.num_tokens == 0) {
    return absl::InvalidArgumentError("the text has no token to predict");
  }
  const double count = static_cast<double>(result.num_tokens);
  result.nats_per_token = nats / count;
  result.perplexity = std::exp(result.nats_per_token);
  result.divergence = divergence / count;
  result.same_best = static_cast<double>(same_best) / count;
  return result;
}

}  // namespace troupe
