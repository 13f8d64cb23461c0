#include "tools/bench/local_cluster.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/expert_range.h"
#include "common/status_macros.h"
#include "expert_service/local_expert_peer.h"

namespace troupe {

LocalCluster::~LocalCluster() = default;

absl::StatusOr<std::unique_ptr<LocalCluster>> LocalCluster::Start(
    const LocalClusterOptions& options) {
  auto cluster = std::unique_ptr<LocalCluster>(new LocalCluster(options));
  ABSL_ASSIGN_OR_RETURN(cluster->checkpoint_,
                        Checkpoint::Open(options.model_dir));
  const ModelConfig& config = cluster->config();
  std::vector<ExpertPool::Member> members;
  if (config.num_experts > 0) {
    const std::vector<std::string> split =
        SplitExperts(config.num_experts, options.num_expert_groups);
    for (size_t i = 0; i < split.size() * options.num_replicas; ++i) {
      ExpertGroup& group = cluster->groups_.emplace_back();
      ABSL_ASSIGN_OR_RETURN(
          const std::vector<HalfOpenRange> range,
          ParseRanges(split[i % split.size()], config.num_experts));
      const bool own_threads = options.expert_threads > 0;
      if (own_threads) {
        group.own_pool = std::make_unique<ThreadPool>(options.expert_threads);
      }
      ThreadPool& pool = own_threads ? *group.own_pool : cluster->pool_;
      const auto thread = own_threads ? ExpertBatcher::Thread::kOwn
                                      : ExpertBatcher::Thread::kCallers;
      ABSL_ASSIGN_OR_RETURN(
          group.store,
          ExpertStore::Load(
              *cluster->checkpoint_, {{0, config.num_layers}}, range, pool,
              [](uint64_t, uint64_t) { return absl::OkStatus(); }));
      group.backend = std::make_unique<CpuExpertBackend>(*group.store, pool);
      group.batcher = std::make_unique<ExpertBatcher>(
          *group.backend, options.queue_rows, nullptr, nullptr, thread);
      v1::ExpertDescription description;
      description.set_name(absl::StrCat("local-", i));
      description.set_model_fingerprint(cluster->checkpoint_->fingerprint());
      description.set_state(v1::SERVING_STATE_READY);
      description.set_queue_capacity_rows(options.queue_rows);
      const std::vector<v1::ExpertVersion> versions = group.store->versions();
      description.mutable_experts()->Assign(versions.begin(), versions.end());
      members.push_back({absl::StrCat("local-", i),
                         std::make_unique<LocalExpertPeer>(
                             std::move(description), *group.batcher)});
    }
  }
  ABSL_ASSIGN_OR_RETURN(
      cluster->kv_, KvStorage::Create(config.num_layers, options.num_kv_blocks,
                                      config.num_kv_heads, config.head_dim,
                                      options.kv_dtype));
  ABSL_ASSIGN_OR_RETURN(
      cluster->runner_,
      ModelRunner::Load(*cluster->checkpoint_,
                        std::min(config.max_position_embeddings,
                                 options.num_kv_blocks * kKvBlockSize),
                        *cluster->kv_, cluster->pool_,
                        [](uint64_t, uint64_t) { return absl::OkStatus(); }));
  if (config.num_experts > 0) {
    ExpertPoolOptions pool_options;
    pool_options.is_moe_layer = config.is_moe_layer;
    pool_options.num_experts = config.num_experts;
    cluster->experts_ = std::make_unique<ExpertPool>(std::move(pool_options),
                                                     std::move(members));
    TokenDispatcherOptions dispatch_options;
    dispatch_options.hidden_size = config.hidden_size;
    dispatch_options.num_experts = config.num_experts;
    dispatch_options.wire_dtype = options.wire_dtype;
    dispatch_options.capacity_factor = options.capacity_factor;
    dispatch_options.refuse = options.refuse;
    cluster->dispatcher_ =
        std::make_unique<TokenDispatcher>(*cluster->experts_, dispatch_options);
  }
  return cluster;
}

ServingLoop& LocalCluster::StartLoop() {
  if (loop_ == nullptr) {
    ServingLoopOptions options;
    options.scheduler = options_.scheduler;
    options.num_kv_blocks = options_.num_kv_blocks;
    loop_ = std::make_unique<ServingLoop>(options, *runner_, dispatcher_.get(),
                                          pool_);
  }
  return *loop_;
}

Batch SequenceBatch(std::span<const int32_t> token_ids, size_t begin,
                    size_t end, std::span<const int32_t> block_table) {
  Batch batch;
  AttentionSequence rows;
  rows.block_table = block_table;
  rows.num_rows = end - begin;
  rows.first_position = begin;
  batch.sequences.push_back(rows);
  for (size_t i = begin; i < end; ++i) {
    batch.token_ids.push_back(token_ids[i]);
    batch.positions.push_back(static_cast<int32_t>(i));
    batch.logit_rows.push_back(i - begin);
  }
  return batch;
}

}  // namespace troupe
