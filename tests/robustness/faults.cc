#include "tests/robustness/faults.h"

#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

// For a process to end or to be back.
constexpr int kPatienceMs = 20000;
constexpr milliseconds kLate(200);  // of a slow network, each way

void Sleep(int ms) { std::this_thread::sleep_for(milliseconds(ms)); }

std::vector<ChaosProcess*> BehindProxy(std::vector<ChaosProcess*> processes) {
  std::erase_if(processes, [](const ChaosProcess* process) {
    return process->proxy == nullptr;
  });
  return processes;
}

std::string NeedsNothing(ChaosCluster&) { return ""; }

// A router that is silent, but not gone.
std::string NeedsSilence(ChaosCluster& cluster) {
  return HelpSays(cluster.options().bin_dir + "/troupe-gateway",
                  "--router-silence-ms")
             ? ""
             : "this gateway does not notice silent routers";
}

std::string NeedsTwoHosts(ChaosCluster& cluster) {
  return cluster.hosts() != nullptr
             ? NeedsSilence(cluster)
             : absl::StrCat("no network namespace: ", cluster.why_one_host());
}

std::string NeedsLists(ChaosCluster& cluster) {
  return cluster.options().watch_lists ? "" : "addresses are fixed here";
}

std::string NeedsUpdate(ChaosCluster& cluster) {
  return HelpSays(cluster.options().bin_dir + "/troupe experts update",
                  "--label")
             ? ""
             : "this `troupe` has no `experts update`";
}

absl::Status Expect0(const ChaosProcess& process, int status) {
  if (status == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(process.name, " did not exit 0 after SIGTERM but ", status));
}

absl::Status KillAndRestart(FaultContext& context, ChaosProcess& process) {
  context.victim = process.name;
  context.cluster.KillNow(process);
  Sleep(context.outage_ms);
  context.cluster.Start(process);
  return absl::OkStatus();
}

absl::Status StopAndGoOn(FaultContext& context, ChaosProcess& process) {
  context.victim = process.name;
  process.child->Kill(SIGSTOP);
  Sleep(context.outage_ms);
  process.child->Kill(SIGCONT);
  return absl::OkStatus();
}

// Runs a tenth of the time.
absl::Status Starve(FaultContext& context, ChaosProcess& process) {
  context.victim = process.name;
  const SteadyTime end =
      std::chrono::steady_clock::now() + milliseconds(context.outage_ms);
  while (std::chrono::steady_clock::now() < end) {
    process.child->Kill(SIGSTOP);
    Sleep(45);
    process.child->Kill(SIGCONT);
    Sleep(5);
  }
  return absl::OkStatus();
}

absl::Status BeLate(FaultContext& context, ChaosProcess& process) {
  context.victim = process.name;
  process.proxy->SetDelay(kLate);
  Sleep(context.outage_ms);
  process.proxy->SetDelay(milliseconds(0));
  return absl::OkStatus();
}

absl::Status BeSilent(FaultContext& context, ChaosProcess& process) {
  context.victim = process.name;
  process.proxy->SetBlackhole(true);
  Sleep(context.outage_ms);
  process.proxy->SetBlackhole(false);
  return absl::OkStatus();
}

absl::Status Reset(FaultContext& context, ChaosProcess& process) {
  context.victim = process.name;
  for (int i = 0; i < 5; ++i) {
    process.proxy->ResetAll();
    Sleep(context.outage_ms / 5);
  }
  return absl::OkStatus();
}

absl::Status TerminateAndRestart(FaultContext& context, ChaosProcess& process) {
  context.victim = process.name;
  const int status = context.cluster.Terminate(process, 2 * kPatienceMs);
  context.cluster.Start(process);
  return Expect0(process, status);
}

absl::Status CutHostOff(FaultContext& context) {
  context.victim = "host B";
  context.cluster.hosts()->SetLink(false);
  Sleep(context.outage_ms);
  context.cluster.hosts()->SetLink(true);
  return absl::OkStatus();
}

// Every process of it at once, as when the power goes.
absl::Status LoseHost(FaultContext& context) {
  context.victim = "host B";
  std::vector<ChaosProcess*> lost;
  for (ChaosProcess* process : context.cluster.All()) {
    if (process->proxy != nullptr) lost.push_back(process);
  }
  for (ChaosProcess* process : lost) process->child->Kill(SIGKILL);
  for (ChaosProcess* process : lost) context.cluster.KillNow(*process);
  Sleep(context.outage_ms);
  for (ChaosProcess* process : lost) context.cluster.Start(*process);
  return absl::OkStatus();
}

absl::Status RestartAll(FaultContext& context,
                        const std::vector<ChaosProcess*>& processes) {
  context.victim = "all";
  for (ChaosProcess* process : processes) {
    const int status = context.cluster.Terminate(*process, 2 * kPatienceMs);
    context.cluster.Start(*process);
    ABSL_RETURN_IF_ERROR(Expect0(*process, status));
    ABSL_RETURN_IF_ERROR(context.cluster.WaitUntilWhole(kPatienceMs));
  }
  return absl::OkStatus();
}

