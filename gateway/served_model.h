// What a gateway knows of the model that it serves.
#ifndef TROUPE_GATEWAY_SERVED_MODEL_H_
#define TROUPE_GATEWAY_SERVED_MODEL_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "model/chat_template/chat_template.h"
#include "model/config.h"
#include "model/tokenizer/tokenizer.h"
#include "protos/gateway.pb.h"

namespace troupe {

// Name, configuration and tokenizer of a checkpoint; no weights. Immutable.
struct ServedModel {
  std::string name;
  ModelConfig config;
  std::string fingerprint;  // Checkpoint::fingerprint
  std::unique_ptr<const Tokenizer> tokenizer;
  std::string chat_template;  // Jinja text; empty when there is none
  std::optional<ChatTemplate> compiled_chat_template;  // of chat_template
  v1::SamplingParams default_sampling;
};

// Reads config.json, generation_config.json, the headers of the weights (for
// the fingerprint), the tokenizer and the chat template of a checkpoint folder.
// Errors name the file, and what a chat template asks for that cannot be run.
absl::StatusOr<ServedModel> LoadServedModel(const std::string& model_dir,
                                            const std::string& name);

// The sampling of a request that does not say any. Greedy unless the
// checkpoint asks for sampling, by do_sample or by naming a temperature, top_k,
// top_p or min_p without do_sample.
v1::SamplingParams DefaultSampling(const GenerationDefaults& defaults);

v1::ModelInfo DescribeModel(const ServedModel& model);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_SERVED_MODEL_H_
