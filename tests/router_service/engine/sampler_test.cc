#include "router_service/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Arguments {
  std::vector<float> logits;
  SamplingOptions options;
  std::vector<int32_t> tokens;
  size_t prompt_length = 0;
  std::vector<int32_t> forbidden;
};

int32_t Sample(const Arguments& a, uint64_t position = 0) {
  return SampleToken(a.logits, a.options, a.tokens, a.prompt_length,
                     a.forbidden, position);
}

// The rule, slowly: what probability each token has. Everything that the
// sampler does in clever ways is done here one step at a time, in long double.
std::vector<double> Probabilities(const Arguments& a) {
  const SamplingOptions& o = a.options;
  const size_t n = a.logits.size();
  std::vector<long double> logits(a.logits.begin(), a.logits.end());
  for (const auto& [token, bias] : o.logit_bias) logits[token] += bias;
  for (size_t token = 0; token < n; ++token) {
    const auto id = static_cast<int32_t>(token);
    const auto count = static_cast<long double>(
        std::count(a.tokens.begin() + static_cast<ptrdiff_t>(a.prompt_length),
                   a.tokens.end(), id));
    const bool seen =
        std::find(a.tokens.begin(), a.tokens.end(), id) != a.tokens.end();
    if (seen && logits[token] > 0) logits[token] /= o.repetition_penalty;
    if (seen && logits[token] < 0) logits[token] *= o.repetition_penalty;
    if (count > 0) logits[token] -= o.presence_penalty;
    logits[token] -= o.frequency_penalty * count;
  }
  for (const int32_t token : a.forbidden) logits[token] = -kInfinity;

  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t x, size_t y) { return logits[x] > logits[y]; });
  std::vector<double> probabilities(n, 0.0);
  if (o.temperature == 0.0f) {
    probabilities[order[0]] = 1.0;
    return probabilities;
  }
  if (o.top_k > 0 && o.top_k < n) order.resize(o.top_k);
  std::vector<long double> weights(n, 0.0L);
  long double total = 0;
  for (const size_t token : order) {
    weights[token] =
        std::exp((logits[token] - logits[order[0]]) / o.temperature);
    total += weights[token];
  }
  if (o.top_p > 0.0f && o.top_p < 1.0f) {
    long double sum = 0;
    size_t keep = 0;
    while (keep < order.size() && sum < o.top_p * total) {
      sum += weights[order[keep++]];
    }
    order.resize(keep);
  }
  std::erase_if(order, [&](size_t token) { return weights[token] < o.min_p; });
  total = 0;
  for (const size_t token : order) total += weights[token];
  for (const size_t token : order) {
    probabilities[token] = static_cast<double>(weights[token] / total);
  }
  return probabilities;
}

// Draws `draws` tokens, one per position, and compares with the probabilities:
// no token of probability 0, and chi-square of those with enough expected
// draws. With k degrees of freedom its mean is k and its variance 2k; the
// seeds are fixed, so the bound of 5 sigma decides once and for all.
void ExpectDistribution(const Arguments& arguments, int draws = 20000) {
  const std::vector<double> p = Probabilities(arguments);
  std::vector<int> count(p.size(), 0);
  for (int i = 0; i < draws; ++i) {
    ++count.at(
        static_cast<size_t>(Sample(arguments, static_cast<uint64_t>(i))));
  }
  double chi_square = 0.0;
  double rest_expected = 0.0;
  double rest_count = 0.0;
  int cells = 0;
  const auto add = [&](double observed, double expected) {
    chi_square += (observed - expected) * (observed - expected) / expected;
    ++cells;
  };
  for (size_t token = 0; token < p.size(); ++token) {
    if (p[token] == 0.0) {
      EXPECT_EQ(count[token], 0) << "token " << token;
    } else if (p[token] * draws < 10) {
      rest_expected += p[token] * draws;
      rest_count += count[token];
    } else {
      add(count[token], p[token] * draws);
    }
  }
  if (rest_expected >= 10) add(rest_count, rest_expected);
  const double degrees = cells - 1;
  if (degrees == 0) {
    EXPECT_LT(chi_square, 1e-6);
  } else {
    EXPECT_LT(chi_square, degrees + 5 * std::sqrt(2 * degrees))
        << degrees << " degrees of freedom";
  }
}

