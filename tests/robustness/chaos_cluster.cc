#include "tests/robustness/chaos_cluster.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cluster/expert_range.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/rpc/rpc_channel.h"

namespace troupe {
namespace {

// Below the ports that the kernel gives to clients: a port must still be free
// when its process comes back.
constexpr int kFirstPort = 18000;
constexpr int kLastPort = 32000;

SteadyTime After(int ms) {
  return std::chrono::steady_clock::now() + milliseconds(ms);
}

bool IsFree(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK_GE(fd, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons(static_cast<uint16_t>(port));
  const bool is_free = bind(fd, reinterpret_cast<const sockaddr*>(&address),
                            sizeof(address)) == 0;
  close(fd);
  return is_free;
}

// Watchers see the whole file or the old one.
void ReplaceFile(const std::string& path, const std::string& text) {
  const std::string next = path + ".next";
  std::ofstream(next) << text;
  std::filesystem::rename(next, path);
}

std::string ListPath(const std::string& folder, ChaosProcess::Role role) {
  return absl::StrCat(folder, role == ChaosProcess::Role::kExpert
                                  ? "/experts.list"
                                  : "/routers.list");
}

std::vector<std::string> Addresses(
    const std::vector<std::unique_ptr<ChaosProcess>>& processes,
    ChaosProcess::Role role) {
  std::vector<std::string> addresses;
  for (const auto& process : processes) {
    if (process->role == role && process->listed) {
      addresses.push_back(process->address);
    }
  }
  return addresses;
}

}  // namespace

bool HelpSays(const std::string& command, const std::string& text) {
  FILE* pipe = popen((command + " --help 2>&1 </dev/null").c_str(), "re");
  if (pipe == nullptr) return false;
  std::string output;
  char buffer[4096];
  while (const size_t size = fread(buffer, 1, sizeof(buffer), pipe)) {
    output.append(buffer, size);
  }
  pclose(pipe);
  return output.find(text) != std::string::npos;
}

ChaosCluster::ChaosCluster(ChaosClusterOptions options)
    : options_(std::move(options)),
      next_port_(kFirstPort + getpid() * 61 % (kLastPort - kFirstPort)) {
  options_.watch_lists =
      options_.watch_lists &&
      HelpSays(options_.bin_dir + "/troupe-router", "file:") &&
      HelpSays(options_.bin_dir + "/troupe-gateway", "file:");
  allows_plaintext_ =
      HelpSays(options_.bin_dir + "/troupe-gateway", "--allow-plaintext");
  auto hosts = TwoHosts::Create(options_.work_dir + "/hosts.log");
  if (hosts.ok()) {
    hosts_ = *std::move(hosts);
    host_a_ = hosts_->address_a();
    host_b_ = hosts_->address_b();
  } else {
    why_one_host_ = std::string(hosts.status().message());
  }
  const auto command = [&](const char* binary) {
    return std::vector<std::string>{absl::StrCat(options_.bin_dir, "/", binary),
                                    options_.model_dir, "--die-with-parent"};
  };
  const auto append = [](std::vector<std::string>& to,
                         std::vector<std::string> flags) {
    to.insert(to.end(), flags.begin(), flags.end());
  };
  for (size_t replica = 0; replica < options_.num_replicas; ++replica) {
    const bool on_b = replica == 1;
    for (size_t group = 0; group < options_.num_groups; ++group) {
      std::vector<std::string> arguments = command("troupe-expert");
      append(arguments,
             {"--threads", "1", "--experts",
              SplitExperts(options_.num_experts, options_.num_groups)[group]});
      if (on_b) arguments.push_back("--no-shm");
      append(arguments, options_.expert_flags);
      AddProcess(ChaosProcess::Role::kExpert,
                 absl::StrCat("expert-", group, on_b ? "b" : "a"), on_b, on_b,
                 arguments);
    }
  }
  for (size_t i = 0; i < options_.num_routers; ++i) {
    std::vector<std::string> arguments = command("troupe-router");
    // Few blocks: prefixes are evicted all the time, and the whole cache has
    // been touched early, so that growth is a leak.
    append(arguments, {"--threads", "1", "--kv-blocks", "512", "--experts",
                       Peers(ChaosProcess::Role::kExpert)});
    append(arguments, options_.router_flags);
    AddProcess(ChaosProcess::Role::kRouter, absl::StrCat("router-", i), i == 1,
               i == 1, arguments);
  }
  std::vector<std::string> arguments = command("troupe-gateway");
  append(arguments, {"--routers", Peers(ChaosProcess::Role::kRouter)});
  append(arguments, options_.gateway_flags);
  gateway_ = &AddProcess(ChaosProcess::Role::kGateway, "gateway", false, false,
                         arguments);
  stub_ = v1::Gateway::NewStub(MakeChannel(gateway_->address));
  WriteLists();
  for (const auto& process : processes_) Start(*process);
}

ChaosCluster::~ChaosCluster() {
  // Stopped ones, too.
  for (const auto& process : processes_) {
    if (process->child != nullptr) process->child->Kill(SIGKILL);
  }
}

int ChaosCluster::NextPort() {
  while (true) {
    if (++next_port_ >= kLastPort) next_port_ = kFirstPort;
    if (IsFree(next_port_)) return next_port_;
  }
}

ChaosProcess& ChaosCluster::AddProcess(ChaosProcess::Role role,
                                       const std::string& name, bool on_b,
                                       bool behind_proxy,
                                       std::vector<std::string> arguments) {
  auto process = std::make_unique<ChaosProcess>();
  process->role = role;
  process->name = name;
  process->on_b = on_b && hosts_ != nullptr;
  process->log_path = absl::StrCat(options_.work_dir, "/", name, ".log");
  const std::string& host = on_b ? host_b_ : host_a_;
  const int port = NextPort();
  process->address = absl::StrCat(host, ":", port);
  arguments.insert(arguments.end(),
                   {"--name", name, "--listen", process->address});
  // Two hosts on one machine: their network is the test's own.
  if (allows_plaintext_) arguments.push_back("--allow-plaintext");
  process->arguments =
      process->on_b ? hosts_->OnB(std::move(arguments)) : std::move(arguments);
  if (behind_proxy) {
    const int proxy_port = NextPort();
    process->proxy =
        std::make_unique<TcpProxy>(host_a_, proxy_port, host, port);
    process->address = absl::StrCat(host_a_, ":", proxy_port);
  }
  processes_.push_back(std::move(process));
  return *processes_.back();
}

std::vector<ChaosProcess*> ChaosCluster::All() {
  std::vector<ChaosProcess*> all;
  for (const auto& process : processes_) all.push_back(process.get());
  return all;
}

std::vector<ChaosProcess*> ChaosCluster::Experts() {
  std::vector<ChaosProcess*> experts;
  for (const auto& process : processes_) {
    if (process->role == ChaosProcess::Role::kExpert) {
      experts.push_back(process.get());
    }
  }
  return experts;
}

std::vector<ChaosProcess*> ChaosCluster::Routers() {
  std::vector<ChaosProcess*> routers;
  for (const auto& process : processes_) {
    if (process->role == ChaosProcess::Role::kRouter) {
      routers.push_back(process.get());
    }
  }
  return routers;
}

void ChaosCluster::Start(ChaosProcess& process) {
  process.child =
      std::make_unique<ChildProcess>(process.arguments, process.log_path);
}

void ChaosCluster::KillNow(ChaosProcess& process) {
  process.child->Kill(SIGKILL);
  process.child->Wait();
  process.child = nullptr;
}

int ChaosCluster::Terminate(ChaosProcess& process, int limit_ms) {
  process.child->Kill(SIGTERM);
  const SteadyTime limit = After(limit_ms);
  siginfo_t info = {};
  while (std::chrono::steady_clock::now() < limit) {
    info.si_pid = 0;
    const int waited = waitid(P_PID, static_cast<id_t>(process.child->pid()),
                              &info, WEXITED | WNOHANG | WNOWAIT);
    CHECK_EQ(waited, 0);
    if (info.si_pid != 0) {
      const int status = process.child->Wait();
      process.child = nullptr;
      return status;
    }
    std::this_thread::sleep_for(milliseconds(2));
  }
  KillNow(process);
  return -1;
}

ChaosProcess& ChaosCluster::AddExpert(size_t group) {
  std::vector<std::string> arguments = {
      absl::StrCat(options_.bin_dir, "/troupe-expert"),
      options_.model_dir,
      "--die-with-parent",
      "--threads",
      "1",
      "--experts",
      SplitExperts(options_.num_experts, options_.num_groups)[group]};
  arguments.insert(arguments.end(), options_.expert_flags.begin(),
                   options_.expert_flags.end());
  ChaosProcess& added =
      AddProcess(ChaosProcess::Role::kExpert,
                 absl::StrCat("expert-", group, "-added-", ++num_added_), false,
                 false, std::move(arguments));
  added.listed = false;
  return added;
}

void ChaosCluster::Remove(ChaosProcess& process) {
  CHECK(process.child == nullptr);
  std::erase_if(processes_,
                [&](const auto& other) { return other.get() == &process; });
}

std::string ChaosCluster::Peers(ChaosProcess::Role role) const {
  if (options_.watch_lists) {
    return absl::StrCat("file:", ListPath(options_.work_dir, role));
  }
  return absl::StrJoin(Addresses(processes_, role), ",");
}

void ChaosCluster::WriteLists() {
  for (const auto role :
       {ChaosProcess::Role::kExpert, ChaosProcess::Role::kRouter}) {
    ReplaceFile(
        ListPath(options_.work_dir, role),
        absl::StrCat(absl::StrJoin(Addresses(processes_, role), "\n"), "\n"));
  }
}

absl::StatusOr<v1::ClusterStats> ChaosCluster::Stats(
    bool check_integrity) const {
  grpc::ClientContext context;
  SetDeadline(context, After(6000));
  v1::GetStatsRequest request;
  request.set_include_experts(true);
  request.set_check_integrity(check_integrity);
  v1::ClusterStats stats;
  const grpc::Status status = stub_->GetStats(&context, request, &stats);
  if (!status.ok()) return absl::UnavailableError(status.error_message());
  return stats;
}

std::string ChaosCluster::Missing() const {
  const absl::StatusOr<v1::ClusterStats> stats = Stats(false);
  if (!stats.ok()) {
    return absl::StrCat("gateway: ", stats.status().message());
  }
  if (stats->unreachable_size() > 0) {
    return absl::StrCat(stats->unreachable(0), " does not answer");
  }
  for (const v1::RouterPeer& router : stats->gateway().router_peers()) {
    if (router.state() != "ready" && !router.removed()) {
      return absl::StrCat("the gateway sees ", router.address(), " ",
                          router.state());
    }
  }
  size_t num_listed_experts = 0;
  size_t num_listed_routers = 0;
  for (const auto& process : processes_) {
    if (!process->listed) continue;
    num_listed_experts += process->role == ChaosProcess::Role::kExpert;
    num_listed_routers += process->role == ChaosProcess::Role::kRouter;
  }
  if (static_cast<size_t>(stats->routers_size()) != num_listed_routers) {
    return absl::StrCat("the gateway knows ", stats->routers_size(),
                        " routers");
  }
  for (const v1::RouterStats& router : stats->routers()) {
    size_t num_ready = 0;
    for (const v1::ExpertPeer& peer : router.peers()) {
      if (peer.state() == "ready") {
        ++num_ready;
      } else if (peer.state() != "removed") {
        return absl::StrCat(router.name(), " sees ", peer.address(), " ",
                            peer.state());
      }
    }
    if (num_ready != num_listed_experts) {
      return absl::StrCat(router.name(), " sees ", num_ready,
                          " expert processes");
    }
  }
  return "";
}

absl::Status ChaosCluster::WaitUntilWhole(int limit_ms) const {
  const SteadyTime limit = After(limit_ms);
  while (true) {
    const std::string missing = Missing();
    if (missing.empty()) return absl::OkStatus();
    if (std::chrono::steady_clock::now() >= limit) {
      return absl::DeadlineExceededError(missing);
    }
    // There is nothing to wait on but asking again.
    std::this_thread::sleep_for(milliseconds(20));
  }
}

}  // namespace troupe
