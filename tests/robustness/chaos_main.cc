// Breaks a cluster in every way that it promises to survive, under load.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "tests/robustness/chaos_run.h"
#include "tests/robustness/faults.h"

namespace troupe {
namespace {

struct Flags {
  ChaosOptions run;
  std::string work_dir;  // of all runs; empty: a new one
  std::string results;
  bool resume = false;
  bool controls = false;
  std::string control;
  bool list = false;
};

// A protection that is switched off. The run must show it.
struct Control {
  const char* name;
  const char* what;
  std::vector<std::string> expected;  // kinds of problems; one is enough
  std::function<void(ChaosOptions&)> switch_off;
};

const std::vector<Control>& Controls() {
  static const auto& controls = *new std::vector<Control>{
      {"one_replica",
       "without a second replica, streams wait for the killed process",
       {"stall", "failed"},
       [](ChaosOptions& run) {
         run.faults = {"expert_kill"};
         run.cluster.num_replicas = 1;
       }},
      {"patient_hop",
       "without deadline and hedge of the hop, streams wait for the stopped "
       "process",
       {"stall", "failed"},
       [](ChaosOptions& run) {
         run.faults = {"expert_stop"};
         run.cluster.router_flags = {"--hop-timeout-ms", "600000"};
         for (const char* flag : {"--no-hedging", "--no-ejection"}) {
           if (HelpSays(run.cluster.bin_dir + "/troupe-router", flag)) {
             run.cluster.router_flags.emplace_back(flag);
           }
         }
       }},
      {"one_router",
       "without a second router, streams wait for the killed one",
       {"stall", "failed"},
       [](ChaosOptions& run) {
         run.faults = {"router_kill"};
         run.cluster.num_routers = 1;
       }},
      {"patient_gateway",
       "without a bound on a router's silence, streams wait for the stopped "
       "router",
       {"stall", "failed"},
       [](ChaosOptions& run) {
         run.faults = {"router_stop"};
         run.cluster.gateway_flags = {"--router-silence-ms", "600000"};
       }},
      {"no_second_call",
       "clients that do not call again lose their streams with the gateway",
       {"failed"},
       [](ChaosOptions& run) {
         run.faults = {"gateway_kill"};
         run.call_again = false;
       }},
      {"other_bytes",
       "bytes that are not the undisturbed ones are seen",
       {"bytes"},
       [](ChaosOptions& run) {
         run.faults = {"expert_kill"};
         run.spoil_references = true;
       }},
      {"no_load",
       "a fault without load does not count",
       {"load"},
       [](ChaosOptions& run) {
         run.faults = {"expert_kill"};
         run.rate_per_s = 0.5;
       }},
  };
  return controls;
}

std::string KindOf(const std::string& problem) {
  return problem.substr(0, problem.find(':'));
}

// A folder for the logs of one run.
std::string NewWorkDir(const Flags& flags, const std::string& name) {
  std::string folder;
  if (flags.work_dir.empty()) {
    folder = (std::filesystem::temp_directory_path() / "troupe-chaos-XXXXXX")
                 .string();
    CHECK(mkdtemp(folder.data()) != nullptr);
  } else {
    folder = flags.work_dir + "/" + name;
    std::filesystem::create_directories(folder);
  }
  return folder;
}

constexpr size_t kLastLines = 8;

// The last lines of every log, for a machine whose files are gone tomorrow.
void PrintLogs(const std::string& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".log") continue;
    std::ifstream file(entry.path());
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    std::printf("== %s\n", entry.path().filename().c_str());
    const size_t from = lines.size() - std::min(lines.size(), kLastLines);
    for (size_t i = from; i < lines.size(); ++i) std::puts(lines[i].c_str());
  }
}

