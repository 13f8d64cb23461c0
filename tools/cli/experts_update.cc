#include "tools/cli/experts_update.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cluster/rollout.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

// For versions that nobody uses: until all routers have said so.
constexpr uint32_t kUnusedDrainMs = 2000;
// Between two lines about one process.
constexpr milliseconds kSayEvery(1000);

std::vector<std::string> Names(const LabelList& labels) {
  std::vector<std::string> names;
  for (const v1::RolloutLabel& label : labels) names.push_back(label.label());
  return names;
}

std::string Quoted(const std::vector<std::string>& labels) {
  std::vector<std::string> quoted;
  for (const std::string& label : labels) {
    quoted.push_back(absl::StrCat("\"", label, "\""));
  }
  return absl::StrJoin(quoted, ", ");
}

// `label`, then the others.
std::vector<std::string> InFront(const std::string& label,
                                 std::vector<std::string> labels) {
  std::erase(labels, label);
  labels.insert(labels.begin(), label);
  return labels;
}

std::set<ExpertName> ExpertsOf(const v1::Transaction& transaction) {
  std::set<ExpertName> experts;
  for (const v1::ExpertVersion& version : transaction.experts()) {
    experts.insert(
        {version.range().layer_begin(), version.range().expert_begin()});
  }
  return experts;
}

// One run of a command: numbers its transactions.
class Run {
 public:
  Run(ExpertsClient& client, const ExpertsUpdateOptions& options)
      : client_(client), options_(options) {}

  // The lists of all processes, anew.
  absl::Status Look(std::vector<std::string>* missed = nullptr) {
    ABSL_ASSIGN_OR_RETURN(processes_, client_.List(missed));
    return absl::OkStatus();
  }
  const std::vector<ExpertProcess>& processes() const { return processes_; }
  v1::Rollout rollout() const { return NewestRollout(processes_); }

  // Loads (or checks) at every process that has some of the experts what
  // `fill` says. By process, what is there then.
  absl::StatusOr<std::vector<std::set<ExpertName>>> LoadEverywhere(
      const v1::LoadExpertsRequest& wanted) {
    const std::string id = NextId();
    std::vector<size_t> all;
    absl::Status begun;
    for (size_t i = 0; i < client_.size(); ++i) {
      v1::LoadExpertsRequest request = wanted;
      request.set_transaction_id(id);
      const absl::Status status = client_.Load(i, request).status();
      if (status.ok()) all.push_back(i);
      begun.Update(status);
    }
    const absl::StatusOr<std::vector<v1::Transaction>> done =
        client_.Await(all, id, Progress());
    ABSL_RETURN_IF_ERROR(begun);
    ABSL_RETURN_IF_ERROR(done.status());
    std::vector<std::set<ExpertName>> experts(client_.size());
    for (size_t i = 0; i < all.size(); ++i) {
      experts[all[i]] = ExpertsOf((*done)[i]);
    }
    return experts;
  }

  absl::Status Unload(const std::vector<UnloadStep>& steps, uint32_t drain_ms) {
    absl::Status first_error;
    std::vector<std::pair<size_t, std::string>> begun;
    for (const UnloadStep& step : steps) {
      v1::UnloadExpertsRequest request;
      request.set_transaction_id(NextId());
      for (const v1::ExpertRange& range : RangesOf(step.experts)) {
        *request.add_experts() = range;
      }
      request.set_label(step.label);
      request.set_drain_ms(drain_ms);
      // Another process may have them: the steps are made for the cluster.
      request.set_may_leave_none(true);
      const absl::Status status =
          client_.Unload(step.process, request).status();
      first_error.Update(status);
      if (status.ok())
        begun.emplace_back(step.process, request.transaction_id());
    }
    for (const auto& [process, id] : begun) {
      const auto done = client_.Await({process}, id, Progress());
      first_error.Update(done.status());
      if (done.ok() && done->front().drain_time_was_over()) {
        options_.say(absl::StrCat(
            client_.address(process),
            ": drain time was over; the sequences that were left go on with "
            "another version and say so"));
      }
    }
    return first_error;
  }