std::vector<float> RandomLogits(size_t n, uint32_t seed, float spread = 2.0f) {
  std::mt19937 random(seed);
  std::vector<float> logits(n);
  for (float& logit : logits) {
    logit =
        spread * (static_cast<float>(random() >> 8) / float{1 << 23} - 1.0f);
  }
  return logits;
}

Arguments With(std::vector<float> logits, float temperature = 1.0f) {
  Arguments a;
  a.logits = std::move(logits);
  a.options.temperature = temperature;
  a.options.seed = 1234;
  return a;
}

TEST(UniformAtTest, IsUniform) {
  constexpr int kCells = 100;
  constexpr int kDraws = 100000;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}}) {
    int count[kCells] = {};
    double previous = 0.5;
    double covariance = 0.0;
    for (uint64_t i = 0; i < kDraws; ++i) {
      const double u = UniformAt(seed, i);
      ASSERT_GE(u, 0.0);
      ASSERT_LT(u, 1.0);
      ++count[static_cast<int>(u * kCells)];
      covariance += (u - 0.5) * (previous - 0.5) / kDraws;
      previous = u;
    }
    double chi_square = 0.0;
    for (const int n : count) {
      const double expected = double{kDraws} / kCells;
      chi_square += (n - expected) * (n - expected) / expected;
    }
    EXPECT_LT(chi_square, 99 + 5 * std::sqrt(2 * 99));
    // Of neighbours: 1/12 times a standard deviation of 1/sqrt(draws).
    EXPECT_LT(std::abs(covariance), 5.0 / 12 / std::sqrt(double{kDraws}));
  }
}

TEST(UniformAtTest, IsAFunctionOfSeedAndPosition) {
  EXPECT_EQ(UniformAt(3, 7), UniformAt(3, 7));
  std::set<double> all;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (uint64_t position = 0; position < 100; ++position) {
      all.insert(UniformAt(seed, position));
    }
  }
  EXPECT_THAT(all, SizeIs(10000));
}

// The numbers are part of the exactness contract: another version of this
// program must draw the same.
TEST(UniformAtTest, TheNumbersStay) {
  // SplitMix64 of Vigna's public-domain splitmix64.c: the first outputs of the
  // state 0 are e220a8397b1dcdaf, 6e789e6aa1b965f4.
  EXPECT_EQ(UniformAt(0, 0xe220a8397b1dcdafu),
            static_cast<double>(0xe220a8397b1dcdafu >> 11) * 0x1p-53);
  EXPECT_EQ(UniformAt(0, 0xe220a8397b1dcdafu ^ 0x9e3779b97f4a7c15u),
            static_cast<double>(0x6e789e6aa1b965f4u >> 11) * 0x1p-53);
}

TEST(SamplerTest, GreedyTakesTheLargestLogit) {
  EXPECT_EQ(Sample(With({0.1f, 3.0f, 2.9f}, 0.0f)), 1);
  EXPECT_EQ(Sample(With({-5.0f, -3.0f, -4.0f}, 0.0f)), 1);
  // The lower id wins a tie.
  EXPECT_EQ(Sample(With({1.0f, 2.0f, 2.0f, 2.0f}, 0.0f)), 1);
  EXPECT_EQ(Sample(With({0.0f, 0.0f}, 0.0f)), 0);
}

TEST(SamplerTest, GreedyIgnoresWhatSamplingNeeds) {
  Arguments a = With({0.1f, 3.0f, 2.9f}, 0.0f);
  a.options.top_k = 3;
  a.options.top_p = 0.1f;
  a.options.min_p = 1.0f;
  for (uint64_t position = 0; position < 20; ++position) {
    EXPECT_EQ(Sample(a, position), 1);
  }
}

TEST(SamplerTest, EqualArgumentsGiveEqualTokens) {
  Arguments a = With(RandomLogits(1000, 1));
  a.options.top_p = 0.95f;
  std::set<int32_t> tokens;
  for (uint64_t position = 0; position < 200; ++position) {
    const int32_t token = Sample(a, position);
    EXPECT_EQ(Sample(a, position), token);
    tokens.insert(token);
  }
  EXPECT_THAT(tokens, SizeIs(testing::Gt(50u)));
  // Another seed, other tokens.
  Arguments b = a;
  b.options.seed = 1235;
  int equal = 0;
  for (uint64_t position = 0; position < 200; ++position) {
    equal += Sample(a, position) == Sample(b, position);
  }
  EXPECT_LT(equal, 40);
}

