// What a client asked for, checked and in the words of the router: pure
// functions of the request and the model.
#ifndef TROUPE_GATEWAY_GENERATE_PLAN_H_
#define TROUPE_GATEWAY_GENERATE_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gateway/choice_text.h"
#include "gateway/served_model.h"
#include "protos/gateway.pb.h"
#include "protos/router.pb.h"

namespace troupe {

struct RequestLimits {
  // A longer prompt is refused before it is tokenized.
  size_t max_prompt_bytes = size_t{4} << 20;
  // 0: as many as the context holds.
  uint32_t max_prompt_tokens = 0;
};

// Checks everything but the number of prompt tokens. InvalidArgument names the
// field and its value; NotFound for another model.
absl::Status CheckGenerateRequest(const v1::GenerateRequest& request,
                                  const ServedModel& model,
                                  const RequestLimits& limits);

// The tokens of the prompt. Takes time with long texts.
absl::StatusOr<std::vector<uint32_t>> EncodePrompt(
    const v1::GenerateRequest& request, const Tokenizer& tokenizer);

// Tokens to generate at most: what was asked for, which must fit the context
// together with the prompt, or all the room there is when it is 0.
// InvalidArgument has both numbers.
absl::StatusOr<uint32_t> FitContext(size_t num_prompt_tokens,
                                    uint32_t max_tokens, uint32_t max_context,
                                    const RequestLimits& limits);

// The call to a router for choice `index`, but for generated_token_ids.
v1::RouterGenerateRequest PlanChoice(
    const v1::GenerateRequest& request, const ServedModel& model,
    const std::vector<uint32_t>& prompt_token_ids, uint32_t max_tokens,
    uint64_t seed, const std::string& request_id, uint32_t index);

ChoiceTextOptions PlanText(const v1::GenerateRequest& request);

// Choices that the request asks for, at least 1.
uint32_t NumChoices(const v1::GenerateRequest& request);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GENERATE_PLAN_H_
