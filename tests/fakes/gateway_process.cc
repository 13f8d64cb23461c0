#include "tests/fakes/gateway_process.h"

#include <algorithm>
#include <bit>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/rpc/rpc_channel.h"

namespace troupe {
namespace {

std::vector<std::string> Arguments(const std::string& model_dir,
                                   const std::string& address,
                                   const std::vector<std::string>& routers,
                                   const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = {TROUPE_BINARY_DIR "/troupe-gateway",
                                        model_dir,
                                        "--listen",
                                        address,
                                        "--routers",
                                        absl::StrJoin(routers, ",")};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

}  // namespace

GatewayProcess::GatewayProcess(const std::string& model_dir,
                               const std::vector<std::string>& routers,
                               const std::vector<std::string>& flags)
    : address_(absl::StrCat("unix:", dir_.File("gateway.sock"))),
      process_(Arguments(model_dir, address_, routers, flags),
               dir_.File("gateway.log")),
      stub_(v1::Gateway::NewStub(MakeChannel(address_))) {}

v1::GatewayStats GatewayProcess::Stats() {
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  SetDeadline(context, Clock::Real().Now() + milliseconds(30000));
  v1::ClusterStats stats;
  const grpc::Status status = stub_->GetStats(&context, {}, &stats);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n%s", status.error_message().c_str(),
                 process_.Log().c_str());
  }
  CHECK(status.ok());
  return stats.gateway();
}

void GatewayProcess::AwaitReadyRouters(int count) {
  while (true) {
    const v1::GatewayStats stats = Stats();
    if (std::count_if(stats.router_peers().begin(), stats.router_peers().end(),
                      [](const v1::RouterPeer& peer) {
                        return peer.state() == "ready" && !peer.removed();
                      }) == count) {
      return;
    }
    // It learns by asking, and so do we.
    std::this_thread::sleep_for(milliseconds(5));
  }
}

void GatewayProcess::AwaitRouter(const std::string& name,
                                 const std::string& state) {
  while (Router(name).state() != state) {
    std::this_thread::sleep_for(milliseconds(5));
  }
}

v1::RouterPeer GatewayProcess::Router(const std::string& name) {
  const v1::GatewayStats stats = Stats();
  for (const v1::RouterPeer& peer : stats.router_peers()) {
    if (peer.name() == name) return peer;
  }
  return {};
}

std::string GatewayOutcome::Bytes() const {
  std::map<uint32_t, std::string> texts;
  std::map<uint32_t, std::string> tokens;
  for (const v1::GenerateResponse& response : responses) {
    absl::StrAppend(&texts[response.index()], response.text());
    std::string& of_choice = tokens[response.index()];
    for (const v1::GeneratedToken& token : response.tokens()) {
      absl::StrAppend(&of_choice, token.is_prompt() ? "p" : "t",
                      token.token_id(), ":",
                      absl::Hex(std::bit_cast<uint32_t>(token.logprob())));
      for (const auto& top : token.top_logprobs()) {
        absl::StrAppend(&of_choice, ",", top.token_id(), ":",
                        absl::Hex(std::bit_cast<uint32_t>(top.logprob())));
      }
      of_choice += "\n";
    }
    if (response.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      absl::StrAppend(&of_choice,
                      v1::FinishReason_Name(response.finish_reason()), " ",
                      response.stop_reason());
    }
  }
  std::string bytes;
  for (const auto& [index, text] : texts) {
    absl::StrAppend(&bytes, "choice ", index, "\n", text, "\n", tokens[index],
                    "\n");
  }
  if (!status.ok()) absl::StrAppend(&bytes, "error ", status.error_message());
  return bytes;
}

uint32_t GatewayOutcome::moved_streams() const {
  return responses.empty() ? 0 : responses.back().usage().moved_streams();
}

GatewayOutcome Generate(v1::Gateway::Stub& stub,
                        const v1::GenerateRequest& request, int timeout_ms,
                        const std::function<void(size_t)>& on_tokens) {
  grpc::ClientContext context;
  SetDeadline(context, Clock::Real().Now() + milliseconds(timeout_ms));
  GatewayOutcome outcome;
  const auto reader = stub.Generate(&context, request);
  v1::GenerateResponse response;
  size_t num_tokens = 0;
  SteadyTime last = kNoDeadline;
  while (reader->Read(&response)) {
    const SteadyTime now = Clock::Real().Now();
    if (last != kNoDeadline) {
      outcome.longest_gap_ms = std::max(
          outcome.longest_gap_ms,
          std::chrono::duration<double, std::milli>(now - last).count());
    }
    last = now;
    for (const v1::GeneratedToken& token : response.tokens()) {
      num_tokens += !token.is_prompt();
    }
    outcome.responses.push_back(response);
    on_tokens(num_tokens);
  }
  outcome.status = reader->Finish();
  return outcome;
}

std::vector<GatewayOutcome> GenerateAll(
    v1::Gateway::Stub& stub, const std::vector<v1::GenerateRequest>& requests,
    size_t num_tokens, const std::function<void()>& disturb, int timeout_ms) {
  absl::Mutex mu;
  size_t far_enough = 0;
  std::vector<GatewayOutcome> outcomes(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] {
      bool counted = false;
      const auto count = [&] {
        absl::MutexLock lock(&mu);
        far_enough += !std::exchange(counted, true);
      };
      outcomes[i] = Generate(stub, requests[i], timeout_ms, [&](size_t tokens) {
        if (tokens >= num_tokens) count();
      });
      count();  // one that ended early holds nobody up
    });
  }
  if (disturb) {
    {
      absl::MutexLock lock(&mu);
      const auto all = [&] { return far_enough == requests.size(); };
      mu.Await(absl::Condition(&all));
    }
    disturb();
  }
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

}  // namespace troupe
