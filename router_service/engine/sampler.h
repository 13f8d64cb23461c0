// From logits to the next token.
#ifndef TROUPE_ROUTER_SERVICE_ENGINE_SAMPLER_H_
#define TROUPE_ROUTER_SERVICE_ENGINE_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace troupe {

// How the next token is chosen; see SamplingParams in protos/router.proto.
struct SamplingOptions {
  float temperature = 0.0f;  // 0 = greedy
  uint32_t top_k = 0;        // 0 = all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;
};

// A uniform number in [0, 1), a function of (seed, position) alone
// (SplitMix64 of both; the upper 53 bits).
double UniformAt(uint64_t seed, uint64_t position);

// Chooses a token by `logits` [vocab_size]. `tokens` is prompt and output so
// far, the output from `prompt_length` on; `position` that of the new token.
// Tokens of `forbidden` are not chosen.
// Order: logit bias, penalties, forbidden, temperature, top_k, top_p, min_p;
// ties go to the lower id. Equal arguments give equal results.
int32_t SampleToken(std::span<const float> logits,
                    const SamplingOptions& options,
                    std::span<const int32_t> tokens, size_t prompt_length,
                    std::span<const int32_t> forbidden, uint64_t position);

struct TokenLogprobValue {
  int32_t token_id = 0;
  float logprob = 0.0f;
};

// Natural log-probability of `token_id` by the model's logits (before
// temperature and penalties), and the `num_top` most probable tokens.
struct LogprobResult {
  float logprob = 0.0f;
  std::vector<TokenLogprobValue> top;
};
LogprobResult ComputeLogprob(std::span<const float> logits, int32_t token_id,
                             size_t num_top);

}  // namespace troupe

#endif  // TROUPE_ROUTER_SERVICE_ENGINE_SAMPLER_H_
