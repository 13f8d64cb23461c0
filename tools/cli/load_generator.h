// Sends requests to a gateway and measures them.
#ifndef TROUPE_TOOLS_CLI_LOAD_GENERATOR_H_
#define TROUPE_TOOLS_CLI_LOAD_GENERATOR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "grpcpp/security/credentials.h"
#include "protos/gateway.pb.h"
#include "tools/cli/bench_report.h"

namespace troupe {

struct LoadOptions {
  std::string address;
  // For host:port; null: plain text.
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  std::string api_key;  // empty: none
  size_t num_requests = 0;
  // Closed loop: so many requests at a time. Ignored with an open loop.
  size_t concurrency = 1;
  // Open loop: when each request is to be sent, in seconds; one per request.
  // Empty: closed loop.
  std::vector<double> arrivals_s;
  // No request starts after this; 0: no limit.
  double duration_s = 0;
  int timeout_ms = 0;  // per request; 0: none
  // The request of that number.
  std::function<v1::GenerateRequest(size_t index)> make_request;
  // Called now and then with the requests that have ended.
  std::function<void(size_t done, size_t total)> progress;
};

// Runs one load to its end; Run may be called once. One connection for every
// 50 requests at a time, as HTTP/2 servers commonly allow 100 streams on one.
class LoadGenerator {
 public:
  explicit LoadGenerator(LoadOptions options);
  ~LoadGenerator();

  // Returns the records in the order of the requests' ends; those that were
  // stopped are failures.
  std::vector<BenchRecord> Run();

  // Cancels what runs and starts no more. From any thread.
  void Stop();

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_LOAD_GENERATOR_H_