  // Unloads what no sequence will use any more.
  absl::Status CleanUp() {
    if (options_.keep_old) return absl::OkStatus();
    ABSL_RETURN_IF_ERROR(Look());
    const std::vector<UnloadStep> steps = Superfluous(processes_, rollout());
    for (const UnloadStep& step : steps) {
      options_.say(absl::StrCat(client_.address(step.process),
                                ": unload version \"", step.label, "\" of ",
                                TextOf(step.experts)));
    }
    const absl::Status status = Unload(steps, options_.drain_ms);
    if (status.ok()) return status;
    return absl::Status(
        status.code(),
        absl::StrCat("the change is made, but the old versions are still "
                     "loaded: ",
                     status.message()));
  }

  absl::Status Set(const v1::Rollout& rollout) {
    std::vector<std::string> missed;
    ABSL_RETURN_IF_ERROR(client_.SetRollout(rollout, &missed));
    for (const std::string& who : missed) {
      options_.say(absl::StrCat("was not told: ", who));
    }
    options_.say(absl::StrCat(
        "revision ", rollout.revision(), ": labels ",
        Quoted(Names(rollout.labels())),
        rollout.canary_labels().empty()
            ? ""
            : absl::StrCat("; canary ", Quoted(Names(rollout.canary_labels())),
                           " for ", rollout.canary_share() / 100.0, " %")));
    options_.await_routers(rollout.revision());
    return absl::OkStatus();
  }

  std::string NextId() {
    return absl::StrCat(options_.run_id, "-", ++last_id_);
  }

 private:
  ExpertsClient::Progress Progress() {
    return [this](size_t process, const v1::Transaction& transaction) {
      if (transaction.state() == v1::Transaction::STATE_QUEUED) return;
      const SteadyTime now = std::chrono::steady_clock::now();
      if (transaction.state() == v1::Transaction::STATE_RUNNING &&
          now < say_again_[process]) {
        return;
      }
      say_again_[process] = now + kSayEvery;
      options_.say(absl::StrCat(
          client_.address(process), ": ", transaction.summary(), ": ",
          transaction.experts_done(), " of ", transaction.experts_total(),
          transaction.state() == v1::Transaction::STATE_DONE     ? ", done"
          : transaction.state() == v1::Transaction::STATE_FAILED ? ", failed"
                                                                 : ""));
    };
  }

  ExpertsClient& client_;
  const ExpertsUpdateOptions& options_;
  std::vector<ExpertProcess> processes_;
  std::map<size_t, SteadyTime> say_again_;
  int last_id_ = 0;
};

v1::LoadExpertsRequest FileRequest(const ExpertsUpdateOptions& options) {
  v1::LoadExpertsRequest request;
  request.set_label(options.label);
  request.set_file(options.file);
  request.set_file_checksum(options.checksum);
  request.set_only_owned(true);
  return request;
}

// Everything that can be wrong is found before anything changes. The experts
// of the file that some process has.
absl::StatusOr<std::set<ExpertName>> Check(
    Run& run, const ExpertsUpdateOptions& options) {
  ABSL_RETURN_IF_ERROR(ValidateLabel("--label", options.label));
  if (options.label.empty()) {
    return absl::InvalidArgumentError("--label: a new version needs one");
  }
  ABSL_RETURN_IF_ERROR(run.Look());
  ABSL_RETURN_IF_ERROR(CurrentLabels(run.processes()).status());
  v1::LoadExpertsRequest request = FileRequest(options);
  request.set_check_only(true);
  ABSL_ASSIGN_OR_RETURN(const std::vector<std::set<ExpertName>> found,
                        run.LoadEverywhere(request));
  std::set<ExpertName> experts;
  for (const auto& some : found) experts.insert(some.begin(), some.end());
  if (experts.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        options.file, ": none of the processes has an expert that it holds"));
  }
  options.say(absl::StrCat(options.file, ": ", TextOf(experts), ": checked"));
  return experts;
}

// What of the label is loaded now and was not in `before`.
std::vector<UnloadStep> NewlyLoaded(const std::vector<ExpertProcess>& before,
                                    const std::vector<ExpertProcess>& now,
                                    const std::string& label) {
  std::vector<UnloadStep> steps;
  for (size_t i = 0; i < now.size(); ++i) {
    const std::set<ExpertName> had = ExpertsByLabel({before[i]})[label];
    UnloadStep step{i, label, ExpertsByLabel({now[i]})[label]};
    for (const ExpertName& name : had) step.experts.erase(name);
    if (!step.experts.empty()) steps.push_back(std::move(step));
  }
  return steps;
}

