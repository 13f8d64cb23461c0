#include "gateway/served_model.h"

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

// Empty when the file does not exist.
std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A text, or a list of named texts of which "default" counts.
absl::StatusOr<std::string> TemplateOf(const nlohmann::json& value,
                                       const std::string& path) {
  if (value.is_null()) return std::string();
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    for (const nlohmann::json& entry : value) {
      if (entry.is_object() && entry.value("name", "") == "default" &&
          entry.contains("template") && entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
    return std::string();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": chat_template is neither a text nor a list"));
}

// chat_template.jinja, else the key of tokenizer_config.json.
absl::StatusOr<std::string> LoadChatTemplate(const std::string& model_dir) {
  std::string text = ReadText(absl::StrCat(model_dir, "/chat_template.jinja"));
  if (!text.empty()) return text;
  const std::string path = absl::StrCat(model_dir, "/tokenizer_config.json");
  const std::string config = ReadText(path);
  if (config.empty()) return std::string();
  const nlohmann::json json =
      nlohmann::json::parse(config, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a JSON object"));
  }
  const auto entry = json.find("chat_template");
  if (entry == json.end()) return std::string();
  return TemplateOf(*entry, path);
}

}  // namespace

absl::StatusOr<ServedModel> LoadServedModel(const std::string& model_dir,
                                            const std::string& name) {
  ServedModel model;
  model.name = name;
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                        Checkpoint::Open(model_dir));
  model.config = checkpoint->config();
  model.fingerprint = checkpoint->fingerprint();
  ABSL_ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::Load(model_dir));
  ABSL_ASSIGN_OR_RETURN(model.chat_template, LoadChatTemplate(model_dir));
  model.default_sampling = DefaultSampling(model.config.generation);
  return model;
}

v1::SamplingParams DefaultSampling(const GenerationDefaults& defaults) {
  v1::SamplingParams sampling;
  if (defaults.repetition_penalty) {
    sampling.set_repetition_penalty(*defaults.repetition_penalty);
  }
  const bool sample =
      defaults.do_sample.value_or(defaults.temperature || defaults.top_k ||
                                  defaults.top_p || defaults.min_p);
  if (!sample) return sampling;
  sampling.set_temperature(defaults.temperature.value_or(1.0f));
  sampling.set_top_k(static_cast<uint32_t>(defaults.top_k.value_or(0)));
  sampling.set_top_p(defaults.top_p.value_or(0.0f));
  sampling.set_min_p(defaults.min_p.value_or(0.0f));
  return sampling;
}

v1::ModelInfo DescribeModel(const ServedModel& model) {
  const ModelConfig& config = model.config;
  v1::ModelInfo info;
  info.set_name(model.name);
  info.set_family(config.model_type);
  info.set_fingerprint(model.fingerprint);
  info.set_max_context(static_cast<uint32_t>(config.max_position_embeddings));
  info.set_vocab_size(static_cast<uint32_t>(config.vocab_size));
  info.set_num_layers(static_cast<uint32_t>(config.num_layers));
  info.set_num_experts(static_cast<uint32_t>(config.num_experts));
  info.set_top_k(static_cast<uint32_t>(config.top_k));
  info.set_hidden_size(static_cast<uint32_t>(config.hidden_size));
  info.set_tokenizer(model.tokenizer->name());
  for (const int32_t token_id : config.eos_token_ids) {
    info.add_eos_token_ids(static_cast<uint32_t>(token_id));
  }
  *info.mutable_default_sampling() = model.default_sampling;
  info.set_dtype(Name(config.dtype));
  info.set_chat_template(model.chat_template);
  return info;
}

}  // namespace troupe
