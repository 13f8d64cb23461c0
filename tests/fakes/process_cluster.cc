#include "tests/fakes/process_cluster.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/rpc/rpc_channel.h"

namespace troupe {
namespace {

// A port that was free a moment ago.
int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK_GE(fd, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  CHECK_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  CHECK_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(fd);
  return ntohs(address.sin_port);
}

std::chrono::system_clock::time_point After(int timeout_ms) {
  return std::chrono::system_clock::now() + milliseconds(timeout_ms);
}

}  // namespace

ProcessCluster::ProcessCluster(ProcessClusterOptions options)
    : options_(std::move(options)) {
  const size_t num_experts =
      options_.expert_ranges.size() * options_.num_replicas;
  const auto address = [&](const char* kind, size_t i) {
    return options_.tcp
               ? absl::StrCat("127.0.0.1:", FreePort())
               : absl::StrCat("unix:", dir_.path(), "/", kind, i, ".sock");
  };
  for (size_t i = 0; i < num_experts; ++i) {
    expert_addresses_.push_back(address("expert", i));
    experts_.emplace_back(std::vector<std::string>{"/bin/true"},
                          dir_.File("true.log"));
    StartExpert(i);
    expert_stubs_.push_back(
        v1::Expert::NewStub(MakeChannel(expert_addresses_[i])));
  }
  for (size_t i = 0; i < options_.num_routers; ++i) {
    router_addresses_.push_back(address("router", i));
    routers_.emplace_back(std::vector<std::string>{"/bin/true"},
                          dir_.File("true.log"));
    StartRouter(i);
    stubs_.push_back(v1::Router::NewStub(MakeChannel(router_addresses_[i])));
    WaitUntilReady(i);
  }
}

void ProcessCluster::StartRouter(size_t i) {
  std::vector<std::string> arguments = {TROUPE_BINARY_DIR "/troupe-router",
                                        options_.model_dir,
                                        "--name",
                                        absl::StrCat("router-", i),
                                        "--listen",
                                        router_addresses_[i],
                                        "--threads",
                                        absl::StrCat(options_.num_threads),
                                        "--experts",
                                        absl::StrJoin(expert_addresses_, ",")};
  arguments.insert(arguments.end(), options_.router_flags.begin(),
                   options_.router_flags.end());
  routers_[i] =
      ChildProcess(arguments, dir_.File(absl::StrCat("router", i, ".log")));
}

void ProcessCluster::StartExpert(size_t i) {
  std::vector<std::string> arguments = {TROUPE_BINARY_DIR "/troupe-expert",
                                        options_.model_dir,
                                        "--name",
                                        absl::StrCat("expert-", i),
                                        "--listen",
                                        expert_addresses_[i],
                                        "--threads",
                                        absl::StrCat(options_.num_threads)};
  const std::string& range =
      options_.expert_ranges[i % options_.expert_ranges.size()];
  if (!range.empty()) {
    arguments.push_back("--experts");
    arguments.push_back(range);
  }
  arguments.insert(arguments.end(), options_.expert_flags.begin(),
                   options_.expert_flags.end());
  experts_[i] =
      ChildProcess(arguments, dir_.File(absl::StrCat("expert", i, ".log")));
}

void ProcessCluster::WaitUntilReady(size_t router) {
  const auto deadline = After(60000);
  std::string last;
  while (std::chrono::system_clock::now() < deadline) {
    grpc::ClientContext context;
    context.set_deadline(deadline);
    context.set_wait_for_ready(true);
    v1::RouterDescription description;
    const grpc::Status status =
        stubs_[router]->Describe(&context, {}, &description);
    last = status.ok() ? description.detail() : status.error_message();
    if (status.ok() && description.state() == v1::SERVING_STATE_READY) {
      // Ready with one replica of each expert; the others may come later.
      const v1::RouterStats stats = Stats(router);
      const auto waits = std::find_if(
          stats.peers().begin(), stats.peers().end(),
          [](const v1::ExpertPeer& peer) { return peer.state() != "ready"; });
      if (waits == stats.peers().end()) return;
      last = waits->ShortDebugString();
    }
    // The router learns of its experts when they connect; there is nothing to
    // wait on but asking again.
    std::this_thread::sleep_for(milliseconds(2));
  }
  std::fprintf(stderr, "router %zu is not ready: %s\n%s", router, last.c_str(),
               routers_[router].Log().c_str());
  CHECK(false);
}

v1::RouterStats ProcessCluster::Stats(size_t router) {
  grpc::ClientContext context;
  context.set_deadline(After(5000));
  v1::RouterStats stats;
  const grpc::Status status = stubs_[router]->GetStats(&context, {}, &stats);
  CHECK(status.ok());
  return stats;
}

Outcome Generate(v1::Router::Stub& stub,
                 const v1::RouterGenerateRequest& request, int timeout_ms) {
  grpc::ClientContext context;
  context.set_deadline(After(timeout_ms));
  Outcome outcome;
  const auto reader = stub.Generate(&context, request);
  v1::RouterGenerateResponse response;
  while (reader->Read(&response)) outcome.responses.push_back(response);
  outcome.status = reader->Finish();
  return outcome;
}

std::string Outcome::Bytes() const {
  std::string text;
  const auto add = [&text](const char* kind, const v1::TokenOutput& token) {
    absl::StrAppend(&text, kind, token.token_id(), ":",
                    absl::Hex(std::bit_cast<uint32_t>(token.logprob())));
    for (const v1::TokenLogprob& top : token.top_logprobs()) {
      absl::StrAppend(&text, ",", top.token_id(), ":",
                      absl::Hex(std::bit_cast<uint32_t>(top.logprob())));
    }
    text += "\n";
  };
  for (const v1::RouterGenerateResponse& response : responses) {
    for (const v1::TokenOutput& token : response.prompt()) add("p", token);
    for (const v1::TokenOutput& token : response.tokens()) add("t", token);
    if (response.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      absl::StrAppend(&text, v1::FinishReason_Name(response.finish_reason()));
    }
  }
  if (!status.ok()) absl::StrAppend(&text, "error ", status.error_message());
  return text;
}

size_t Outcome::num_tokens() const {
  size_t count = 0;
  for (const v1::RouterGenerateResponse& response : responses) {
    count += static_cast<size_t>(response.tokens_size());
  }
  return count;
}

uint32_t Outcome::preemptions() const {
  return responses.empty() ? 0 : responses.back().usage().preemptions();
}

}  // namespace troupe
