#include "gateway/generate_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cluster/fallback_policy.h"
#include "common/status_macros.h"
#include "gateway/choice_seed.h"

namespace troupe {
namespace {

constexpr uint32_t kMaxChoices = 16;
constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int kMaxStopTokenIds = 256;
constexpr uint32_t kMaxTopLogprobs = 20;
constexpr size_t kMaxLogitBiases = 1024;
constexpr size_t kMaxRequestIdBytes = 128;

// Zero is allowed, too: it stands for the default. Not-a-number is in no
// range.
absl::Status CheckRange(absl::string_view field, float value, float low,
                        float high) {
  if (value == 0.0f || (value >= low && value <= high)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, "; allowed: ", low, " to ", high));
}

absl::Status CheckAtMost(absl::string_view field, uint64_t value,
                         uint64_t limit) {
  if (value <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, "; allowed: at most ", limit));
}

absl::Status CheckTokenId(absl::string_view field, uint32_t token_id,
                          const ModelConfig& config) {
  if (token_id < config.vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", token_id,
                                                 "; the vocabulary has ",
                                                 config.vocab_size, " tokens"));
}

absl::Status CheckPrompt(const v1::GenerateRequest& request,
                         const ModelConfig& config,
                         const RequestLimits& limits) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
      return CheckAtMost("text: its length in bytes", request.text().size(),
                         limits.max_prompt_bytes);
    case v1::GenerateRequest::kTokens: {
      const auto& token_ids = request.tokens().token_ids();
      for (int i = 0; i < token_ids.size(); ++i) {
        ABSL_RETURN_IF_ERROR(CheckTokenId(
            absl::StrCat("tokens.token_ids[", i, "]"), token_ids[i], config));
      }
      return absl::OkStatus();
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "prompt is missing: set either text or tokens");
}

absl::Status CheckSampling(const v1::SamplingParams& sampling,
                           const ModelConfig& config) {
  ABSL_RETURN_IF_ERROR(
      CheckRange("sampling.temperature", sampling.temperature(), 0.0f, 100.0f));
  ABSL_RETURN_IF_ERROR(
      CheckRange("sampling.top_p", sampling.top_p(), 0.0f, 1.0f));
  ABSL_RETURN_IF_ERROR(
      CheckRange("sampling.min_p", sampling.min_p(), 0.0f, 1.0f));
  ABSL_RETURN_IF_ERROR(CheckRange("sampling.repetition_penalty",
                                  sampling.repetition_penalty(), 0.01f,
                                  100.0f));
  ABSL_RETURN_IF_ERROR(CheckRange("sampling.presence_penalty",
                                  sampling.presence_penalty(), -2.0f, 2.0f));
  ABSL_RETURN_IF_ERROR(CheckRange("sampling.frequency_penalty",
                                  sampling.frequency_penalty(), -2.0f, 2.0f));
  ABSL_RETURN_IF_ERROR(CheckAtMost("sampling.logit_bias: its size",
                                   sampling.logit_bias().size(),
                                   kMaxLogitBiases));
  for (const auto& [token_id, bias] : sampling.logit_bias()) {
    ABSL_RETURN_IF_ERROR(
        CheckTokenId("sampling.logit_bias: a key", token_id, config));
    ABSL_RETURN_IF_ERROR(
        CheckRange(absl::StrCat("sampling.logit_bias[", token_id, "]"), bias,
                   -100.0f, 100.0f));
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const v1::GenerateRequest& request,
                        const ModelConfig& config) {
  ABSL_RETURN_IF_ERROR(
      CheckAtMost("stop: its size", request.stop_size(), kMaxStops));
  for (int i = 0; i < request.stop_size(); ++i) {
    if (request.stop(i).empty()) {
      return absl::InvalidArgumentError(absl::StrCat("stop[", i, "] is empty"));
    }
    ABSL_RETURN_IF_ERROR(
        CheckAtMost(absl::StrCat("stop[", i, "]: its length in bytes"),
                    request.stop(i).size(), kMaxStopBytes));
  }
  ABSL_RETURN_IF_ERROR(CheckAtMost("stop_token_ids: its size",
                                   request.stop_token_ids_size(),
                                   kMaxStopTokenIds));
  for (int i = 0; i < request.stop_token_ids_size(); ++i) {
    ABSL_RETURN_IF_ERROR(CheckTokenId(absl::StrCat("stop_token_ids[", i, "]"),
                                      request.stop_token_ids(i), config));
  }
  return absl::OkStatus();
}

// It goes into logs.
absl::Status CheckRequestId(const std::string& request_id) {
  ABSL_RETURN_IF_ERROR(CheckAtMost("request_id: its length in bytes",
                                   request_id.size(), kMaxRequestIdBytes));
  for (const char c : request_id) {
    if (c <= ' ' || c > '~') {
      return absl::InvalidArgumentError(
          "request_id holds a character that is not visible ASCII");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckGenerateRequest(const v1::GenerateRequest& request,
                                  const ServedModel& model,
                                  const RequestLimits& limits) {
  if (!request.model().empty() && request.model() != model.name) {
    return absl::NotFoundError(absl::StrCat(
        "model is \"", request.model(), "\"; served: \"", model.name, "\""));
  }
  const ModelConfig& config = model.config;
  ABSL_RETURN_IF_ERROR(CheckRequestId(request.request_id()));
  ABSL_RETURN_IF_ERROR(CheckPrompt(request, config, limits));
  ABSL_RETURN_IF_ERROR(CheckSampling(request.sampling(), config));
  ABSL_RETURN_IF_ERROR(CheckStops(request, config));
  ABSL_RETURN_IF_ERROR(CheckAtMost("n", request.n(), kMaxChoices));
  ABSL_RETURN_IF_ERROR(
      CheckAtMost("top_logprobs", request.top_logprobs(), kMaxTopLogprobs));
  if (request.top_logprobs() > 0 && !request.logprobs()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "top_logprobs is ", request.top_logprobs(), ", but logprobs is false"));
  }
  ABSL_RETURN_IF_ERROR(FromProto(request.fallback(), {}).status());
  if (request.max_tokens() > 0 && request.min_tokens() > request.max_tokens()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "min_tokens is ", request.min_tokens(),
        ", more than max_tokens, which is ", request.max_tokens()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint32_t>> EncodePrompt(
    const v1::GenerateRequest& request, const Tokenizer& tokenizer) {
  if (request.has_tokens()) {
    const auto& token_ids = request.tokens().token_ids();
    return std::vector<uint32_t>(token_ids.begin(), token_ids.end());
  }
  const Tokenizer::EncodeOptions options{
      .add_special_tokens = !request.no_special_tokens(),
      .parse_special = request.parse_special()};
  ABSL_ASSIGN_OR_RETURN(const std::vector<int32_t> token_ids,
                        tokenizer.Encode(request.text(), options));
  return std::vector<uint32_t>(token_ids.begin(), token_ids.end());
}

absl::StatusOr<uint32_t> FitContext(size_t num_prompt_tokens,
                                    uint32_t max_tokens, uint32_t max_context,
                                    const RequestLimits& limits) {
  if (num_prompt_tokens == 0) {
    return absl::InvalidArgumentError(
        "prompt has 0 tokens; at least 1 is needed");
  }
  if (limits.max_prompt_tokens > 0 &&
      num_prompt_tokens > limits.max_prompt_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt has ", num_prompt_tokens, " tokens, this gateway allows ",
        limits.max_prompt_tokens));
  }
  if (num_prompt_tokens >= max_context) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt has ", num_prompt_tokens, " tokens, the context is ",
        max_context, " (prompt and at least one new token)"));
  }
  const auto room = static_cast<uint32_t>(max_context - num_prompt_tokens);
  if (max_tokens > room) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt has ", num_prompt_tokens, " tokens and max_tokens is ",
        max_tokens, ", together ", num_prompt_tokens + max_tokens,
        "; the context is ", max_context));
  }
  return max_tokens > 0 ? max_tokens : room;
}