// A third replica comes, works, drains and leaves.
absl::Status ScaleOutAndIn(FaultContext& context) {
  ChaosCluster& cluster = context.cluster;
  const size_t group = context.random() % cluster.options().num_groups;
  ChaosProcess& added = cluster.AddExpert(group);
  context.victim = added.name;
  cluster.Start(added);
  added.listed = true;
  cluster.WriteLists();
  ABSL_RETURN_IF_ERROR(cluster.WaitUntilWhole(kPatienceMs));
  Sleep(context.outage_ms);
  const absl::StatusOr<v1::ClusterStats> stats = cluster.Stats(false);
  ABSL_RETURN_IF_ERROR(stats.status());
  uint64_t messages = 0;
  for (const v1::ExpertStats& expert : stats->experts()) {
    if (expert.description().name() == added.name) {
      messages = expert.messages();
    }
  }
  // Off the list first: routers take what is on its way and go.
  added.listed = false;
  cluster.WriteLists();
  ABSL_RETURN_IF_ERROR(cluster.WaitUntilWhole(kPatienceMs));
  const absl::Status ended =
      Expect0(added, cluster.Terminate(added, 2 * kPatienceMs));
  cluster.Remove(added);
  ABSL_RETURN_IF_ERROR(ended);
  return messages > 0 ? absl::OkStatus()
                      : absl::InternalError("the new replica got no work");
}

// Every expert gets a new version, one after the other: the same weights under
// another label, so that the bytes stay.
absl::Status UpdateAll(FaultContext& context) {
  context.victim = "all";
  ChaosCluster& cluster = context.cluster;
  const ChaosClusterOptions& options = cluster.options();
  const std::string troupe = options.bin_dir + "/troupe";
  const std::string log =
      absl::StrCat(" >>", options.work_dir, "/updates.log 2>&1 </dev/null");
  const std::string label = absl::StrCat("update-", ++context.num_updates);
  for (size_t expert = 0; expert < options.num_experts; ++expert) {
    const std::string file =
        absl::StrCat(options.work_dir, "/expert-", expert, ".safetensors");
    for (const std::string& command :
         {absl::StrCat(troupe, " experts extract ", options.model_dir, " ",
                       file, " --experts ", expert),
          absl::StrCat(troupe, " experts update ", file, " --label ", label,
                       " --address ", cluster.address())}) {
      if (command.find(" extract ") != std::string::npos &&
          std::filesystem::exists(file)) {
        continue;
      }
      if (std::system((command + log).c_str()) != 0) {
        return absl::InternalError(absl::StrCat(command, " failed, see", log));
      }
    }
  }
  return absl::OkStatus();
}

std::vector<Fault> MakeFaults() {
  using C = FaultContext;
  return {
      {"expert_kill", "kill -9 of an expert process, started again", false,
       NeedsNothing,
       [](C& c) { return KillAndRestart(c, c.Pick(c.cluster.Experts())); }},
      {"expert_stop", "SIGSTOP of an expert process, then SIGCONT", false,
       NeedsNothing,
       [](C& c) { return StopAndGoOn(c, c.Pick(c.cluster.Experts())); }},
      {"expert_starved", "an expert process runs a tenth of the time", false,
       NeedsNothing,
       [](C& c) { return Starve(c, c.Pick(c.cluster.Experts())); }},
      {"expert_late", "200 ms more each way to an expert process", false,
       NeedsNothing,
       [](C& c) {
         return BeLate(c, c.Pick(BehindProxy(c.cluster.Experts())));
       }},
      {"expert_silent", "nothing gets through to an expert process", false,
       NeedsNothing,
       [](C& c) {
         return BeSilent(c, c.Pick(BehindProxy(c.cluster.Experts())));
       }},
      {"expert_reset", "five times RST to all connections of an expert process",
       false, NeedsNothing,
       [](C& c) { return Reset(c, c.Pick(BehindProxy(c.cluster.Experts()))); }},
      {"expert_rolling", "restart of every expert process, one by one", false,
       NeedsNothing, [](C& c) { return RestartAll(c, c.cluster.Experts()); }},
      {"expert_update", "another version of every expert, one by one", false,
       NeedsUpdate, [](C& c) { return UpdateAll(c); }},
      {"scale", "one more expert process comes, then leaves", false, NeedsLists,
       [](C& c) { return ScaleOutAndIn(c); }},
      {"router_kill", "kill -9 of a router, started again", false, NeedsNothing,
       [](C& c) { return KillAndRestart(c, c.Pick(c.cluster.Routers())); }},
      {"router_stop", "SIGSTOP of a router, then SIGCONT", false, NeedsSilence,
       [](C& c) { return StopAndGoOn(c, c.Pick(c.cluster.Routers())); }},
      {"router_silent", "nothing gets through to a router", false, NeedsSilence,
       [](C& c) {
         return BeSilent(c, c.Pick(BehindProxy(c.cluster.Routers())));
       }},
      {"router_reset", "five times RST to all connections of a router", false,
       NeedsNothing,
       [](C& c) { return Reset(c, c.Pick(BehindProxy(c.cluster.Routers()))); }},
      {"router_drain", "SIGTERM to a router, started again", false,
       NeedsNothing,
       [](C& c) {
         return TerminateAndRestart(c, c.Pick(c.cluster.Routers()));
       }},
      {"partition", "the link to host B is down", false, NeedsTwoHosts,
       [](C& c) { return CutHostOff(c); }},
      {"host_lost", "kill -9 of every process of host B", false, NeedsNothing,
       [](C& c) { return LoseHost(c); }},
      {"gateway_kill", "kill -9 of the gateway; clients call again", true,
       NeedsNothing,
       [](C& c) { return KillAndRestart(c, c.cluster.gateway()); }},
      {"gateway_restart", "SIGTERM to the gateway; clients call again", true,
       NeedsNothing,
       [](C& c) { return TerminateAndRestart(c, c.cluster.gateway()); }},
  };
}

}  // namespace

ChaosProcess& FaultContext::Pick(const std::vector<ChaosProcess*>& candidates) {
  CHECK(!candidates.empty());
  return *candidates[random() % candidates.size()];
}

const std::vector<Fault>& AllFaults() {
  static const std::vector<Fault>& faults =
      *new std::vector<Fault>(MakeFaults());
  return faults;
}

}  // namespace troupe
