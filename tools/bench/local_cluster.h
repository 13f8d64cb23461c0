// A whole cluster in one process, without gateway: for benchmarks and tests.
#ifndef TROUPE_TOOLS_BENCH_LOCAL_CLUSTER_H_
#define TROUPE_TOOLS_BENCH_LOCAL_CLUSTER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/expert_pool.h"
#include "common/thread_pool.h"
#include "expert_service/cpu_expert_backend.h"
#include "expert_service/expert_batcher.h"
#include "expert_service/expert_store.h"
#include "model/checkpoint.h"
#include "router_service/dispatch/token_dispatcher.h"
#include "router_service/engine/model_runner.h"
#include "router_service/kv_cache/kv_storage.h"
#include "router_service/serving_loop.h"

namespace troupe {

struct LocalClusterOptions {
  std::string model_dir;
  size_t num_expert_groups = 1;  // contiguous ranges of experts
  size_t num_replicas = 1;       // of each group
  size_t router_threads = 1;
  // Of each group; 0: the experts are computed by the router's own threads,
  // while these would wait for them.
  size_t expert_threads = 1;
  size_t num_kv_blocks = 256;
  DataType kv_dtype = DataType::kF32;
  SchedulerOptions scheduler;
  uint64_t queue_rows = 65536;
  DataType wire_dtype = DataType::kF32;
  double capacity_factor = 0.0;  // 0: dropless
  RefuseBy refuse = RefuseBy::kPosition;
};

// The same classes as in the services, connected by the local transport. Owns
// all of them. The loop starts with StartLoop; before that runner() and
// dispatcher() may be used directly.
class LocalCluster {
 public:
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(
      const LocalClusterOptions& options);
  ~LocalCluster();

  const ModelConfig& config() const { return checkpoint_->config(); }
  ModelRunner& runner() { return *runner_; }
  TokenDispatcher* dispatcher() { return dispatcher_.get(); }
  KvStorage& kv() { return *kv_; }
  ServingLoop& StartLoop();

 private:
  struct ExpertGroup {
    std::unique_ptr<ExpertStore> store;
    std::unique_ptr<ThreadPool> own_pool;
    std::unique_ptr<CpuExpertBackend> backend;
    std::unique_ptr<ExpertBatcher> batcher;
  };

  explicit LocalCluster(const LocalClusterOptions& options)
      : options_(options), pool_(options.router_threads) {}

  const LocalClusterOptions options_;
  // In the order in which they may be used; destroyed in the reverse one.
  std::unique_ptr<Checkpoint> checkpoint_;
  ThreadPool pool_;
  std::vector<ExpertGroup> groups_;
  std::unique_ptr<KvStorage> kv_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<ExpertPool> experts_;
  std::unique_ptr<TokenDispatcher> dispatcher_;
  std::unique_ptr<ServingLoop> loop_;
};

// One step with tokens [begin, end) of one sequence whose earlier ones are
// cached, and the logits of every row. `block_table` outlives the batch.
Batch SequenceBatch(std::span<const int32_t> token_ids, size_t begin,
                    size_t end, std::span<const int32_t> block_table);

}  // namespace troupe

#endif  // TROUPE_TOOLS_BENCH_LOCAL_CLUSTER_H_
