#include "expert_service/expert_transactions.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"
#include "cluster/rollout.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

constexpr size_t kMaxIdBytes = 128;
constexpr size_t kMaxUnfinished = 64;
constexpr size_t kMaxFinished = 64;
constexpr int kNiceness = 10;
// How often the memory of unloaded experts is looked at, and how long.
constexpr milliseconds kFreePoll(2);
constexpr milliseconds kFreeLimit(60000);

absl::Status ValidateId(const std::string& id) {
  if (!id.empty() && id.size() <= kMaxIdBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "transaction_id has ", id.size(), " characters, not 1 to ", kMaxIdBytes));
}

v1::LoadedExpert ToProto(const LoadedExpert& expert) {
  v1::LoadedExpert loaded;
  *loaded.mutable_version() = expert.version;
  loaded.set_source(expert.source);
  loaded.set_weight_bytes(expert.num_bytes());
  return loaded;
}

}  // namespace

ExpertTransactions::ExpertTransactions(ExpertTransactionsOptions options,
                                       const Checkpoint& checkpoint,
                                       ExpertStore& store, ExpertServer& server)
    : options_(std::move(options)),
      checkpoint_(checkpoint),
      store_(store),
      server_(server) {
  thread_ = std::thread([this] { Run(); });
}

ExpertTransactions::~ExpertTransactions() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  server_.CancelWait();
  thread_.join();
}

bool ExpertTransactions::stopping() const {
  absl::MutexLock lock(&mu_);
  return stopping_;
}

absl::StatusOr<v1::Transaction> ExpertTransactions::Load(
    const v1::LoadExpertsRequest& request) {
  ABSL_RETURN_IF_ERROR(ValidateId(request.transaction_id()));
  ABSL_RETURN_IF_ERROR(ValidateLabel("label", request.label()));
  ABSL_RETURN_IF_ERROR(Expand(request.experts()).status());
  std::string source = "the checkpoint";
  switch (request.source_case()) {
    case v1::LoadExpertsRequest::kCheckpoint:
      if (!request.checkpoint() || request.experts().empty()) {
        return absl::InvalidArgumentError(
            "checkpoint: true, and experts that say which");
      }
      break;
    case v1::LoadExpertsRequest::kFile:
      if (request.label().empty()) {
        return absl::InvalidArgumentError(
            "label is empty: the experts of a file need one");
      }
      source = request.file();
      break;
    default:
      return absl::InvalidArgumentError("source is not set");
  }
  return Begin(
      request.transaction_id(), /*is_load=*/true, request.SerializeAsString(),
      absl::StrCat(request.check_only() ? "check" : "load", " version \"",
                   request.label(), "\" from ", source));
}

absl::StatusOr<v1::Transaction> ExpertTransactions::Unload(
    const v1::UnloadExpertsRequest& request) {
  ABSL_RETURN_IF_ERROR(ValidateId(request.transaction_id()));
  ABSL_RETURN_IF_ERROR(ValidateLabel("label", request.label()));
  ABSL_ASSIGN_OR_RETURN(const std::vector<ExpertOfLayer> which,
                        Expand(request.experts()));
  if (which.empty()) {
    return absl::InvalidArgumentError("experts is empty");
  }
  return Begin(request.transaction_id(), /*is_load=*/false,
               request.SerializeAsString(),
               absl::StrCat("unload version \"", request.label(), "\" of ",
                            which.size(), " experts"));
}

absl::StatusOr<v1::Transaction> ExpertTransactions::Begin(const std::string& id,
                                                          bool is_load,
                                                          std::string request,
                                                          std::string summary) {
  absl::MutexLock lock(&mu_);
  if (stopping_) return absl::UnavailableError("the process is draining");
  size_t num_unfinished = 0;
  for (const auto& task : tasks_) {
    if (!task->finished()) ++num_unfinished;
    if (task->status.transaction_id() != id) continue;
    if (task->is_load == is_load && task->request == request) {
      return task->status;
    }
    return absl::AlreadyExistsError(absl::StrCat(
        "transaction_id: \"", absl::CHexEscape(id),
        "\" belongs to another request: ", task->status.summary()));
  }
  if (num_unfinished >= kMaxUnfinished) {
    return absl::ResourceExhaustedError(
        absl::StrCat(num_unfinished, " transactions wait already"));
  }
  while (tasks_.size() - num_unfinished > kMaxFinished) {
    // They run in order: the first is finished.
    tasks_.pop_front();
  }
  auto task = std::make_unique<Task>();
  task->status.set_transaction_id(id);
  task->status.set_state(v1::Transaction::STATE_QUEUED);
  task->status.set_summary(std::move(summary));
  task->request = std::move(request);
  task->is_load = is_load;
  tasks_.push_back(std::move(task));
  return tasks_.back()->status;
}

