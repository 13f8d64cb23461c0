// A Router service in this process whose answers a test decides.
#ifndef TROUPE_TESTS_FAKES_FAKE_ROUTER_FAKE_ROUTER_H_
#define TROUPE_TESTS_FAKES_FAKE_ROUTER_FAKE_ROUTER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "grpcpp/support/status.h"
#include "protos/router.pb.h"

namespace troupe {

// What one Generate call does: writes the responses in order, then ends with
// `status`, or hangs until it is cancelled.
struct FakeRouterScript {
  std::vector<v1::RouterGenerateResponse> responses;
  grpc::Status status;
  bool hang = false;
  // Writes the last response again and again instead of ending.
  bool endless = false;
};

// Listens on an address of its own, which it keeps over Kill and Start.
// Thread-safe.
class FakeRouter {
 public:
  using Behaviour =
      std::function<FakeRouterScript(const v1::RouterGenerateRequest&)>;

  FakeRouter(std::string model_fingerprint, Behaviour behaviour);
  ~FakeRouter();

  // Ends the server and every call, as a process that dies does.
  void Kill();
  void Start();

  // While silent, as a stopped process, it answers no Describe; those that wait
  // are answered when it ends.
  void SetSilent(bool silent);

  void SetBehaviour(Behaviour behaviour);
  void SetDescription(const v1::RouterDescription& description);
  v1::RouterDescription description() const;
  void SetStats(const v1::RouterStats& stats);

  const std::string& address() const;

  // Generate calls so far, in the order of their arrival.
  std::vector<v1::RouterGenerateRequest> requests() const;
  // Milliseconds that the deadline of the newest call left it on arrival; -1
  // without one.
  double newest_timeout_ms() const;
  // Responses that gRPC has taken from the calls so far.
  uint64_t num_written() const;

  // Blocks until that many calls have arrived, or were cancelled by the
  // client.
  void AwaitCalls(size_t count);
  void AwaitCancelled(size_t count);
  // Blocks until it was asked to describe itself twice more: then the first
  // answer has been read, as a gateway asks again only afterwards. Returns at
  // once when killed.
  void AwaitDescribedTwice();
  // Blocks until gRPC has taken no response for a quarter of a second: flow
  // control holds the calls back, and says so in no other way.
  void AwaitStalled();

  struct State;

 private:
  std::unique_ptr<State> state_;
};

// Scripts that are closed formulas of their requests, so that a sequence goes
// on with the same bytes wherever it is continued.

// One token per response, byte i of `text` for output position i, starting
// after request.generated_token_ids; ends with STOP and an </s> token after
// the text, or with LENGTH at max_tokens. Log-probabilities, if asked for, are
// -(position + 1) / 8 and alternatives count up from the token's id.
FakeRouterScript Recite(const std::string& text,
                        const v1::RouterGenerateRequest& request);

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_FAKE_ROUTER_FAKE_ROUTER_H_