// Takes out what a failed run has loaded, and returns why it failed.
absl::Status Undo(Run& run, const std::vector<ExpertProcess>& before,
                  const ExpertsUpdateOptions& options,
                  const absl::Status& error) {
  std::vector<std::string> missed;
  absl::Status undone = run.Look(&missed);
  if (undone.ok()) {
    undone = run.Unload(NewlyLoaded(before, run.processes(), options.label),
                        kUnusedDrainMs);
  }
  return absl::Status(
      error.code(),
      undone.ok()
          ? absl::StrCat(error.message(), "; nothing has changed",
                         missed.empty() ? "" : ", as far as they answer")
          : absl::StrCat(error.message(),
                         "; the old versions serve, but some of the new ones "
                         "are still loaded: ",
                         undone.message()));
}

// Loads the whole file beside what is there.
absl::Status LoadBeside(Run& run, const ExpertsUpdateOptions& options) {
  const std::vector<ExpertProcess> before = run.processes();
  const absl::Status loaded = run.LoadEverywhere(FileRequest(options)).status();
  if (!loaded.ok()) return Undo(run, before, options, loaded);
  return run.Look();
}

absl::Status Reload(Run& run, ExpertsClient& client,
                    const std::vector<std::string>& labels) {
  for (const ReloadStep& step : Missing(run.processes(), labels)) {
    v1::LoadExpertsRequest request;
    request.set_transaction_id(run.NextId());
    request.set_label(step.label);
    std::set<ExpertName> experts;
    for (const auto& [name, hash] : step.content_hashes) experts.insert(name);
    for (const v1::ExpertRange& range : RangesOf(experts)) {
      *request.add_experts() = range;
    }
    if (step.source == "checkpoint") {
      request.set_checkpoint(true);
    } else {
      request.set_file(step.source);
    }
    ABSL_RETURN_IF_ERROR(client.Load(step.process, request).status());
    ABSL_ASSIGN_OR_RETURN(
        const std::vector<v1::Transaction> done,
        client.Await({step.process}, request.transaction_id(), nullptr));
    for (const v1::ExpertVersion& version : done[0].experts()) {
      const ExpertName name = {version.range().layer_begin(),
                               version.range().expert_begin()};
      if (step.content_hashes.at(name) == version.content_hash()) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          client.address(step.process), ": ", step.source,
          " has other weights now of expert ", name.expert, " of layer ",
          name.layer, " than version \"", step.label, "\" had"));
    }
  }
  return run.Look();
}

// Goes to `labels`, which may have to be loaded again.
absl::Status GoTo(Run& run, ExpertsClient& client,
                  const std::vector<std::string>& labels,
                  const std::vector<std::string>& previous) {
  ABSL_RETURN_IF_ERROR(Reload(run, client, labels));
  const v1::Rollout next =
      MakeRollout(run.processes(), run.rollout(), labels, {}, 0, previous);
  if (next.labels().empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "no process has a version with one of the labels ", Quoted(labels)));
  }
  ABSL_RETURN_IF_ERROR(run.Set(next));
  return run.CleanUp();
}

// An expert at a time: memory for one more is enough.
absl::Status UpdateOneByOne(Run& run, ExpertsClient& client,
                            const ExpertsUpdateOptions& options,
                            const std::set<ExpertName>& experts,
                            const std::vector<std::string>& old_labels) {
  absl::Status status;
  for (const ExpertName& expert : experts) {
    const std::vector<ExpertProcess> before = run.processes();
    v1::LoadExpertsRequest request = FileRequest(options);
    for (const v1::ExpertRange& range : RangesOf({expert})) {
      *request.add_experts() = range;
    }
    status = run.LoadEverywhere(request).status();
    if (!status.ok()) {
      status = Undo(run, before, options, status);
      break;
    }
    status = run.Look();
    if (!status.ok()) break;
    status = run.Set(MakeRollout(run.processes(), run.rollout(),
                                 InFront(options.label, old_labels), {}, 0,
                                 old_labels));
    if (status.ok()) status = run.CleanUp();
    if (status.ok()) status = run.Look();
    if (!status.ok()) break;
  }
  if (status.ok()) return status;
  options.say(absl::StrCat(status.message(), "; going back"));
  absl::Status back = run.Look();
  if (back.ok()) back = GoTo(run, client, old_labels, {});
  return absl::Status(
      status.code(),
      back.ok() ? absl::StrCat(status.message(),
                               "; all experts have their old versions again")
                : absl::StrCat(status.message(),
                               "; and going back failed: ", back.message()));
}

}  // namespace

