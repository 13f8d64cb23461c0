// A gateway as a child, in front of routers that somebody else started.
#ifndef TROUPE_TESTS_FAKES_GATEWAY_PROCESS_H_
#define TROUPE_TESTS_FAKES_GATEWAY_PROCESS_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "protos/gateway.grpc.pb.h"
#include "tests/fakes/child_process.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {

// Not thread-safe, but the stub is.
class GatewayProcess {
 public:
  // `routers`: what its flag --routers says.
  GatewayProcess(const std::string& model_dir,
                 const std::vector<std::string>& routers,
                 const std::vector<std::string>& flags = {});

  ChildProcess& process() { return process_; }
  v1::Gateway::Stub& stub() { return *stub_; }
  const std::string& address() const { return address_; }

  v1::GatewayStats Stats();
  // Polls until that many routers are "ready", or the router has that state.
  void AwaitReadyRouters(int count);
  void AwaitRouter(const std::string& name, const std::string& state);
  v1::RouterPeer Router(const std::string& name);

 private:
  const TempDir dir_;
  const std::string address_;
  ChildProcess process_;
  std::unique_ptr<v1::Gateway::Stub> stub_;
};

// One call, read to its end.
struct GatewayOutcome {
  grpc::Status status;
  std::vector<v1::GenerateResponse> responses;
  double longest_gap_ms = 0;  // between two responses
  // Texts, tokens, logprobs by their bits, and why each choice ended, choice by
  // choice; not how they were cut into responses, and not the usage.
  std::string Bytes() const;
  uint32_t moved_streams() const;
};
// `on_tokens` is told the number of tokens so far after every response.
GatewayOutcome Generate(v1::Gateway::Stub& stub,
                        const v1::GenerateRequest& request, int timeout_ms,
                        const std::function<void(size_t)>& on_tokens);

// All at once, each from a thread of its own; `disturb` runs here as soon as
// each of them has that many tokens. Empty: undisturbed.
std::vector<GatewayOutcome> GenerateAll(
    v1::Gateway::Stub& stub, const std::vector<v1::GenerateRequest>& requests,
    size_t num_tokens = 0, const std::function<void()>& disturb = nullptr,
    int timeout_ms = 120000);

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_GATEWAY_PROCESS_H_
