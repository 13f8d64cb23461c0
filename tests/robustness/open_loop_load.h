// Requests that come when their time has come, whatever the cluster does.
#ifndef TROUPE_TESTS_ROBUSTNESS_OPEN_LOOP_LOAD_H_
#define TROUPE_TESTS_ROBUSTNESS_OPEN_LOOP_LOAD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "protos/gateway.grpc.pb.h"

namespace troupe {

// One of the requests that come again and again.
struct LoadTemplate {
  v1::GenerateRequest request;
  bool exact = true;  // its bytes must be those of the undisturbed run
  // The client leaves after so many tokens; 0: it stays.
  size_t leave_after = 0;
};

// Prompts of 1 to `max_prompt` tokens, 8 to `max_tokens` new ones, every kind
// of sampling, log-probabilities, several choices, echo, clients that leave;
// with `policies` also requests that are not exact. The same seed gives the
// same templates.
std::vector<LoadTemplate> MakeTemplates(size_t count, uint32_t vocab_size,
                                        size_t max_prompt, uint32_t max_tokens,
                                        bool policies, uint64_t seed);

// What became of one request. Times in seconds since the start of the load.
struct StreamRecord {
  size_t template_index = 0;
  double due_s = 0;             // it counts from here
  std::vector<double> token_s;  // arrival of each token of the first choice
  double end_s = -1;            // -1: it runs
  double broken_s = -1;         // the first time that an attempt failed
  int attempts = 1;             // more: the client called again
  bool ok = false;
  bool same_bytes = true;  // as far as it must be, and came
  bool accounted = true;   // the sum of its copies is right
  std::string error;       // of the first attempt that failed
};

// The bytes of a response, in an order of their own: texts, tokens,
// log-probabilities and ends of each choice; not the usage.
class ResponseBytes {
 public:
  void Add(const v1::GenerateResponse& response);
  size_t num_tokens() const { return num_tokens_; }  // of the first choice
  std::string Get() const;
  // Whether everything so far stands at the beginning of `whole`.
  bool IsBeginningOf(const ResponseBytes& whole) const;

 private:
  struct Choice {
    std::string text;
    std::string tokens;
    std::string end;
  };
  std::vector<Choice> choices_;
  size_t num_tokens_ = 0;
};

// One request alone.
struct LoneOutcome {
  grpc::Status status;
  ResponseBytes bytes;
  v1::Usage usage;
  double seconds = 0;
};
LoneOutcome GenerateAlone(v1::Gateway::Stub& stub,
                          const v1::GenerateRequest& request, int timeout_ms);

struct OpenLoopOptions {
  std::string address;  // of the gateway
  double rate_per_s = 1;
  // The arrivals of every period are the same, so that two can be compared.
  double period_s = 10;
  uint64_t seed = 0;
  int timeout_ms = 20000;  // of a request, all attempts together
  // Whether clients call again when the gateway or the way to it is lost.
  bool call_again = true;
  // MoE layers * top_k, to account for copies; 0: no accounting.
  uint64_t copies_per_token = 0;
};

// Runs from construction to Stop. Thread-safe.
class OpenLoopLoad {
 public:
  // references: of each template, by itself and undisturbed.
  OpenLoopLoad(OpenLoopOptions options, std::vector<LoadTemplate> templates,
               std::vector<ResponseBytes> references);
  ~OpenLoopLoad();

  double Now() const;
  // Requests that have tokens, but not all.
  size_t num_streaming() const;
  size_t num_running() const;
  // A copy of what has happened to requests that were due since `since_s`, or
  // ended after it.
  std::vector<StreamRecord> Records(double since_s) const;

  // No new requests; waits until all have ended, at most for their time-out
  // and a bit. The number of those that have not ended: 0, or the client hangs.
  size_t Stop();

 private:
  class Call;
  struct Arrival {
    double offset_s;
    size_t template_index;
  };

  void Run();
  void StartCall(size_t record, int attempt);

  const OpenLoopOptions options_;
  const std::vector<LoadTemplate> templates_;
  const std::vector<ResponseBytes> references_;
  const SteadyTime start_;
  std::vector<Arrival> arrivals_;  // of one period
  std::vector<std::unique_ptr<v1::Gateway::Stub>> stubs_;

  mutable absl::Mutex mu_;
  std::vector<std::unique_ptr<StreamRecord>> records_ ABSL_GUARDED_BY(mu_);
  size_t num_running_ ABSL_GUARDED_BY(mu_) = 0;
  size_t num_streaming_ ABSL_GUARDED_BY(mu_) = 0;
  // Requests to be called again, and when.
  std::vector<std::pair<SteadyTime, size_t>> again_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;  // no new requests
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;   // no further attempts either

  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_ROBUSTNESS_OPEN_LOOP_LOAD_H_
