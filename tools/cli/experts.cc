// troupe experts: the versions of experts in a running cluster.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cluster/rollout.h"
#include "common/clock.h"
#include "common/rpc/unix_socket.h"
#include "model/file_hash.h"
#include "tools/cli/balance_commands.h"
#include "tools/cli/client_flags.h"
#include "tools/cli/command.h"
#include "tools/cli/experts_client.h"
#include "tools/cli/experts_extract.h"
#include "tools/cli/experts_update.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

// How long routers may take to hear of a rollout.
constexpr milliseconds kRouterLimit(10000);
constexpr milliseconds kRouterPoll(20);

struct Flags {
  ClientFlags gateway;
  uint32_t admin_port = 0;
  std::vector<std::string> experts;
  bool all = false;
  double share = 5;  // percent
  ExpertsUpdateOptions update;
  ExtractOptions extract;
};

int Fail(const std::string& message) {
  std::fprintf(stderr, "troupe: %s\n", WithoutControls(message).c_str());
  return kExitFailed;
}

// Those of --experts, or all that the routers know.
absl::StatusOr<std::vector<std::string>> Addresses(const Flags& flags) {
  if (!flags.experts.empty()) return flags.experts;
  const absl::StatusOr<v1::ClusterStats> stats =
      GatewayClient(flags.gateway.address, flags.gateway.api_key,
                    flags.gateway.to_gateway)
          .GetStats(/*include_experts=*/false);
  if (!stats.ok()) {
    return absl::Status(stats.status().code(),
                        Explain(stats.status(), flags.gateway.address));
  }
  std::vector<std::string> away;
  std::vector<std::string> addresses = ExpertAddresses(*stats, &away);
  for (const std::string& address : away) {
    std::fprintf(stderr, "%s is away: left out\n",
                 WithoutControls(address).c_str());
  }
  if (addresses.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        flags.gateway.address, ": the routers know of no expert process"));
  }
  return AtAdminPort(std::move(addresses), flags.admin_port);
}

std::string Names(const LabelList& labels) {
  std::vector<std::string> names;
  for (const v1::RolloutLabel& label : labels) {
    names.push_back(label.label().empty() ? "(none)" : label.label());
  }
  return absl::StrJoin(names, ", ");
}

std::string RolloutText(const v1::Rollout& rollout) {
  if (rollout.revision() == 0) return "no rollout yet\n";
  std::string text = absl::StrFormat(
      "revision %d: labels %s\n", rollout.revision(), Names(rollout.labels()));
  if (!rollout.canary_labels().empty()) {
    absl::StrAppendFormat(&text, "canary: %s for %g %% of the sequences\n",
                          Names(rollout.canary_labels()),
                          rollout.canary_share() / 100.0);
  }
  if (!rollout.previous_labels().empty()) {
    absl::StrAppend(&text, "before: ", Names(rollout.previous_labels()), "\n");
  }
  return text;
}

// What a label of a process is for.
std::string UseOf(const std::string& label, const std::set<ExpertName>& experts,
                  const std::map<ExpertName, std::string>& current,
                  const std::map<ExpertName, std::string>& canary) {
  const auto chooses = [&](const auto& chosen) {
    return std::any_of(experts.begin(), experts.end(),
                       [&](const ExpertName& name) {
                         const auto it = chosen.find(name);
                         return it != chosen.end() && it->second == label;
                       });
  };
  if (chooses(current)) return "current";
  if (chooses(canary)) return "canary";
  return "not used by new sequences";
}

int List(const Flags& flags) {
  const absl::StatusOr<std::vector<std::string>> addresses = Addresses(flags);
  if (!addresses.ok()) return Fail(std::string(addresses.status().message()));
  const absl::StatusOr<std::vector<ExpertProcess>> processes =
      ExpertsClient(*addresses, flags.gateway.to_experts).List();
  if (!processes.ok()) return Fail(std::string(processes.status().message()));
  const v1::Rollout rollout = NewestRollout(*processes);
  std::vector<std::string> labels;
  std::vector<std::string> canary_labels;
  for (const auto& label : rollout.labels()) labels.push_back(label.label());
  for (const auto& label : rollout.canary_labels()) {
    canary_labels.push_back(label.label());
  }
  if (rollout.revision() == 0) {
    for (const auto& [label, experts] : ExpertsByLabel(*processes)) {
      labels.push_back(label);
    }
  }
  const auto current = ChosenLabels(*processes, labels);
  const auto canary = ChosenLabels(*processes, canary_labels);
  std::string text = RolloutText(rollout);
  for (const ExpertProcess& process : *processes) {
    absl::StrAppend(&text, process.list.description().name(), " at ",
                    process.address, "\n");
    std::map<std::string, uint64_t> bytes;
    std::map<std::string, std::set<std::string>> sources;
    std::set<std::string> leaving;
    for (const v1::LoadedExpert& loaded : process.list.experts()) {
      const v1::ExpertVersion& version = loaded.version();
      bytes[version.label()] += loaded.weight_bytes();
      sources[version.label()].insert(loaded.source());
      if (version.leaving()) leaving.insert(version.label());
      if (!flags.all) continue;
      absl::StrAppendFormat(&text, "  layer %3d expert %4d  %-16s %s\n",
                            version.range().layer_begin(),
                            version.range().expert_begin(), version.label(),
                            version.content_hash());
    }
    const auto by_label = ExpertsByLabel({process});
    for (const auto& [label, num_bytes] : bytes) {
      const auto experts = by_label.find(label);
      const bool stays = experts != by_label.end();
      absl::StrAppendFormat(
          &text, "  %-16s %s, %s, from %s: %s%s\n",
          label.empty() ? "(none)" : label,
          stays ? TextOf(experts->second) : "all leaving",
          FormatBytes(static_cast<double>(num_bytes)),
          absl::StrJoin(sources[label], ", "),
          stays ? UseOf(label, experts->second, current, canary) : "drains",
          stays && leaving.count(label) > 0 ? ", some are leaving" : "");
    }
  }
  std::fputs(WithoutControls(text).c_str(), stdout);
  return kExitOk;
}

