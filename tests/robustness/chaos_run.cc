#include "tests/robustness/chaos_run.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/rpc/rpc_channel.h"
#include "common/status_macros.h"
#include "tests/robustness/faults.h"
#include "tests/robustness/open_loop_load.h"

namespace troupe {
namespace {

constexpr int kStartMs = 60000;  // for the cluster to be whole at first
constexpr int kHealMs = 20000;   // and again after a fault
constexpr int kIdleMs = 15000;   // for the last work to be gone

void SleepUntil(const OpenLoopLoad& load, double until_s) {
  const double left_s = until_s - load.Now();
  if (left_s > 0) {
    std::this_thread::sleep_for(std::chrono::duration<double>(left_s));
  }
}

// What is not as it should be when nothing is to be done.
std::vector<std::string> WhatIsNotIdle(const v1::ClusterStats& stats) {
  std::vector<std::string> problems;
  const auto expect = [&](const std::string& what, uint64_t is,
                          uint64_t should_be) {
    if (is == should_be) return;
    problems.push_back(
        absl::StrCat("integrity: ", what, " is ", is, ", not ", should_be));
  };
  const auto add = [&](const std::string& name, const auto& errors) {
    for (const std::string& error : errors) {
      problems.push_back(absl::StrCat("integrity: ", name, ": ", error));
    }
  };
  const v1::GatewayStats& gateway = stats.gateway();
  expect("active requests of the gateway", gateway.active_requests(), 0);
  expect("the gateway's sum of ended requests",
         gateway.requests_ok() + gateway.requests_cancelled() +
             gateway.requests_refused() + gateway.requests_failed(),
         gateway.requests());
  add("gateway", gateway.integrity_errors());
  for (const v1::RouterStats& router : stats.routers()) {
    const std::string& name = router.name();
    expect("running sequences of " + name, router.running_sequences(), 0);
    expect("waiting sequences of " + name, router.waiting_sequences(), 0);
    expect("free KV blocks of " + name, router.kv_blocks_free(),
           router.kv_blocks_total());
    add(name, router.integrity_errors());
    for (const v1::ExpertPeer& peer : router.peers()) {
      expect(absl::StrCat("rows of ", name, " in flight to ",
                          peer.description().name()),
             peer.in_flight_rows(), 0);
    }
  }
  for (const v1::ExpertStats& expert : stats.experts()) {
    const std::string& name = expert.description().name();
    expect("queued rows of " + name, expert.queued_rows(), 0);
    add(name, expert.integrity_errors());
  }
  for (const std::string& address : stats.unreachable()) {
    problems.push_back(
        absl::StrCat("integrity: ", address, " does not answer"));
  }
  return problems;
}

class Run {
 public:
  Run(const ChaosOptions& options, ChaosCluster& cluster)
      : options_(options),
        cluster_(cluster),
        context_{.cluster = cluster,
                 .random = random_,
                 .outage_ms = options.outage_ms,
                 .victim = "",
                 .num_updates = 0} {}

  absl::StatusOr<ChaosOutcome> Do() {
    ABSL_RETURN_IF_ERROR(Prepare());
    const std::vector<const Fault*> faults = PossibleFaults();
    if (faults.empty()) return std::move(outcome_);
    next_s_ = options_.period_s;  // the first one warms everything up
    for (size_t i = options_.num_done; !IsOver(i, faults.size()); ++i) {
      Inflict(*ChooseFault(faults, i), i);
    }
    CheckTheEnd();
    return std::move(outcome_);
  }

 private:
  void Say(const std::string& line) const {
    if (options_.say) options_.say(line);
  }