TEST(SamplerTest, Temperature) {
  for (const float temperature : {0.1f, 0.7f, 1.0f, 2.0f, 100.0f}) {
    SCOPED_TRACE(temperature);
    ExpectDistribution(With(RandomLogits(50, 2), temperature));
  }
}

TEST(SamplerTest, TinyTemperaturesAreGreedy) {
  for (const float temperature :
       {std::numeric_limits<float>::denorm_min(), 1e-38f, 1e-20f}) {
    const Arguments a = With({1.0f, 1.0000001f, 0.5f}, temperature);
    for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(Sample(a, i), 1);
  }
}

TEST(SamplerTest, TopK) {
  for (const uint32_t top_k : {0u, 1u, 2u, 7u, 49u, 50u, 51u, 0xffffffffu}) {
    SCOPED_TRACE(top_k);
    Arguments a = With(RandomLogits(50, 3));
    a.options.top_k = top_k;
    ExpectDistribution(a);
  }
}

TEST(SamplerTest, TopP) {
  for (const float top_p :
       {1e-30f, 0.01f, 0.3f, 0.5f, 0.9f, 0.999f, 0.9999999f, 1.0f, 0.0f}) {
    SCOPED_TRACE(top_p);
    Arguments a = With(RandomLogits(50, 4));
    a.options.top_p = top_p;
    ExpectDistribution(a);
    a.logits = RandomLogits(50, 4, 20.0f);
    ExpectDistribution(a);
  }
}

// The smallest set whose probability reaches top_p.
TEST(SamplerTest, TopPAtItsEdge) {
  // Probabilities 1/2, 1/4, 1/8, 1/8.
  const float half = static_cast<float>(std::log(2.0));
  Arguments a = With({3 * half, 2 * half, half, half});
  const auto tokens = [&](float top_p) {
    a.options.top_p = top_p;
    std::set<int32_t> seen;
    for (uint64_t i = 0; i < 500; ++i) seen.insert(Sample(a, i));
    return seen;
  };
  EXPECT_THAT(tokens(0.49f), ElementsAre(0));
  EXPECT_THAT(tokens(0.51f), ElementsAre(0, 1));
  EXPECT_THAT(tokens(0.74f), ElementsAre(0, 1));
  // Of equal ones the lower id is kept.
  EXPECT_THAT(tokens(0.76f), ElementsAre(0, 1, 2));
  EXPECT_THAT(tokens(0.88f), ElementsAre(0, 1, 2, 3));
}

TEST(SamplerTest, MinP) {
  for (const float min_p : {0.0f, 1e-6f, 0.05f, 0.2f, 0.9f, 1.0f}) {
    SCOPED_TRACE(min_p);
    Arguments a = With(RandomLogits(50, 5));
    a.options.min_p = min_p;
    ExpectDistribution(a);
  }
  // Tokens as probable as the best stay.
  Arguments a = With({1.0f, 2.0f, 2.0f, 0.0f});
  a.options.min_p = 1.0f;
  ExpectDistribution(a);
}

TEST(SamplerTest, AllTruncationsInOrder) {
  for (uint32_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(seed);
    Arguments a = With(RandomLogits(64, 100 + seed, 3.0f), 0.8f);
    a.options.top_k = 5 + 4 * seed;
    a.options.top_p = 0.5f + 0.06f * static_cast<float>(seed);
    a.options.min_p = 0.02f * static_cast<float>(seed % 4);
    ExpectDistribution(a, 5000);
  }
}

TEST(SamplerTest, TopKOfEqualLogitsKeepsTheLowerIds) {
  Arguments a = With(std::vector<float>(20, 1.5f));
  a.options.top_k = 4;
  ExpectDistribution(a);
  a.options.top_p = 0.5f;
  ExpectDistribution(a);
}