int Status(const Flags& flags) {
  const absl::StatusOr<std::vector<std::string>> addresses = Addresses(flags);
  if (!addresses.ok()) return Fail(std::string(addresses.status().message()));
  const absl::StatusOr<std::vector<ExpertProcess>> processes =
      ExpertsClient(*addresses, flags.gateway.to_experts).List();
  if (!processes.ok()) return Fail(std::string(processes.status().message()));
  std::string text = RolloutText(NewestRollout(*processes));
  for (const ExpertProcess& process : *processes) {
    absl::StrAppendFormat(&text, "%s: revision %d, %d transactions\n",
                          process.address,
                          process.list.description().rollout().revision(),
                          process.list.transactions_size());
    for (const v1::Transaction& transaction : process.list.transactions()) {
      absl::StrAppendFormat(
          &text, "  %s %-8s %s: %d of %d%s\n", transaction.transaction_id(),
          v1::Transaction::State_Name(transaction.state()).substr(6),
          transaction.summary(), transaction.experts_done(),
          transaction.experts_total(),
          transaction.drain_time_was_over() ? ", drain time was over" : "");
      if (!transaction.error().empty()) {
        absl::StrAppend(&text, "    ", transaction.error(), "\n");
      }
    }
  }
  std::fputs(WithoutControls(text).c_str(), stdout);
  return kExitOk;
}

// Until the routers that the gateway knows use the revision.
void AwaitRouters(const ClientFlags& gateway, uint64_t revision) {
  GatewayClient client(gateway.address, gateway.api_key, gateway.to_gateway);
  const SteadyTime limit = std::chrono::steady_clock::now() + kRouterLimit;
  std::string late;
  do {
    const absl::StatusOr<v1::ClusterStats> stats = client.GetStats(false);
    if (!stats.ok()) return;  // --experts may be all that there is
    late.clear();
    for (const v1::RouterStats& router : stats->routers()) {
      if (router.rollout().revision() < revision) late = router.name();
    }
    if (late.empty()) return;
    std::this_thread::sleep_for(kRouterPoll);
  } while (std::chrono::steady_clock::now() < limit);
  std::fprintf(stderr, "router %s has not heard of revision %d yet\n",
               WithoutControls(late).c_str(), static_cast<int>(revision));
}

using Action = absl::Status (*)(ExpertsClient&, const ExpertsUpdateOptions&);

int Change(const Flags& flags, const char* name, Action action) {
  ExpertsUpdateOptions options = flags.update;
  const absl::StatusOr<std::vector<std::string>> addresses = Addresses(flags);
  if (!addresses.ok()) return Fail(std::string(addresses.status().message()));
  if (!options.file.empty()) {
    // The processes read it themselves: it has to be the same for them.
    const absl::StatusOr<std::string> hash = FileHash(options.file);
    if (hash.ok()) {
      options.checksum = *hash;
    } else {
      std::fprintf(stderr,
                   "%s; the expert processes are asked to read it unchecked\n",
                   std::string(hash.status().message()).c_str());
    }
  }
  options.share = static_cast<uint32_t>(flags.share * 100 + 0.5);
  options.run_id =
      absl::StrCat(name, "-", absl::BytesToHexString(RandomBytes(4)));
  options.say = [](const std::string& line) {
    std::fprintf(stderr, "%s\n", WithoutControls(line).c_str());
  };
  options.await_routers = [&flags](uint64_t revision) {
    AwaitRouters(flags.gateway, revision);
  };
  ExpertsClient client(*addresses, flags.gateway.to_experts);
  const absl::Status status = action(client, options);
  if (!status.ok()) return Fail(std::string(status.message()));
  std::fprintf(stderr, "%s: done\n", name);
  return kExitOk;
}

int Extract(const Flags& flags) {
  const absl::StatusOr<std::string> report = ExtractExperts(flags.extract);
  if (!report.ok()) return Fail(std::string(report.status().message()));
  std::fputs(report->c_str(), stdout);
  return kExitOk;
}