  // The bytes of each request by itself, and the load.
  absl::Status Prepare() {
    const auto stub = v1::Gateway::NewStub(MakeChannel(cluster_.address()));
    grpc::ClientContext context;
    v1::ModelInfo model;
    const grpc::Status status = stub->GetModel(&context, {}, &model);
    if (!status.ok()) return absl::UnavailableError(status.error_message());
    std::vector<LoadTemplate> templates = MakeTemplates(
        options_.num_templates, model.vocab_size(), options_.max_prompt,
        options_.max_tokens, options_.policies, options_.seed);
    std::vector<ResponseBytes> references;
    OpenLoopOptions load;
    double seconds = 0;
    for (const LoadTemplate& each : templates) {
      LoneOutcome outcome =
          GenerateAlone(*stub, each.request, options_.timeout_ms);
      if (!outcome.status.ok()) {
        return absl::InternalError(absl::StrCat(
            "a request alone fails: ", outcome.status.error_message()));
      }
      if (options_.spoil_references) outcome.bytes = ResponseBytes();
      references.push_back(std::move(outcome.bytes));
      if (outcome.usage.copies().computed_tokens() > 0) {
        load.copies_per_token = uint64_t{model.num_layers()} * model.top_k();
      }
      seconds += outcome.seconds;
    }
    const double mean_s = seconds / static_cast<double>(templates.size());
    load.address = cluster_.address();
    load.rate_per_s = options_.rate_per_s > 0 ? options_.rate_per_s
                                              : options_.streams / mean_s;
    load.period_s = options_.period_s;
    load.seed = options_.seed;
    load.timeout_ms = options_.timeout_ms;
    load.call_again = options_.call_again;
    Say(absl::StrFormat(
        "%s, seed %d: %.1f requests/s; alone one takes %.0f ms; periods of "
        "%.0f s, faults of %.1f s; copies are %s",
        model.name(), options_.seed, load.rate_per_s, 1e3 * mean_s,
        options_.period_s, 1e-3 * options_.outage_ms,
        load.copies_per_token > 0 ? "accounted for" : "not reported"));
    load_ = std::make_unique<OpenLoopLoad>(load, std::move(templates),
                                           std::move(references));
    return absl::OkStatus();
  }

  std::vector<const Fault*> PossibleFaults() {
    std::vector<const Fault*> possible;
    for (const Fault& fault : AllFaults()) {
      if (std::find(options_.faults.begin(), options_.faults.end(),
                    fault.name) == options_.faults.end()) {
        continue;
      }
      const std::string why_not = fault.why_not(cluster_);
      if (why_not.empty()) {
        possible.push_back(&fault);
        continue;
      }
      outcome_.skipped.push_back(absl::StrCat(fault.name, ": ", why_not));
      Say("SKIPPED " + outcome_.skipped.back());
    }
    return possible;
  }

  bool IsOver(size_t index, size_t num_faults) const {
    return options_.minutes > 0 ? load_->Now() >= 60 * options_.minutes
                                : index >= options_.num_rounds * num_faults;
  }

  // Of a round, in the round's own order; and the victim is the fault's own,
  // whatever happened before it.
  const Fault* ChooseFault(std::vector<const Fault*> faults, size_t index) {
    std::mt19937_64 order(options_.seed * 1000003 + index / faults.size());
    for (size_t i = faults.size(); i > 1; --i) {
      std::swap(faults[i - 1], faults[order() % i]);
    }
    random_.seed(options_.seed * 7919 + index);
    return faults[index % faults.size()];
  }

  void Sample() {
    for (const ChaosProcess* process : cluster_.All()) {
      if (process->child == nullptr) continue;
      const pid_t pid = process->child->pid();
      watch_.Add(process->name, pid, SizeOfProcess(pid));
    }
  }

  void Inflict(const Fault& fault, size_t index) {
    FaultWindow window;
    window.fault = fault.name;
    window.cuts_streams = fault.cuts_streams;
    window.period_s = options_.period_s;
    window.quiet_begin_s = next_s_;
    window.begin_s = next_s_ + options_.period_s;
    SleepUntil(*load_, window.begin_s);
    Sample();
    SleepUntil(*load_, window.begin_s + 0.1 * options_.period_s);
    // Not before there is something to lose.
    const double latest_s = window.begin_s + 0.5 * options_.period_s;
    while (load_->num_streaming() < options_.limits.min_streaming &&
           load_->Now() < latest_s) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    window.streaming = load_->num_streaming();
    window.fault_at_s = load_->Now();
    absl::Status done = fault.run(context_);
    window.victim = context_.victim;
    if (!done.ok()) window.errors.emplace_back(done.message());
    done = cluster_.WaitUntilWhole(kHealMs);
    if (!done.ok()) {
      window.errors.push_back(
          absl::StrCat("not whole again: ", done.message()));
    }
    window.whole_at_s = load_->Now();
    CheckIntegrity(window.errors);
    SleepUntil(*load_, window.begin_s + options_.period_s);
    window.end_s = load_->Now();
    next_s_ = options_.period_s *
              std::ceil((window.end_s - 0.01) / options_.period_s);
    const FaultResult result =
        Measure(window, load_->Records(window.quiet_begin_s));
    num_failed_ += result.failed;
    num_wrong_ += result.wrong_bytes;
    Say(absl::StrCat(index, " ", Summary(result)));
    FaultLimits limits = options_.limits;
    if (fault.cuts_streams) limits.max_stall_ms = 0;
    for (std::string& problem : Problems(result, limits)) {
      AddProblem(std::move(problem));
    }
    if (options_.on_result) options_.on_result(result);
    outcome_.results.push_back(result);
  }

