// troupe-logits: the logits of a prompt, position by position, as raw floats.
// For comparing the model's arithmetic with another program's.
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "kernels/cpu_features.h"
#include "tools/bench/local_cluster.h"

namespace troupe {
namespace {

struct Flags {
  std::string model_dir;
  std::string output;              // file; [num_tokens, vocab_size] float32
  std::vector<int32_t> token_ids;  // [num_tokens]
};

absl::Status CheckTokens(const std::vector<int32_t>& token_ids,
                         const ModelConfig& config) {
  for (const int32_t token_id : token_ids) {
    if (token_id < 0 || static_cast<size_t>(token_id) >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("--tokens: ", token_id,
                       " is not below the vocabulary's ", config.vocab_size));
    }
  }
  if (token_ids.size() > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tokens: ", token_ids.size(), " are more than the ",
                     "model's context of ", config.max_position_embeddings));
  }
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  LocalClusterOptions options;
  options.model_dir = flags.model_dir;
  options.router_threads = AvailableThreads();
  options.expert_threads = 0;
  options.num_kv_blocks = flags.token_ids.size() / kKvBlockSize + 1;
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<LocalCluster> cluster,
                        LocalCluster::Start(options));
  ABSL_RETURN_IF_ERROR(CheckTokens(flags.token_ids, cluster->config()));
  std::vector<int32_t> block_table(options.num_kv_blocks);
  std::iota(block_table.begin(), block_table.end(), 0);
  ABSL_ASSIGN_OR_RETURN(
      const ConstFloatMatrix logits,
      cluster->runner().Forward(
          SequenceBatch(flags.token_ids, 0, flags.token_ids.size(),
                        block_table),
          cluster->dispatcher(), [](auto) { return absl::OkStatus(); }));
  std::ofstream file(flags.output, std::ios::binary | std::ios::trunc);
  for (size_t row = 0; row < logits.rows; ++row) {
    file.write(reinterpret_cast<const char*>(logits.row(row)),
               static_cast<std::streamsize>(logits.cols * sizeof(float)));
  }
  file.close();
  if (!file.good()) {
    return absl::UnavailableError(absl::StrCat("cannot write ", flags.output));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::Flags flags;
  CLI::App app("Logits of a prompt, float32 [tokens, vocabulary]");
  app.add_option("MODEL_DIR", flags.model_dir, "Checkpoint")->required();
  app.add_option("OUT", flags.output, "File")->required();
  app.add_option("--tokens", flags.token_ids, "Ids of the prompt")
      ->delimiter(',')
      ->required();
  CLI11_PARSE(app, argc, argv);
  troupe::InitLogging("logits", "warn");
  const std::string missing = troupe::MissingCpuFeatures();
  if (!missing.empty()) {
    std::fprintf(stderr, "%s\n", missing.c_str());
    return 1;
  }
  const absl::Status status = troupe::Run(flags);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}
