#include "gateway/served_model.h"

#include <utility>

#include "common/status_macros.h"
#include "model/chat_template/chat_template_files.h"
#include "model/checkpoint.h"

namespace troupe {
absl::StatusOr<ServedModel> LoadServedModel(const std::string& model_dir,
                                            const std::string& name) {
  ServedModel model;
  model.name = name;
  ABSL_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                        Checkpoint::Open(model_dir));
  model.config = checkpoint->config();
  model.fingerprint = checkpoint->fingerprint();
  ABSL_ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::Load(model_dir));
  ABSL_ASSIGN_OR_RETURN(std::optional<LoadedChatTemplate> chat_template,
                        LoadChatTemplate(model_dir));
  if (chat_template) {
    model.chat_template = std::move(chat_template->source);
    model.compiled_chat_template = std::move(chat_template->compiled);
  }
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
