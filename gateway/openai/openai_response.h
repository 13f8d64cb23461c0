// The responses of one request of the OpenAI API as JSON: pure functions of
// the gateway's responses.
#ifndef TROUPE_GATEWAY_OPENAI_OPENAI_RESPONSE_H_
#define TROUPE_GATEWAY_OPENAI_OPENAI_RESPONSE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "gateway/openai/openai_request.h"
#include "model/tokenizer/tokenizer.h"
#include "nlohmann/json.hpp"
#include "protos/gateway.pb.h"

namespace troupe {

// Keeps what the choices have said so far: their whole text when the client
// wants no stream, else only where each one is. Refers to the request and the
// tokenizer. One thread at a time.
class OpenAiResponse {
 public:
  // created_s: since the epoch.
  OpenAiResponse(const OpenAiRequest& request, const Tokenizer& tokenizer,
                 std::string request_id, std::string model_name,
                 std::string fingerprint, int64_t created_s);

  // What generation `part` said. For a stream the event's JSON, null when it
  // has nothing to tell; else null.
  nlohmann::json Add(size_t part, const v1::GenerateResponse& response);

  // When all generations have ended: the last event of a stream that asked for
  // it, and the whole response otherwise.
  nlohmann::json UsageEvent() const;
  nlohmann::json Whole() const;

 private:
  struct Choice {
    std::string text;
    nlohmann::json logprobs;  // in the form of the endpoint
    std::vector<uint32_t> token_ids;
    std::string finish_reason;
    std::string stop_reason;
    size_t offset = 0;  // characters that its tokens have made so far
    bool begun = false;
  };

  nlohmann::json Head(const char* chat_object, const char* object) const;
  nlohmann::json Usage() const;
  void AppendLogprobs(const v1::GenerateResponse& response, Choice& choice,
                      nlohmann::json& logprobs) const;
  nlohmann::json ChatLogprob(const std::string& text, uint32_t token_id,
                             float logprob) const;
  nlohmann::json ChoiceJson(size_t index, const Choice& choice) const;

  const OpenAiRequest& request_;
  const Tokenizer& tokenizer_;
  const std::string request_id_;
  const std::string model_name_;
  const std::string fingerprint_;
  const int64_t created_s_;
  std::vector<Choice> choices_;                              // [prompts, n]
  std::vector<v1::Usage> usages_;                            // [prompts]
  std::vector<uint32_t> prompt_tokens_, completion_tokens_;  // so far
};

// The account of what became of routed copies, in usage.troupe.
nlohmann::json CopiesJson(const v1::CopyUsage& copies);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_OPENAI_OPENAI_RESPONSE_H_