v1::RouterGenerateRequest PlanChoice(
    const v1::GenerateRequest& request, const ServedModel& model,
    const std::vector<uint32_t>& prompt_token_ids, uint32_t max_tokens,
    uint64_t seed, const std::string& request_id, uint32_t index) {
  v1::RouterGenerateRequest plan;
  plan.set_request_id(NumChoices(request) > 1
                          ? absl::StrCat(request_id, ".", index)
                          : request_id);
  plan.mutable_prompt_token_ids()->Add(prompt_token_ids.begin(),
                                       prompt_token_ids.end());
  *plan.mutable_sampling() =
      request.has_sampling() ? request.sampling() : model.default_sampling;
  plan.mutable_sampling()->set_seed(ChoiceSeed(seed, index));
  plan.set_max_tokens(max_tokens);
  std::vector<uint32_t> stops(request.stop_token_ids().begin(),
                              request.stop_token_ids().end());
  if (!request.ignore_eos()) {
    stops.insert(stops.end(), model.config.eos_token_ids.begin(),
                 model.config.eos_token_ids.end());
  }
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  plan.mutable_stop_token_ids()->Add(stops.begin(), stops.end());
  plan.set_min_tokens(std::min(request.min_tokens(), max_tokens));
  plan.set_logprobs(request.logprobs());
  plan.set_top_logprobs(request.top_logprobs());
  plan.set_prompt_logprobs(request.echo() && request.logprobs());
  if (request.has_fallback()) *plan.mutable_fallback() = request.fallback();
  return plan;
}

ChoiceTextOptions PlanText(const v1::GenerateRequest& request) {
  return {.stop = {request.stop().begin(), request.stop().end()},
          .include_stop = request.include_stop(),
          .keep_special_tokens = request.keep_special_tokens(),
          .min_tokens = request.min_tokens()};
}

uint32_t NumChoices(const v1::GenerateRequest& request) {
  return std::max(request.n(), 1u);
}

}  // namespace troupe
