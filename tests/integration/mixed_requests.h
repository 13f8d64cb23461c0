// Sixteen requests that differ in everything that a request may say.
#ifndef TROUPE_TESTS_INTEGRATION_MIXED_REQUESTS_H_
#define TROUPE_TESTS_INTEGRATION_MIXED_REQUESTS_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "protos/router.grpc.pb.h"
#include "tests/fakes/process_cluster.h"

namespace troupe {

inline std::vector<v1::RouterGenerateRequest> MixedRequests(
    uint32_t vocab_size) {
  std::mt19937 random(42);  // its output is fixed by the standard
  std::vector<v1::RouterGenerateRequest> requests(16);
  for (size_t i = 0; i < requests.size(); ++i) {
    v1::RouterGenerateRequest& request = requests[i];
    const size_t prompt_length = i == 0 ? 1 : 1 + random() % 90;
    for (size_t t = 0; t < prompt_length; ++t) {
      request.add_prompt_token_ids(random() % vocab_size);
    }
    request.set_max_tokens(8 + random() % 40);
    v1::SamplingParams& sampling = *request.mutable_sampling();
    sampling.set_seed(1000 + i);
    if (i % 4 != 0) sampling.set_temperature(0.5f + 0.1f * float(i % 7));
    if (i % 3 == 1) sampling.set_top_k(20);
    if (i % 3 == 2) sampling.set_top_p(0.9f);
    if (i % 5 == 1) sampling.set_min_p(0.02f);
    if (i % 5 == 2) sampling.set_repetition_penalty(1.2f);
    if (i % 5 == 3) sampling.set_presence_penalty(0.7f);
    if (i % 5 == 4) sampling.set_frequency_penalty(0.3f);
    if (i == 6) (*sampling.mutable_logit_bias())[5] = 3.0f;
    if (i % 2 == 0) {
      request.set_logprobs(true);
      request.set_top_logprobs(static_cast<uint32_t>(i % 6));
    }
    if (i % 8 == 3) request.set_prompt_logprobs(true);
    if (i == 9) request.add_stop_token_ids(random() % vocab_size);
    if (i == 10) request.set_min_tokens(4);
  }
  return requests;
}

// All at once, each from a thread of its own.
inline std::vector<Outcome> GenerateAll(
    v1::Router::Stub& stub,
    const std::vector<v1::RouterGenerateRequest>& requests) {
  std::vector<Outcome> outcomes(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&stub, &requests, &outcomes, i] {
      outcomes[i] = Generate(stub, requests[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

}  // namespace troupe

#endif  // TROUPE_TESTS_INTEGRATION_MIXED_REQUESTS_H_