  // Under load, what processes find wrong with themselves.
  void CheckIntegrity(std::vector<std::string>& errors) const {
    const absl::StatusOr<v1::ClusterStats> stats = cluster_.Stats(true);
    if (!stats.ok()) {
      errors.emplace_back(stats.status().message());
      return;
    }
    for (const v1::RouterStats& router : stats->routers()) {
      errors.insert(errors.end(), router.integrity_errors().begin(),
                    router.integrity_errors().end());
    }
    for (const v1::ExpertStats& expert : stats->experts()) {
      errors.insert(errors.end(), expert.integrity_errors().begin(),
                    expert.integrity_errors().end());
    }
  }

  void AddProblem(std::string problem) {
    Say("PROBLEM " + problem);
    outcome_.problems.push_back(std::move(problem));
  }

  void CheckTheEnd() {
    const size_t num_hanging = load_->Stop();
    if (num_hanging > 0) {
      AddProblem(absl::StrCat("hang: ", num_hanging,
                              " requests have not ended by their deadline"));
    }
    size_t num_requests = 0;
    size_t num_failed = 0;
    size_t num_wrong = 0;
    for (const StreamRecord& record : load_->Records(0)) {
      ++num_requests;
      num_wrong += !record.same_bytes;
      if (record.ok || record.end_s < 0) continue;
      ++num_failed;
      Say(absl::StrFormat("failed: due at %.1f s, broken at %.1f s: %s",
                          record.due_s, record.broken_s, record.error));
    }
    if (num_failed > num_failed_ || num_wrong > num_wrong_) {
      AddProblem(absl::StrCat("failed: ", num_failed, " requests in all, ",
                              num_wrong,
                              " with wrong bytes, of them in the "
                              "periods of faults ",
                              num_failed_, " and ", num_wrong_));
    }
    Say(absl::StrCat(num_requests, " requests"));
    CheckIdle();
    Sample();
    Say(watch_.Report(options_.growth.num_warm));
    for (std::string& problem : watch_.Problems(options_.growth)) {
      AddProblem(std::move(problem));
    }
  }

  void CheckIdle() {
    std::vector<std::string> problems;
    const SteadyTime limit =
        std::chrono::steady_clock::now() + milliseconds(kIdleMs);
    do {
      const absl::StatusOr<v1::ClusterStats> stats = cluster_.Stats(true);
      problems = stats.ok() ? WhatIsNotIdle(*stats)
                            : std::vector<std::string>{absl::StrCat(
                                  "integrity: ", stats.status().message())};
      if (problems.empty()) return;
      std::this_thread::sleep_for(milliseconds(100));
    } while (std::chrono::steady_clock::now() < limit);
    for (std::string& problem : problems) AddProblem(std::move(problem));
  }

  const ChaosOptions& options_;
  ChaosCluster& cluster_;
  std::mt19937_64 random_;
  FaultContext context_;
  std::unique_ptr<OpenLoopLoad> load_;
  ProcessWatch watch_;
  double next_s_ = 0;  // when the next quiet period may begin
  size_t num_failed_ = 0;
  size_t num_wrong_ = 0;
  ChaosOutcome outcome_;
};

}  // namespace

absl::StatusOr<ChaosOutcome> RunChaos(const ChaosOptions& options) {
  ChaosCluster cluster(options.cluster);
  ABSL_RETURN_IF_ERROR(cluster.WaitUntilWhole(kStartMs));
  return Run(options, cluster).Do();
}

}  // namespace troupe