absl::StatusOr<v1::Transaction> ExpertTransactions::Get(
    const std::string& id) const {
  absl::MutexLock lock(&mu_);
  for (const auto& task : tasks_) {
    if (task->status.transaction_id() == id) return task->status;
  }
  return absl::NotFoundError(
      absl::StrCat("no transaction \"", absl::CHexEscape(id), "\" is known"));
}

void ExpertTransactions::List(v1::ListExpertsResponse& response) const {
  for (const auto& expert : store_.experts()->All()) {
    *response.add_experts() = ToProto(*expert);
  }
  response.set_model_dir(checkpoint_.model_dir());
  absl::MutexLock lock(&mu_);
  for (const auto& [key, expert] : unloaded_) {
    *response.add_unloaded() = expert;
  }
  for (const auto& task : tasks_) {
    *response.add_transactions() = task->status;
  }
}

void ExpertTransactions::Run() {
  // The threads that compute come first.
  if (setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness) != 0) {
    spdlog::warn("experts are loaded at the priority of the others");
  }
  while (true) {
    Task* task = nullptr;
    {
      absl::MutexLock lock(&mu_);
      const auto next = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        const auto it =
            std::find_if(tasks_.begin(), tasks_.end(),
                         [](const auto& t) { return !t->finished(); });
        task = it == tasks_.end() ? nullptr : it->get();
        return stopping_ || task != nullptr;
      };
      mu_.Await(absl::Condition(&next));
      if (stopping_) return;
      task->status.set_state(v1::Transaction::STATE_RUNNING);
    }
    absl::Status status;
    if (task->is_load) {
      v1::LoadExpertsRequest request;
      request.ParseFromString(task->request);
      status = RunLoad(request, *task);
    } else {
      v1::UnloadExpertsRequest request;
      request.ParseFromString(task->request);
      status = RunUnload(request, *task);
    }
    absl::MutexLock lock(&mu_);
    if (status.ok()) {
      task->status.set_state(v1::Transaction::STATE_DONE);
      spdlog::info("{}: done", task->status.summary());
    } else {
      task->status.set_state(v1::Transaction::STATE_FAILED);
      task->status.clear_experts();
      task->status.set_error(std::string(status.message()));
      spdlog::error("{}: {}", task->status.summary(), task->status.error());
    }
  }
}

absl::StatusOr<std::vector<ExpertOfLayer>> ExpertTransactions::Expand(
    const google::protobuf::RepeatedPtrField<v1::ExpertRange>& ranges) const {
  const ModelConfig& config = checkpoint_.config();
  std::vector<ExpertOfLayer> experts;
  for (const v1::ExpertRange& range : ranges) {
    if (range.layer_begin() >= range.layer_end() ||
        range.expert_begin() >= range.expert_end() ||
        range.layer_end() > config.num_layers ||
        range.expert_end() > config.num_experts) {
      return absl::InvalidArgumentError(absl::StrCat(
          "experts: [", range.expert_begin(), ", ", range.expert_end(),
          ") of layers [", range.layer_begin(), ", ", range.layer_end(),
          ") of a model with ", config.num_layers, " layers of ",
          config.num_experts, " experts"));
    }
    for (size_t l = range.layer_begin(); l < range.layer_end(); ++l) {
      if (!config.is_moe_layer[l]) continue;
      for (size_t e = range.expert_begin(); e < range.expert_end(); ++e) {
        if (experts.size() >= config.num_layers * config.num_experts) {
          return absl::InvalidArgumentError("experts: named more than once");
        }
        experts.push_back({l, e});
      }
    }
  }
  const auto order = [](const ExpertOfLayer& a, const ExpertOfLayer& b) {
    return a.layer != b.layer ? a.layer < b.layer : a.expert < b.expert;
  };
  std::sort(experts.begin(), experts.end(), order);
  experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
  return experts;
}

void ExpertTransactions::Progress(Task& task, size_t done, size_t total) {
  absl::MutexLock lock(&mu_);
  task.status.set_experts_done(static_cast<uint32_t>(done));
  task.status.set_experts_total(static_cast<uint32_t>(total));
}

void ExpertTransactions::Announce() {
  server_.SetExperts(store_.versions(), store_.num_bytes());
}