bool RunControl(const Flags& flags, const Control& control) {
  ChaosOptions run = flags.run;
  run.minutes = 0;
  run.num_rounds = 1;
  control.switch_off(run);
  run.cluster.work_dir = NewWorkDir(flags, control.name);
  std::printf("CONTROL %s: %s\n", control.name, control.what);
  const absl::StatusOr<ChaosOutcome> outcome = RunChaos(run);
  if (!outcome.ok()) {
    std::printf("FAILED %s\n", std::string(outcome.status().message()).c_str());
    return false;
  }
  const bool shown = std::any_of(
      outcome->problems.begin(), outcome->problems.end(),
      [&](const std::string& problem) {
        return std::find(control.expected.begin(), control.expected.end(),
                         KindOf(problem)) != control.expected.end();
      });
  std::printf("%s %s\n", shown ? "SHOWN" : "FAILED: nothing was seen by",
              control.name);
  if (!shown) PrintLogs(run.cluster.work_dir);
  if (shown && flags.work_dir.empty()) {
    std::filesystem::remove_all(run.cluster.work_dir);
  }
  return shown;
}

int RunFaults(Flags& flags) {
  ChaosOptions& run = flags.run;
  std::vector<FaultResult> results;
  if (flags.resume) {
    std::ifstream file(flags.results);
    for (std::string line; std::getline(file, line);) {
      const absl::StatusOr<FaultResult> result = FromJson(line);
      if (!result.ok()) {
        std::fprintf(stderr, "chaos: %s: %s\n", flags.results.c_str(),
                     std::string(result.status().message()).c_str());
        return 2;
      }
      results.push_back(*result);
      run.minutes -= 2 * result->window.period_s / 60;
    }
    run.num_done = results.size();
    run.minutes = std::max(run.minutes, 0.01);
    std::printf("%zu faults were done before\n", results.size());
  }
  std::ofstream out;
  if (!flags.results.empty()) {
    out.open(flags.results, flags.resume ? std::ios::app : std::ios::trunc);
    if (!out.good()) {
      std::fprintf(stderr, "chaos: cannot write %s\n", flags.results.c_str());
      return 2;
    }
  }
  run.on_result = [&out](const FaultResult& result) {
    if (out.is_open()) out << ToJson(result) << std::endl;
  };
  run.cluster.work_dir = NewWorkDir(flags, "run");
  std::printf("logs in %s\n", run.cluster.work_dir.c_str());
  const absl::StatusOr<ChaosOutcome> outcome = RunChaos(run);
  if (!outcome.ok()) {
    std::printf("FAILED %s\n", std::string(outcome.status().message()).c_str());
    PrintLogs(run.cluster.work_dir);
    return 1;
  }
  results.insert(results.end(), outcome->results.begin(),
                 outcome->results.end());
  std::printf("\n%s\n", MarkdownTable(results).c_str());
  for (const std::string& skipped : outcome->skipped) {
    std::printf("SKIPPED %s\n", skipped.c_str());
  }
  for (const std::string& problem : outcome->problems) {
    std::printf("PROBLEM %s\n", problem.c_str());
  }
  if (!outcome->problems.empty()) {
    PrintLogs(run.cluster.work_dir);
    return 1;
  }
  if (outcome->results.empty() && run.num_done == 0) {
    std::printf("FAILED: no fault was done\n");
    return 1;
  }
  std::printf("PASSED\n");
  if (flags.work_dir.empty()) {
    std::filesystem::remove_all(run.cluster.work_dir);
  }
  return 0;
}

