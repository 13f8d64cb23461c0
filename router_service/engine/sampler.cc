#include "router_service/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "common/check.h"
#include "kernels/elementwise.h"

namespace troupe {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (2014).
uint64_t SplitMix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

bool HasPenalties(const SamplingOptions& options) {
  return options.repetition_penalty != 1.0f ||
         options.presence_penalty != 0.0f || options.frequency_penalty != 0.0f;
}

void ApplyPenalties(std::span<float> logits, const SamplingOptions& options,
                    std::span<const int32_t> tokens, size_t prompt_length) {
  const bool repetition = options.repetition_penalty != 1.0f;
  std::unordered_map<int32_t, uint32_t> output_count;  // 0: prompt only
  for (size_t i = 0; i < tokens.size(); ++i) {
    output_count[tokens[i]] += i >= prompt_length ? 1 : 0;
  }
  for (const auto& [token, count] : output_count) {
    float& logit = logits[static_cast<size_t>(token)];
    if (repetition) {
      logit = logit > 0.0f ? logit / options.repetition_penalty
                           : logit * options.repetition_penalty;
    }
    if (count > 0) {
      logit -= options.presence_penalty +
               options.frequency_penalty * static_cast<float>(count);
    }
  }
}

}  // namespace

double UniformAt(uint64_t seed, uint64_t position) {
  const uint64_t bits = SplitMix64(SplitMix64(seed) ^ position);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

int32_t SampleToken(std::span<const float> logits,
                    const SamplingOptions& options,
                    std::span<const int32_t> tokens, size_t prompt_length,
                    std::span<const int32_t> forbidden, uint64_t position) {
  std::vector<float> changed;
  if (!options.logit_bias.empty() || HasPenalties(options) ||
      !forbidden.empty()) {
    changed.assign(logits.begin(), logits.end());
    for (const auto& [token, bias] : options.logit_bias) {
      changed[static_cast<size_t>(token)] += bias;
    }
    if (HasPenalties(options)) {
      ApplyPenalties(changed, options, tokens, prompt_length);
    }
    for (const int32_t token : forbidden) {
      changed[static_cast<size_t>(token)] = kForbidden;
    }
    logits = changed;
  }
  const auto best = static_cast<int32_t>(ArgMax(logits));
  if (options.temperature == 0.0f) return best;

  // Weights relative to the best token: exp((logit - best) / temperature).
  const double best_logit = logits[static_cast<size_t>(best)];
  const double inverse_temperature =
      1.0 / static_cast<double>(options.temperature);
  if (!std::isfinite(best_logit)) return best;
  std::vector<int32_t> candidates(logits.size());
  std::iota(candidates.begin(), candidates.end(), 0);
  std::vector<double> weights(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp(
        (static_cast<double>(logits[i]) - best_logit) * inverse_temperature);
    weights[i] = weight == weight ? weight : 0.0;  // NaN logits weigh nothing
  }
  const bool use_top_k = options.top_k > 0 && options.top_k < logits.size();
  const bool use_top_p = options.top_p > 0.0f && options.top_p < 1.0f;
  if (use_top_k || use_top_p) {
    const auto better = [&weights](int32_t a, int32_t b) {
      const double wa = weights[static_cast<size_t>(a)];
      const double wb = weights[static_cast<size_t>(b)];
      return wa != wb ? wa > wb : a < b;
    };
    if (use_top_k) {
      std::partial_sort(candidates.begin(), candidates.begin() + options.top_k,
                        candidates.end(), better);
      candidates.resize(options.top_k);
    } else {
      // Tokens this unlikely cannot be reached by top_p, and sorting the whole
      // vocabulary would cost more than the rest together.
      const double tail = (1.0 - static_cast<double>(options.top_p)) /
                          static_cast<double>(logits.size());
      candidates.erase(
          std::remove_if(candidates.begin(), candidates.end(),
                         [&](int32_t token) {
                           return weights[static_cast<size_t>(token)] < tail;
                         }),
          candidates.end());
      std::sort(candidates.begin(), candidates.end(), better);
    }
    if (use_top_p) {
      double total = 0.0;
      if (use_top_k) {
        for (const int32_t token : candidates) {
          total += weights[static_cast<size_t>(token)];
        }
      } else {
        for (const double weight : weights) total += weight;
      }
      const double limit = static_cast<double>(options.top_p) * total;
      double sum = 0.0;
      size_t keep = 0;
      while (keep < candidates.size() && sum < limit) {
        sum += weights[static_cast<size_t>(candidates[keep++])];
      }
      candidates.resize(std::max<size_t>(keep, 1));
    }
  }
  if (options.min_p > 0.0f) {
    // The best token weighs 1.
    candidates.erase(
        std::remove_if(candidates.begin(), candidates.end(),
                       [&](int32_t token) {
                         return weights[static_cast<size_t>(token)] <
                                static_cast<double>(options.min_p);
                       }),
        candidates.end());
  }

  double total = 0.0;
  for (const int32_t token : candidates) {
    total += weights[static_cast<size_t>(token)];
  }
  const double target = UniformAt(options.seed, position) * total;
  double sum = 0.0;
  int32_t chosen = best;
  for (const int32_t token : candidates) {
    const double weight = weights[static_cast<size_t>(token)];
    if (weight == 0.0) continue;
    chosen = token;  // rounding may leave the sum just below the target
    sum += weight;
    if (sum > target) break;
  }
  return chosen;
}

LogprobResult ComputeLogprob(std::span<const float> logits, int32_t token_id,
                             size_t num_top) {
  CHECK_LT(static_cast<size_t>(token_id), logits.size());
  const double log_sum = LogSumExp(logits);
  const auto logprob = [&](int32_t token) {
    return static_cast<float>(
        static_cast<double>(logits[static_cast<size_t>(token)]) - log_sum);
  };
  LogprobResult result;
  result.logprob = logprob(token_id);
  num_top = std::min(num_top, logits.size());
  if (num_top > 0) {
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto better = [logits](int32_t a, int32_t b) {
      const float la = logits[static_cast<size_t>(a)];
      const float lb = logits[static_cast<size_t>(b)];
      const bool a_nan = la != la;
      const bool b_nan = lb != lb;
      if (a_nan != b_nan) return b_nan;  // NaN last
      return !a_nan && la != lb ? la > lb : a < b;
    };
    std::partial_sort(order.begin(), order.begin() + num_top, order.end(),
                      better);
    for (size_t i = 0; i < num_top; ++i) {
      result.top.push_back({order[i], logprob(order[i])});
    }
  }
  return result;
}

}  // namespace troupe