absl::Status UpdateExperts(ExpertsClient& client,
                           const ExpertsUpdateOptions& options) {
  Run run(client, options);
  ABSL_ASSIGN_OR_RETURN(const std::set<ExpertName> experts,
                        Check(run, options));
  if (!run.rollout().canary_labels().empty()) {
    return absl::FailedPreconditionError(
        "there is a canary: promote it or roll it back first");
  }
  ABSL_ASSIGN_OR_RETURN(const std::vector<std::string> old_labels,
                        CurrentLabels(run.processes()));
  if (options.one_by_one) {
    return UpdateOneByOne(run, client, options, experts, old_labels);
  }
  const std::vector<ExpertProcess> before = run.processes();
  ABSL_RETURN_IF_ERROR(LoadBeside(run, options));
  const absl::Status set = run.Set(
      MakeRollout(run.processes(), run.rollout(),
                  InFront(options.label, old_labels), {}, 0, old_labels));
  if (!set.ok()) return Undo(run, before, options, set);
  return run.CleanUp();
}

absl::Status StartCanary(ExpertsClient& client,
                         const ExpertsUpdateOptions& options) {
  Run run(client, options);
  if (options.file.empty()) {
    ABSL_RETURN_IF_ERROR(run.Look());
    v1::Rollout rollout = run.rollout();
    if (rollout.canary_labels().empty()) {
      return absl::FailedPreconditionError("there is no canary");
    }
    rollout.set_revision(rollout.revision() + 1);
    rollout.set_canary_share(options.share);
    return run.Set(rollout);
  }
  ABSL_RETURN_IF_ERROR(Check(run, options).status());
  if (!run.rollout().canary_labels().empty()) {
    return absl::FailedPreconditionError(
        "there is a canary already: promote it or roll it back first");
  }
  ABSL_ASSIGN_OR_RETURN(const std::vector<std::string> labels,
                        CurrentLabels(run.processes()));
  const std::vector<ExpertProcess> before = run.processes();
  ABSL_RETURN_IF_ERROR(LoadBeside(run, options));
  const absl::Status set = run.Set(MakeRollout(
      run.processes(), run.rollout(), labels, InFront(options.label, labels),
      options.share, Names(run.rollout().previous_labels())));
  return set.ok() ? set : Undo(run, before, options, set);
}

absl::Status PromoteCanary(ExpertsClient& client,
                           const ExpertsUpdateOptions& options) {
  Run run(client, options);
  ABSL_RETURN_IF_ERROR(run.Look());
  const v1::Rollout rollout = run.rollout();
  std::vector<std::string> labels = options.labels;
  if (labels.empty()) labels = Names(rollout.canary_labels());
  if (labels.empty()) {
    return absl::FailedPreconditionError("there is no canary");
  }
  const v1::Rollout next = MakeRollout(run.processes(), rollout, labels, {}, 0,
                                       Names(rollout.labels()));
  if (next.labels().empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "no process has a version with one of the labels ", Quoted(labels)));
  }
  ABSL_RETURN_IF_ERROR(run.Set(next));
  return run.CleanUp();
}

absl::Status RollBack(ExpertsClient& client,
                      const ExpertsUpdateOptions& options) {
  Run run(client, options);
  ABSL_RETURN_IF_ERROR(run.Look());
  const v1::Rollout rollout = run.rollout();
  if (!rollout.canary_labels().empty()) {
    return GoTo(run, client, Names(rollout.labels()),
                Names(rollout.previous_labels()));
  }
  if (rollout.previous_labels().empty()) {
    return absl::FailedPreconditionError(
        "there is nothing to go back to: no change of versions is known");
  }
  return GoTo(run, client, Names(rollout.previous_labels()),
              Names(rollout.labels()));
}

}  // namespace troupe