int Run(Flags& flags) {
  if (flags.list) {
    for (const Fault& fault : AllFaults()) {
      std::printf("%-16s %s\n", fault.name.c_str(), fault.what.c_str());
    }
    for (const Control& control : Controls()) {
      std::printf("control %-16s %s\n", control.name, control.what);
    }
    return 0;
  }
  ChaosOptions& run = flags.run;
  run.say = [](const std::string& line) {
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  };
  if (run.limits.max_stall_ms == 0) {
    // Whatever the machine: a stall that is shorter than the outage was not
    // ended by the end of the outage.
    run.limits.max_stall_ms = 0.8 * run.outage_ms;
  }
  if (run.faults.empty()) {
    for (const Fault& fault : AllFaults()) run.faults.push_back(fault.name);
  }
  for (const std::string& name : run.faults) {
    const bool known =
        std::any_of(AllFaults().begin(), AllFaults().end(),
                    [&](const Fault& fault) { return fault.name == name; });
    if (!known) {
      std::fprintf(stderr, "chaos: no fault is called %s, see --list\n",
                   name.c_str());
      return 2;
    }
  }
  if (!flags.controls) return RunFaults(flags);
  bool all_shown = true;
  for (const Control& control : Controls()) {
    if (!flags.control.empty() && flags.control != control.name) continue;
    all_shown = RunControl(flags, control) && all_shown;
  }
  return all_shown ? 0 : 1;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  troupe::Flags flags;
  troupe::ChaosOptions& run = flags.run;
  run.cluster.model_dir = TROUPE_SOURCE_DIR "/tests/goldens/olmoe_clip";
  run.cluster.bin_dir = TROUPE_BINARY_DIR;
  run.limits.min_streaming = 2;
  run.growth = {
      .resident_mib = 32, .descriptors = 8, .threads = 8, .num_warm = 3};
  CLI::App app(
      "Starts a gateway, two routers and two replicas of every expert on two "
      "hosts,\nsends a steady load, and breaks something every two periods. "
      "The arrivals of a\nperiod with a fault are those of the quiet one "
      "before it.");
  app.add_option("--model", run.cluster.model_dir, "Checkpoint folder")
      ->capture_default_str();
  app.add_option("--bin-dir", run.cluster.bin_dir, "Folder of the services")
      ->capture_default_str();
  app.add_option("--num-experts", run.cluster.num_experts, "Of the model")
      ->capture_default_str();
  app.add_option("--seed", run.seed, "Of requests, arrivals, faults, victims")
      ->capture_default_str();
  app.add_option("--faults", run.faults, "Default: all, see --list")
      ->delimiter(',');
  app.add_option("--rounds", run.num_rounds, "Each has every fault once")
      ->capture_default_str();
  app.add_option("--minutes", run.minutes, "Instead of --rounds");
  app.add_option("--period", run.period_s, "Seconds")->capture_default_str();
  app.add_option("--outage-ms", run.outage_ms,
                 "Between a fault and its end; less than a period")
      ->capture_default_str();
  app.add_option("--streams", run.streams,
                 "Load: requests at a time if each were as fast as alone")
      ->capture_default_str();
  app.add_option("--rate", run.rate_per_s, "Requests per second instead");
  app.add_option("--max-tokens", run.max_tokens, "Longest output")
      ->capture_default_str();
  app.add_option("--max-prompt", run.max_prompt, "Longest prompt")
      ->capture_default_str();
  app.add_option("--min-streaming", run.limits.min_streaming,
                 "A fault with fewer streams does not count")
      ->capture_default_str();
  app.add_option("--max-stall-ms", run.limits.max_stall_ms,
                 "Default: 0.8 of the outage");
  app.add_option("--max-growth-mib", run.growth.resident_mib,
                 "Of a process that was not restarted")
      ->capture_default_str();
  app.add_option("--router-flags", run.cluster.router_flags)->delimiter(' ');
  app.add_option("--expert-flags", run.cluster.expert_flags)->delimiter(' ');
  app.add_option("--gateway-flags", run.cluster.gateway_flags)->delimiter(' ');
  app.add_flag("--fixed-addresses{false}", run.cluster.watch_lists,
               "Routers and gateway are given addresses, not files of them");
  app.add_option("--work-dir", flags.work_dir,
                 "Logs stay here; default: a temporary folder, kept when "
                 "something failed");
  app.add_option("--results", flags.results,
                 "A line of JSON per fault, as it is over");
  app.add_flag("--resume", flags.resume,
               "Go on after the faults that --results holds");
  app.add_flag("--controls", flags.controls,
               "Instead: switch one protection off after the other; each run "
               "must show it");
  app.add_option("--control", flags.control, "Only this one");
  app.add_flag("--list", flags.list, "Faults and controls");
  CLI11_PARSE(app, argc, argv);
  return troupe::Run(flags);
}