TEST(SamplerTest, Penalties) {
  Arguments a = With(RandomLogits(30, 6));
  a.tokens = {1, 2, 3, 3, 3, 4, 5, 5, 6, 29};
  a.prompt_length = 5;  // output: 4, 5, 5, 6, 29
  for (const float repetition : {1.0f, 1.3f, 0.5f}) {
    for (const float presence : {0.0f, 0.9f, -2.0f}) {
      for (const float frequency : {0.0f, 0.4f, -0.7f}) {
        SCOPED_TRACE(absl::StrCat(repetition, " ", presence, " ", frequency));
        a.options.repetition_penalty = repetition;
        a.options.presence_penalty = presence;
        a.options.frequency_penalty = frequency;
        a.options.temperature = 1.0f;
        ExpectDistribution(a, 5000);
        a.options.temperature = 0.0f;
        ExpectDistribution(a, 20);
      }
    }
  }
}

// Presence and frequency count the output alone, repetition the prompt, too.
TEST(SamplerTest, WhatAPenaltyCounts) {
  Arguments a = With({2.0f, 1.9f}, 0.0f);
  a.tokens = {0, 0, 0};
  a.prompt_length = 3;
  a.options.presence_penalty = 2.0f;
  a.options.frequency_penalty = 2.0f;
  EXPECT_EQ(Sample(a), 0);
  a.prompt_length = 2;
  EXPECT_EQ(Sample(a), 1);
  a.options.presence_penalty = a.options.frequency_penalty = 0.0f;
  EXPECT_EQ(Sample(a), 0);
  a.prompt_length = 3;
  a.options.repetition_penalty = 1.1f;
  EXPECT_EQ(Sample(a), 1);
  // Negative logits become smaller, too.
  a.logits = {-1.9f, -2.0f};
  EXPECT_EQ(Sample(a), 1);
}

TEST(SamplerTest, LogitBias) {
  Arguments a = With(RandomLogits(20, 7));
  a.options.logit_bias = {{3, 2.5f}, {7, -100.0f}, {8, 1.0f}};
  ExpectDistribution(a);
  a.options.logit_bias = {{19, 100.0f}};
  ExpectDistribution(a, 100);
  // Before the penalties: a logit that it makes positive is divided.
  Arguments b = With({-1.0f, 0.4f}, 0.0f);
  b.tokens = {0};
  b.options.logit_bias = {{0, 2.0f}};
  b.options.repetition_penalty = 2.0f;
  EXPECT_EQ(Sample(b), 0);
  b.options.repetition_penalty = 3.0f;
  EXPECT_EQ(Sample(b), 1);
}

TEST(SamplerTest, ForbiddenTokensAreNotChosen) {
  Arguments a = With(RandomLogits(20, 8));
  a.forbidden = {0, 5, 5, 19};
  ExpectDistribution(a);
  a.options.logit_bias = {{5, 100.0f}};
  ExpectDistribution(a, 2000);
  a.options.temperature = 0.0f;
  ExpectDistribution(a, 20);
}

TEST(SamplerTest, NaNNeverWins) {
  for (const float temperature : {0.0f, 1.0f}) {
    Arguments a = With({kNaN, 1.0f, kNaN, 0.5f, -kInfinity}, temperature);
    std::set<int32_t> seen;
    for (uint64_t i = 0; i < 200; ++i) seen.insert(Sample(a, i));
    if (temperature == 0.0f) {
      EXPECT_THAT(seen, ElementsAre(1));
    } else {
      EXPECT_THAT(seen, ElementsAre(1, 3));
    }
    a.options.top_k = 4;
    a.options.top_p = 0.99f;
    a.options.min_p = 0.1f;
    for (uint64_t i = 0; i < 200; ++i) {
      EXPECT_TRUE(seen.count(Sample(a, i))) << i;
    }
  }
}

// Nothing sensible can be chosen, but something in range is, every time.
TEST(SamplerTest, HopelessLogitsGiveSomeToken) {
  for (const float temperature : {0.0f, 0.5f}) {
    for (const float value : {kNaN, -kInfinity, kInfinity}) {
      Arguments a = With(std::vector<float>(10, value), temperature);
      a.options.top_k = 3;
      a.options.top_p = 0.5f;
      a.options.min_p = 0.5f;
      for (uint64_t i = 0; i < 20; ++i) {
        const int32_t token = Sample(a, i);
        EXPECT_GE(token, 0);
        EXPECT_LT(token, 10);
      }
    }
  }
  EXPECT_EQ(Sample(With({0.0f, kInfinity, 5.0f})), 1);
  EXPECT_EQ(Sample(With({-kInfinity, -kInfinity, -500.0f})), 2);
}

