// One choice of a generation: what is known of it, and how it is told.
#ifndef TROUPE_GATEWAY_GENERATION_CHOICE_H_
#define TROUPE_GATEWAY_GENERATION_CHOICE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "gateway/choice_text.h"
#include "gateway/router_attempt.h"
#include "model/tokenizer/tokenizer.h"
#include "protos/gateway.pb.h"
#include "protos/router.pb.h"

namespace troupe {

struct GenerationChoice {
  v1::RouterGenerateRequest plan;
  std::vector<uint64_t> prefix;  // PrefixHashes of the prompt
  std::unique_ptr<ChoiceText> text;
  std::vector<uint32_t> generated;
  SteadyTime last_token = kNoDeadline;  // when it came; kNoDeadline: none
  bool echoed = false;
  bool done = false;
  uint32_t moves = 0;
  int failures = 0;
  size_t tokens_at_failure = 0;      // generated when it was counted
  std::vector<uint64_t> refused_by;  // router ids
  v1::RouterUsage usage;             // of the last attempt
  v1::CopyUsage copies_of_earlier;   // attempts, as far as they were told
  uint32_t moved_before = 0;         // experts_moved_version of earlier ones
  RouterAttempt* attempt = nullptr;  // deletes itself
  uint64_t attempt_id = 0;           // of that one; pointers come again
  uint64_t heard_attempt_id = 0;     // that the newest response came from
  // Of the pool's call that is awaited, 0: none. With an attempt: its router
  // is to be left as soon as there is another, `doubtful` if the attempt may
  // not get on meanwhile.
  uint64_t wait_id = 0;
  bool doubtful = false;
  std::string leave_reason;
};

// A token as clients see it; its log-probabilities only with has_logprob.
v1::GeneratedToken DescribeToken(const Tokenizer& tokenizer,
                                 const v1::TokenOutput& token,
                                 bool has_logprob);

// The responses that repeat the prompt: all of its text in the first, few
// enough tokens in each. Log-probabilities if the router's response has them.
std::vector<v1::GenerateResponse> EchoPrompt(
    const v1::GenerateRequest& request, const Tokenizer& tokenizer,
    const v1::RouterGenerateRequest& plan,
    const v1::RouterGenerateResponse& response);

// The sum of the choices; what only the call knows is not set.
v1::Usage SumUsage(const std::vector<GenerationChoice>& choices,
                   size_t num_prompt_tokens);

uint32_t NumMoves(const std::vector<GenerationChoice>& choices);
size_t NumGenerated(const std::vector<GenerationChoice>& choices);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GENERATION_CHOICE_H_
