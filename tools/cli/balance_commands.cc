#include "tools/cli/balance_commands.h"

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/balance_watch.h"
#include "common/status_macros.h"
#include "tools/cli/balance_actions.h"
#include "tools/cli/balance_apply.h"
#include "tools/cli/balance_input.h"
#include "tools/cli/balance_report.h"
#include "tools/cli/client_flags.h"
#include "tools/cli/experts_client.h"
#include "tools/cli/interrupts.h"
#include "tools/cli/terminal.h"

namespace troupe {
namespace {

struct Flags {
  ClientFlags gateway;
  BalanceInputOptions input;
  BalanceOptions balance;
  BalanceActionsOptions actions;
  BalanceWatchOptions watch;
  double min_gain_percent = 5;
  double every_seconds = 60;
  std::string name = "balancer";
  bool json = false;
  bool dry_run = false;
};

struct Planned {
  BalanceInput input;
  BalancePlan plan;
};

void Say(const std::string& line) {
  std::fprintf(stderr, "%s\n", WithoutControls(line).c_str());
}

absl::StatusOr<Planned> Plan(GatewayClient& client, const Flags& flags) {
  ABSL_ASSIGN_OR_RETURN(const v1::ModelInfo model, client.GetModel());
  ABSL_ASSIGN_OR_RETURN(const v1::ClusterStats stats,
                        client.GetStats(/*include_experts=*/false));
  Planned planned;
  ABSL_ASSIGN_OR_RETURN(planned.input,
                        MakeBalanceInput(model, stats, flags.input));
  BalanceOptions options = flags.balance;
  options.min_gain = flags.min_gain_percent / 100;
  ABSL_ASSIGN_OR_RETURN(planned.plan,
                        PlanBalance(planned.input.problem, options));
  return planned;
}

absl::StatusOr<BalanceApplied> Apply(GatewayClient& client, const Flags& flags,
                                     const Planned& planned) {
  ABSL_ASSIGN_OR_RETURN(
      const std::unique_ptr<BalanceActions> actions,
      MakeBalanceActions(client, planned.input.addresses,
                         flags.gateway.to_experts, flags.actions));
  return ApplyBalance(planned.plan, planned.input.problem, *actions, Say);
}

int Fail(const Flags& flags, const absl::Status& status) {
  Say(absl::StrCat("troupe: ", Explain(status, flags.gateway.address)));
  return kExitFailed;
}

int RunPlan(const Flags& flags) {
  GatewayClient client(flags.gateway.address, flags.gateway.api_key,
                       flags.gateway.to_gateway);
  const absl::StatusOr<Planned> planned = Plan(client, flags);
  if (!planned.ok()) return Fail(flags, planned.status());
  const std::string text =
      flags.json ? BalanceJson(planned->input, planned->plan)
                 : WithoutControls(BalanceTable(planned->input, planned->plan));
  std::fputs(text.c_str(), stdout);
  return kExitOk;
}

int RunApply(const Flags& flags) {
  GatewayClient client(flags.gateway.address, flags.gateway.api_key,
                       flags.gateway.to_gateway);
  const absl::StatusOr<Planned> planned = Plan(client, flags);
  if (!planned.ok()) return Fail(flags, planned.status());
  Say(BalanceVerdict(planned->plan));
  if (planned->plan.phases.empty()) return kExitOk;
  const absl::StatusOr<BalanceApplied> applied = Apply(client, flags, *planned);
  if (!applied.ok()) return Fail(flags, applied.status());
  if (!applied->status.ok()) {
    Say(absl::StrCat(applied->loads, " loads and ", applied->unloads,
                     " unloads are done; every expert has a replica. Run it "
                     "again to go on."));
    return kExitFailed;
  }
  Say(absl::StrCat("done: ", applied->loads, " loads, ", applied->unloads,
                   " unloads"));
  return kExitOk;
}

// One run of the loop; fills in the report.
absl::Status RunOnce(GatewayClient& client, const Flags& flags,
                     BalanceWatch& watch, v1::BalanceReport& report) {
  ABSL_ASSIGN_OR_RETURN(const Planned planned, Plan(client, flags));
  report.set_imbalance_before(planned.plan.before.imbalance());
  report.set_imbalance_after(planned.plan.before.imbalance());
  report.set_detail(BalanceVerdict(planned.plan));
  const BalanceWatch::Verdict verdict =
      watch.Look(planned.plan, planned.input.tokens);
  report.set_verdict(Name(verdict));
  if (verdict == BalanceWatch::Verdict::kWaiting) {
    report.set_detail(absl::StrCat(report.detail(), "; seen ", watch.windows(),
                                   " times in a row"));
  }
  if (verdict != BalanceWatch::Verdict::kApply) return absl::OkStatus();
  report.set_imbalance_after(planned.plan.after.imbalance());
  if (flags.dry_run) {
    report.set_verdict("planned");
    return absl::OkStatus();
  }
  Say(report.detail());
  ABSL_ASSIGN_OR_RETURN(const BalanceApplied applied,
                        Apply(client, flags, planned));
  report.set_loads(report.loads() + applied.loads);
  report.set_unloads(report.unloads() + applied.unloads);
  ABSL_RETURN_IF_ERROR(applied.status);
  report.set_verdict("applied");
  return absl::OkStatus();
}

int RunBalance(const Flags& flags) {
  const Interrupts interrupts(nullptr);
  GatewayClient client(flags.gateway.address, flags.gateway.api_key,
                       flags.gateway.to_gateway);
  BalanceWatch watch(flags.watch);
  v1::BalanceReport report;
  report.set_name(flags.name);
  report.set_every_seconds(flags.every_seconds);
  bool reported = true;
  do {
    const absl::Status status = RunOnce(client, flags, watch, report);
    report.set_runs(report.runs() + 1);
    if (!status.ok()) {
      report.set_failed_runs(report.failed_runs() + 1);
      report.set_verdict("failed");
      report.set_detail(Explain(status, flags.gateway.address));
      report.set_last_error(report.detail());
    }
    Say(absl::StrCat("run ", report.runs(), ": ", report.verdict(), ": ",
                     report.detail()));
    const absl::Status told = client.ReportBalance(report);
    if (!told.ok() && reported) {
      Say(absl::StrCat("the gateway was not told: ",
                       Explain(told, flags.gateway.address)));
    }
    reported = told.ok();
  } while (!interrupts.WaitFor(
      milliseconds(static_cast<int64_t>(flags.every_seconds * 1000))));
  return kExitOk;
}

void AddPlanFlags(CLI::App& app, Flags& flags) {
  AddClientFlags(app, flags.gateway);
  AddAdminPort(app, flags.actions.admin_port);
  const std::map<std::string, BalanceBy> by = {
      {"tokens", BalanceBy::kTokens},
      {"activated", BalanceBy::kActivatedExperts}};
  app.add_option("--by", flags.input.by,
                 "What an expert costs: tokens (its rows), or activated (how "
                 "often its weights are read, where memory bounds a step)")
      ->transform(CLI::CheckedTransformer(by))
      ->default_str("tokens");
  const std::map<std::string, BalanceMode> mode = {
      {"global", BalanceMode::kGlobal},
      {"hierarchical", BalanceMode::kHierarchical}};
  app.add_option("--mode", flags.balance.mode,
                 "global, or hierarchical: the experts of a group stay on one "
                 "host")
      ->transform(CLI::CheckedTransformer(mode))
      ->default_str("global");
  app.add_option("--groups", flags.input.num_groups,
                 "Groups of experts in a layer, for hierarchical")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  CLI::Option* slots =
      app.add_option("--slots", flags.input.slots,
                     "Experts (of one layer) that a process may hold")
          ->check(CLI::Range(1, 1 << 20));
  app.add_option("--memory-mb", flags.input.memory_mb,
                 "Weights that a process may hold, in MiB, instead")
      ->check(CLI::Range(1, 1 << 30))
      ->excludes(slots);
  app.add_option("--spare", flags.input.spare_percent,
                 "Without either: percent above an equal share of all experts")
      ->check(CLI::Range(0.0, 1000.0))
      ->capture_default_str();
  app.add_option("--min-gain", flags.min_gain_percent,
                 "Percent of the experts' time that a plan has to gain, or "
                 "nothing changes")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
}

void AddWithout(CLI::App& app, Flags& flags) {
  app.add_option("--without", flags.input.without,
                 "Empty these processes (names or addresses, with commas "
                 "between) before they are taken away")
      ->delimiter(',');
}

void AddDrain(CLI::App& app, Flags& flags) {
  app.add_option_function<double>(
         "--drain-seconds",
         [&flags](double seconds) {
           flags.actions.drain_ms = static_cast<uint32_t>(seconds * 1000 + 0.5);
         },
         "Longest time that sequences may hold an expert that is unloaded "
         "(default: the processes' --drain-seconds)")
      ->check(CLI::Range(0.001, 86400.0));
}

}  // namespace

std::vector<Command> AddBalanceCommands(CLI::App& experts) {
  auto flags = std::make_shared<Flags>();
  std::vector<Command> commands;
  CLI::App* plan = experts.add_subcommand(
      "plan", "Which experts deserve another replica, and where");
  AddPlanFlags(*plan, *flags);
  AddWithout(*plan, *flags);
  plan->add_flag("--json", flags->json, "As JSON");
  commands.push_back({plan, [flags] { return RunPlan(*flags); }});

  CLI::App* apply = experts.add_subcommand(
      "apply", "Make that plan and carry it out on the running cluster");
  AddPlanFlags(*apply, *flags);
  AddWithout(*apply, *flags);
  AddDrain(*apply, *flags);
  commands.push_back({apply, [flags] { return RunApply(*flags); }});

  CLI::App* balance = experts.add_subcommand(
      "balance", "Plan and apply from time to time, until Ctrl-C");
  AddPlanFlags(*balance, *flags);
  AddDrain(*balance, *flags);
  balance
      ->add_option("--every", flags->every_seconds,
                   "Between two runs, such as 60s or 5m")
      ->transform(CLI::AsNumberWithUnit(
          std::map<std::string, double>{
              {"ms", 0.001}, {"s", 1}, {"m", 60}, {"h", 3600}},
          CLI::AsNumberWithUnit::CASE_INSENSITIVE, "SECONDS"))
      ->check(CLI::Range(0.1, 86400.0))
      ->default_str("60s");
  balance
      ->add_option("--windows", flags->watch.windows,
                   "Runs in a row that have to see a gain before it is applied")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  balance
      ->add_option("--min-tokens", flags->watch.min_tokens,
                   "With fewer copies of late nothing is changed")
      ->check(CLI::Range(0.0, 1e18))
      ->capture_default_str();
  balance->add_option("--name", flags->name, "In `troupe stats`")
      ->envname("TROUPE_NAME")
      ->capture_default_str();
  balance->add_flag("--dry-run", flags->dry_run, "Report, change nothing");
  commands.push_back({balance, [flags] { return RunBalance(*flags); }});
  return commands;
}

}  // namespace troupe