absl::Status ExpertTransactions::RunLoad(const v1::LoadExpertsRequest& request,
                                         Task& task) {
  ABSL_ASSIGN_OR_RETURN(std::vector<ExpertOfLayer> which,
                        Expand(request.experts()));
  std::unique_ptr<Checkpoint> file;
  if (request.source_case() == v1::LoadExpertsRequest::kFile) {
    ABSL_ASSIGN_OR_RETURN(file,
                          Checkpoint::OpenExperts(checkpoint_, request.file()));
    for (const ExpertOfLayer& wanted : which) {
      const std::vector<ExpertOfLayer>& held = file->experts();
      if (std::find(held.begin(), held.end(), wanted) == held.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat(request.file(), ": has no expert ", wanted.expert,
                         " of layer ", wanted.layer));
      }
    }
    if (request.experts().empty()) which = file->experts();
    if (!request.file_checksum().empty()) {
      ABSL_ASSIGN_OR_RETURN(const std::string hash, file->FileHash());
      if (hash != request.file_checksum()) {
        return absl::InvalidArgumentError(absl::StrCat(
            request.file(), ": the file's checksum is ", hash, ", not ",
            absl::CHexEscape(request.file_checksum().substr(0, 64))));
      }
    }
  }
  if (request.only_owned()) {
    const std::shared_ptr<const ExpertSet> set = store_.experts();
    std::erase_if(which, [&](const ExpertOfLayer& one) {
      return set->Versions(one.layer, one.expert).empty();
    });
  }
  Progress(task, 0, which.size());
  const Checkpoint& source = file != nullptr ? *file : checkpoint_;
  LoadedExperts loaded;
  for (const ExpertOfLayer& one : which) {
    if (stopping()) return absl::CancelledError("the process is draining");
    ABSL_ASSIGN_OR_RETURN(
        const LoadedExperts expert,
        LoadExperts(source, absl::MakeConstSpan(&one, 1),
                    request.label().empty() ? options_.label : request.label(),
                    file != nullptr ? request.file() : "checkpoint", pool_,
                    [](uint64_t, uint64_t) { return absl::OkStatus(); }));
    loaded.insert(loaded.end(), expert.begin(), expert.end());
    // What is only checked need not be kept.
    if (request.check_only()) {
      auto checked = std::make_shared<LoadedExpert>(*loaded.back());
      checked->weights.reset();
      loaded.back() = std::move(checked);
    }
    Progress(task, loaded.size(), which.size());
  }
  if (!request.check_only()) {
    ABSL_RETURN_IF_ERROR(store_.Add(loaded));
    Announce();
  }
  absl::MutexLock lock(&mu_);
  for (const auto& expert : loaded) {
    *task.status.add_experts() = expert->version;
  }
  return absl::OkStatus();
}

absl::Status ExpertTransactions::RunUnload(
    const v1::UnloadExpertsRequest& request, Task& task) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<ExpertOfLayer> experts,
                        Expand(request.experts()));
  std::vector<ExpertStore::Which> which;
  const std::shared_ptr<const ExpertSet> set = store_.experts();
  for (const auto& [layer, expert] : experts) {
    which.push_back({layer, expert, request.label()});
    if (set->Versions(layer, expert).size() == 1 && !request.may_leave_none()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "it is the only version of expert ", expert, " of layer ", layer,
          " here, and may_leave_none is not set"));
    }
  }
  Progress(task, 0, which.size());
  ABSL_RETURN_IF_ERROR(store_.SetLeaving(which, true));
  Announce();
  const bool released = server_.AwaitReleased(
      request.drain_ms() == 0 ? options_.drain
                              : milliseconds(request.drain_ms()),
      /*may_be_cancelled=*/true);
  if (stopping()) {
    // The process itself is leaving: they are wanted as long as it is there.
    ABSL_RETURN_IF_ERROR(store_.SetLeaving(which, false));
    Announce();
    return absl::CancelledError("the process is draining");
  }
  LoadedExperts removed = store_.Remove(which);
  Announce();
  {
    absl::MutexLock lock(&mu_);
    for (const auto& expert : removed) {
      v1::LoadedExpert loaded = ToProto(*expert);
      loaded.mutable_version()->set_leaving(false);
      *task.status.add_experts() = loaded.version();
      unloaded_[{expert->layer(), expert->expert(), request.label()}] =
          std::move(loaded);
    }
    task.status.set_drain_time_was_over(!released);
  }
  if (!released) {
    spdlog::warn("{}: drain time is over", task.status.summary());
  }
  // The memory is given back here, not by the thread that computes.
  const SteadyTime limit = std::chrono::steady_clock::now() + kFreeLimit;
  for (size_t i = 0; i < removed.size(); ++i) {
    while (removed[i].use_count() > 1 && !stopping() &&
           std::chrono::steady_clock::now() < limit) {
      std::this_thread::sleep_for(kFreePoll);
    }
    removed[i].reset();
    Progress(task, i + 1, removed.size());
  }
  return absl::OkStatus();
}

}  // namespace troupe