CLI::App* AddSub(CLI::App& app, const char* name, const char* text,
                 Flags& flags) {
  CLI::App* sub = app.add_subcommand(name, text);
  AddClientFlags(*sub, flags.gateway,
                 "Of the gateway, whose routers know the expert processes");
  AddAdminPort(*sub, flags.admin_port);
  sub->add_option("--experts", flags.experts,
                  "Addresses of the expert processes instead, with commas "
                  "between")
      ->delimiter(',');
  return sub;
}

void AddFile(CLI::App& app, Flags& flags) {
  app.add_option("--label", flags.update.label,
                 "Name of the new version: letters, digits and ._-");
}

void AddDrain(CLI::App& app, Flags& flags) {
  app.add_flag("--keep-old", flags.update.keep_old,
               "Keep the versions that are not used any more in memory");
  app.add_option_function<double>(
         "--drain-seconds",
         [&flags](double seconds) {
           flags.update.drain_ms = static_cast<uint32_t>(seconds * 1000 + 0.5);
         },
         "Longest time that sequences may go on with old versions (default: "
         "the processes' --drain-seconds)")
      ->check(CLI::Range(0.001, 86400.0));
}

}  // namespace

Command AddExperts(CLI::App& parent) {
  auto flags = std::make_shared<Flags>();
  CLI::App* app = parent.add_subcommand(
      "experts", "Versions and replicas of experts in a running cluster");
  app->require_subcommand(1);
  std::vector<Command> commands;

  CLI::App* list = AddSub(*app, "list", "What is loaded where", *flags);
  list->add_flag("--all", flags->all, "Every expert with its content hash");
  commands.push_back({list, [flags] { return List(*flags); }});

  CLI::App* status =
      AddSub(*app, "status", "The rollout and the latest transactions", *flags);
  commands.push_back({status, [flags] { return Status(*flags); }});

  CLI::App* update = AddSub(
      *app, "update", "Replace experts by those of a safetensors file", *flags);
  update
      ->add_option("FILE", flags->update.file,
                   "With experts' tensors under their names in the model; "
                   "the expert processes read it at this path")
      ->required();
  AddFile(*update, *flags);
  AddDrain(*update, *flags);
  update->add_flag("--one-by-one", flags->update.one_by_one,
                   "One expert of one layer at a time: memory for one more is "
                   "enough, but sequences that begin meanwhile have some old "
                   "and some new ones");
  commands.push_back(
      {update, [flags] { return Change(*flags, "update", &UpdateExperts); }});

  CLI::App* canary = AddSub(
      *app, "canary", "Let a share of the sequences use new experts", *flags);
  canary->add_option("FILE", flags->update.file,
                     "As of update; without it the share is changed");
  AddFile(*canary, *flags);
  canary
      ->add_option("--share", flags->share,
                   "Percent of the sequences, chosen by their request ids")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  commands.push_back(
      {canary, [flags] { return Change(*flags, "canary", &StartCanary); }});

  CLI::App* promote =
      AddSub(*app, "promote", "Let all sequences use the canary's", *flags);
  promote
      ->add_option("--labels", flags->update.labels,
                   "Use these labels instead, the best first, with commas "
                   "between")
      ->delimiter(',');
  AddDrain(*promote, *flags);
  commands.push_back(
      {promote, [flags] { return Change(*flags, "promote", &PromoteCanary); }});

  CLI::App* rollback =
      AddSub(*app, "rollback", "End the canary, or go back to what was before",
             *flags);
  AddDrain(*rollback, *flags);
  commands.push_back(
      {rollback, [flags] { return Change(*flags, "rollback", &RollBack); }});

  CLI::App* extract = app->add_subcommand(
      "extract", "Write some experts of a checkpoint into a file of their own");
  extract
      ->add_option("MODEL_DIR", flags->extract.model_dir,
                   "Checkpoint in Hugging Face format")
      ->required();
  extract->add_option("FILE", flags->extract.file, "To be written")->required();
  extract->add_option("--experts", flags->extract.experts,
                      "Such as 0-3,6 (default: all)");
  extract->add_option("--layers", flags->extract.layers,
                      "Such as 0-11 (default: all)");
  commands.push_back({extract, [flags] { return Extract(*flags); }});

  for (Command& command : AddBalanceCommands(*app)) {
    commands.push_back(std::move(command));
  }

  app->footer(
      "Examples:\n"
      "  troupe experts plan\n"
      "  troupe experts extract NEW_MODEL new.safetensors --experts 3\n"
      "  troupe experts update new.safetensors --label v2\n"
      "  troupe experts canary new.safetensors --label v2 --share 5\n"
      "  troupe experts promote\n"
      "  troupe experts rollback");
  return {app, [commands] {
            for (const Command& command : commands) {
              if (command.app->parsed()) return command.run();
            }
            return kExitUsage;
          }};
}

}  // namespace troupe
