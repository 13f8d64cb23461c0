// Loading and unloading of experts while the process serves.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_TRANSACTIONS_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_TRANSACTIONS_H_

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/thread_pool.h"
#include "expert_service/expert_server.h"
#include "expert_service/expert_store.h"
#include "model/checkpoint.h"
#include "protos/admin.pb.h"

namespace troupe {

struct ExpertTransactionsOptions {
  std::string label;  // of experts from the checkpoint, if none is asked for
  milliseconds drain = milliseconds(30000);  // if none is asked for
};

// A queue of transactions (protos/admin.proto) and the thread that runs them,
// one after the other, at a lower priority than the thread that computes. Does
// not own checkpoint, store and server. Thread-safe.
class ExpertTransactions {
 public:
  ExpertTransactions(ExpertTransactionsOptions options,
                     const Checkpoint& checkpoint, ExpertStore& store,
                     ExpertServer& server);
  // Ends what runs without a change, if it has not come that far.
  ~ExpertTransactions();

  absl::StatusOr<v1::Transaction> Load(const v1::LoadExpertsRequest& request);
  absl::StatusOr<v1::Transaction> Unload(
      const v1::UnloadExpertsRequest& request);
  absl::StatusOr<v1::Transaction> Get(const std::string& id) const;
  void List(v1::ListExpertsResponse& response) const;

 private:
  struct Task {
    v1::Transaction status;
    // One of the two. Which it is, and whether a repeated one is the same.
    std::string request;
    bool is_load = false;
    bool finished() const {
      return status.state() == v1::Transaction::STATE_DONE ||
             status.state() == v1::Transaction::STATE_FAILED;
    }
  };

  absl::StatusOr<v1::Transaction> Begin(const std::string& id, bool is_load,
                                        std::string request,
                                        std::string summary);
  void Run();
  absl::Status RunLoad(const v1::LoadExpertsRequest& request, Task& task);
  absl::Status RunUnload(const v1::UnloadExpertsRequest& request, Task& task);
  absl::StatusOr<std::vector<ExpertOfLayer>> Expand(
      const google::protobuf::RepeatedPtrField<v1::ExpertRange>& ranges) const;
  void Progress(Task& task, size_t done, size_t total);
  bool stopping() const;
  void Announce();

  const ExpertTransactionsOptions options_;
  const Checkpoint& checkpoint_;
  ExpertStore& store_;
  ExpertServer& server_;
  ThreadPool pool_{1};  // the thread's

  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<std::unique_ptr<Task>> tasks_ ABSL_GUARDED_BY(mu_);
  // By layer, expert and label.
  std::map<std::tuple<size_t, size_t, std::string>, v1::LoadedExpert> unloaded_
      ABSL_GUARDED_BY(mu_);

  std::thread thread_;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_TRANSACTIONS_H_