TEST(SamplerTest, OneToken) {
  Arguments a = With({-3.0f});
  a.options.top_p = 0.3f;
  EXPECT_EQ(Sample(a), 0);
}

TEST(SamplerTest, ExtremeLogitsDoNotOverflow) {
  Arguments a = With({3e38f, 3e38f, -3e38f}, 0.01f);
  ExpectDistribution(a, 2000);
  a.options.top_p = 0.9f;
  ExpectDistribution(a, 2000);
}

// A prefix of the sorted tokens is kept: the shortcut that passes over the
// tail must not change it.
TEST(SamplerTest, TopPOfALargeVocabulary) {
  for (const float spread : {0.001f, 3.0f, 12.0f}) {
    Arguments a = With(RandomLogits(30000, 9, spread));
    a.options.top_p = 0.9f;
    const std::vector<double> p = Probabilities(a);
    std::vector<size_t> kept;
    for (size_t i = 0; i < p.size(); ++i) {
      if (p[i] > 0.0) kept.push_back(i);
    }
    ASSERT_LT(kept.size(), p.size());
    for (uint64_t i = 0; i < 300; ++i) {
      EXPECT_GT(p[static_cast<size_t>(Sample(a, i))], 0.0);
    }
  }
}

// Most of the probability lies in a thousand tokens that are all unlikely.
TEST(SamplerTest, TopPReachesIntoALongTail) {
  std::vector<float> logits(1001, std::log(0.01f));
  logits[500] = 0.0f;
  Arguments a = With(std::move(logits));
  a.options.top_p = 0.5f;
  ExpectDistribution(a);
}

TEST(LogprobTest, AgreesWithLongDouble) {
  for (const float spread : {0.1f, 5.0f, 80.0f}) {
    const std::vector<float> logits = RandomLogits(500, 10, spread);
    long double sum = 0;
    const float max = *std::max_element(logits.begin(), logits.end());
    for (const float logit : logits) {
      sum += std::exp(static_cast<long double>(logit) - max);
    }
    for (const int32_t token : {0, 17, 499}) {
      const long double expected =
          logits[static_cast<size_t>(token)] - max - std::log(sum);
      EXPECT_NEAR(ComputeLogprob(logits, token, 0).logprob,
                  static_cast<double>(expected), 2e-5 * (1 + spread));
    }
  }
}

TEST(LogprobTest, TopTokensInOrder) {
  const std::vector<float> logits = {1.0f, 3.0f, 2.0f, 3.0f, kNaN, -kInfinity};
  std::vector<float> finite = logits;
  finite[4] = -50.0f;
  const LogprobResult result = ComputeLogprob(finite, 2, 4);
  ASSERT_THAT(result.top, SizeIs(4));
  EXPECT_EQ(result.top[0].token_id, 1);
  EXPECT_EQ(result.top[1].token_id, 3);
  EXPECT_EQ(result.top[2].token_id, 2);
  EXPECT_EQ(result.top[3].token_id, 0);
  EXPECT_EQ(result.top[2].logprob, result.logprob);
  EXPECT_EQ(result.top[0].logprob, result.top[1].logprob);
  EXPECT_GT(result.top[1].logprob, result.top[2].logprob);
  EXPECT_THAT(ComputeLogprob(finite, 0, 0).top, SizeIs(0));
  EXPECT_THAT(ComputeLogprob(finite, 0, 100).top, SizeIs(6));
  // NaN comes last, whatever its place.
  EXPECT_EQ(ComputeLogprob(logits, 0, 6).top.back().token_id, 4);
  EXPECT_EQ(ComputeLogprob(std::vector<float>(3, kNaN), 0, 3).top[0].token_id,
            0);
}

TEST(LogprobTest, ProbabilitiesSumToOne) {
  const std::vector<float> logits = RandomLogits(300, 12, 4.0f);
  double sum = 0.0;
  for (const TokenLogprobValue& top : ComputeLogprob(logits, 0, 300).top) {
    sum += std::exp(static_cast<double>(top.logprob));
  }
  EXPECT_NEAR(sum, 1.0, 1e-5);
}

}  // namespace
}  // namespace troupe
