// A request of the OpenAI API, in the words of the gateway: pure functions of
// its JSON and the model.
#ifndef TROUPE_GATEWAY_OPENAI_OPENAI_REQUEST_H_
#define TROUPE_GATEWAY_OPENAI_OPENAI_REQUEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/served_model.h"
#include "nlohmann/json.hpp"
#include "protos/gateway.pb.h"

namespace troupe {

struct OpenAiRequest {
  bool is_chat = false;
  // One per prompt; those of a chat have no prompt yet.
  std::vector<v1::GenerateRequest> generations;
  uint32_t n = 1;  // choices per prompt
  bool stream = false;
  bool include_usage = false;     // as the last event of a stream
  bool continuous_usage = false;  // in every event
  bool logprobs = false;
  bool echo = false;
  // max_tokens was 0: a token is made, since a router makes one, but not told.
  bool only_prompt = false;
  bool return_token_ids = false;

  // Of a chat.
  nlohmann::json messages;
  nlohmann::json template_variables = nlohmann::json::object();
  bool add_generation_prompt = true;
};

// Bodies of POST /v1/completions and /v1/chat/completions. Fields that are
// unknown are ignored; those that are known but cannot be honoured are errors,
// which name the field. Ranges that the gateway checks for all of its clients
// (CheckGenerateRequest) are not checked here.
absl::StatusOr<OpenAiRequest> ParseCompletion(const nlohmann::json& body,
                                              const ServedModel& model);
absl::StatusOr<OpenAiRequest> ParseChat(const nlohmann::json& body,
                                        const ServedModel& model);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_OPENAI_OPENAI_REQUEST_H_
