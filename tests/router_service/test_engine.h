// A tiny model with everything that a serving loop needs.
#ifndef TROUPE_TESTS_ROUTER_SERVICE_TEST_ENGINE_H_
#define TROUPE_TESTS_ROUTER_SERVICE_TEST_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "cluster/expert_pool.h"
#include "common/check.h"
#include "common/thread_pool.h"
#include "expert_service/cpu_expert_backend.h"
#include "expert_service/expert_batcher.h"
#include "expert_service/expert_store.h"
#include "expert_service/local_expert_peer.h"
#include "model/checkpoint.h"
#include "router_service/dispatch/token_dispatcher.h"
#include "router_service/engine/model_runner.h"
#include "router_service/kv_cache/kv_storage.h"
#include "router_service/serving_loop.h"
#include "tests/fakes/checkpoint_builder.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {

// A local expert process that can be away. Thread-safe.
class SwitchablePeer final : public ExpertPeer {
 public:
  struct Switch {
    absl::Mutex mu;
    bool reachable ABSL_GUARDED_BY(mu) = true;
    bool known ABSL_GUARDED_BY(mu) = false;
    Listener* listener ABSL_GUARDED_BY(mu) = nullptr;

    void GoAway() {
      Listener* told = nullptr;
      {
        absl::MutexLock lock(&mu);
        reachable = false;
        if (known) told = listener;
        known = false;
      }
      if (told != nullptr) told->OnLost(absl::UnavailableError("switched off"));
    }
    void ComeBack() {
      absl::MutexLock lock(&mu);
      reachable = true;
    }
    // The process says something new of itself.
    void Describe(const v1::ExpertDescription& description) {
      Listener* told = nullptr;
      {
        absl::MutexLock lock(&mu);
        told = listener;
      }
      told->OnDescription(description);
    }
    void WaitUntilKnown() {
      absl::MutexLock lock(&mu);
      mu.Await(absl::Condition(&known));
    }
  };

  SwitchablePeer(std::shared_ptr<Switch> state,
                 std::unique_ptr<ExpertPeer> peer)
      : switch_(std::move(state)), peer_(std::move(peer)) {}

  void Connect(Listener* listener) override {
    {
      absl::MutexLock lock(&switch_->mu);
      switch_->listener = listener;
      if (switch_->reachable) {
        peer_->Connect(listener);
        switch_->known = true;
        return;
      }
    }
    listener->OnLost(absl::UnavailableError("switched off"));
  }
  void Send(const ExpertBatch& batch, size_t payload_bytes, WritePayload write,
            OutputCallback done) override {
    {
      absl::MutexLock lock(&switch_->mu);
      if (switch_->known) {
        peer_->Send(batch, payload_bytes, write, std::move(done));
        return;
      }
    }
    done(absl::UnavailableError("switched off"));
  }
  const char* transport() const override { return "switchable"; }

 private:
  const std::shared_ptr<Switch> switch_;
  const std::unique_ptr<ExpertPeer> peer_;
};

struct TestEngineOptions {
  Architecture architecture = Architecture::kLlama;  // dense: no experts needed
  size_t num_kv_blocks = 64;
  size_t max_batch_tokens = 64;
  size_t max_sequences = 16;
  size_t max_queued_sequences = 256;
  bool prefix_cache = true;
  DataType kv_dtype = DataType::kF32;
  double capacity_factor = 0.0;
};

// Owns all of it; a model with experts has them in two processes, 0-2 and 3-4.
class TestEngine {
 public:
  explicit TestEngine(const TestEngineOptions& options = {})
      : options_(options) {
    CheckpointBuilder(TinyConfig(options.architecture)).Write(dir_.path());
    checkpoint_ = *Checkpoint::Open(dir_.path());
    const auto no_progress = [](uint64_t, uint64_t) {
      return absl::OkStatus();
    };
    kv_ = *KvStorage::Create(config().num_layers, options.num_kv_blocks,
                             config().num_kv_heads, config().head_dim,
                             options.kv_dtype);
    runner_ = *ModelRunner::Load(*checkpoint_, config().max_position_embeddings,
                                 *kv_, pool_, no_progress);
    if (config().num_experts > 0) {
      std::vector<ExpertPool::Member> members;
      for (const HalfOpenRange range :
           {HalfOpenRange{0, 3}, HalfOpenRange{3, 5}}) {
        Group& group = *groups_.emplace_back(std::make_unique<Group>());
        group.store =
            *ExpertStore::Load(*checkpoint_, {{0, config().num_layers}},
                               {range}, group.pool, no_progress);
        group.backend =
            std::make_unique<CpuExpertBackend>(*group.store, group.pool);
        group.batcher = std::make_unique<ExpertBatcher>(*group.backend, 1000);
        v1::ExpertDescription description;
        description.set_state(v1::SERVING_STATE_READY);
        const std::vector<v1::ExpertVersion> versions = group.store->versions();
        description.mutable_experts()->Assign(versions.begin(), versions.end());
        members.push_back(
            {"local", std::make_unique<SwitchablePeer>(
                          group.expert_switch,
                          std::make_unique<LocalExpertPeer>(
                              std::move(description), *group.batcher))});
      }
      ExpertPoolOptions pool_options;
      pool_options.is_moe_layer = config().is_moe_layer;
      pool_options.num_experts = config().num_experts;
      pool_options.min_backoff = milliseconds(1);
      pool_options.max_backoff = milliseconds(2);
      experts_ = std::make_unique<ExpertPool>(pool_options, std::move(members));
      for (const auto& group : groups_) group->expert_switch->WaitUntilKnown();
      TokenDispatcherOptions dispatch_options;
      dispatch_options.hidden_size = config().hidden_size;
      dispatch_options.num_experts = config().num_experts;
      dispatch_options.check_after = milliseconds(1);
      dispatch_options.capacity_factor = options.capacity_factor;
      dispatcher_ =
          std::make_unique<TokenDispatcher>(*experts_, dispatch_options);
    }
    StartLoop();
  }

  const ModelConfig& config() const { return checkpoint_->config(); }
  ServingLoop& loop() { return *loop_; }
  ExpertPool* experts() { return experts_.get(); }
  SwitchablePeer::Switch& expert_switch(size_t group) {
    return *groups_[group]->expert_switch;
  }
  // Loads other weights of all experts of a group beside what is there.
  void LoadVersion(size_t group, const std::string& label, uint64_t seed) {
    TempDir dir;
    CheckpointBuilder(config(), seed).Write(dir.path());
    const auto other = *Checkpoint::Open(dir.path());
    ExpertStore& store = *groups_[group]->store;
    std::vector<ExpertOfLayer> which;
    for (const v1::ExpertVersion& version : store.versions()) {
      which.push_back(
          {version.range().layer_begin(), version.range().expert_begin()});
    }
    CHECK(store
              .Add(*LoadExperts(
                  *other, which, label, "test", groups_[group]->pool,
                  [](uint64_t, uint64_t) { return absl::OkStatus(); }))
              .ok());
  }
  // Frees what the group has with that label.
  void UnloadVersion(size_t group, const std::string& label) {
    ExpertStore& store = *groups_[group]->store;
    std::vector<ExpertStore::Which> which;
    for (const v1::ExpertVersion& version : store.versions()) {
      which.push_back({version.range().layer_begin(),
                       version.range().expert_begin(), label});
    }
    store.Remove(which);
  }
  // Tells the router what the group has now.
  void Describe(size_t group, const v1::Rollout& rollout) {
    v1::ExpertDescription description;
    description.set_state(v1::SERVING_STATE_READY);
    description.set_queue_capacity_rows(1000);
    const std::vector<v1::ExpertVersion> versions =
        groups_[group]->store->versions();
    description.mutable_experts()->Assign(versions.begin(), versions.end());
    *description.mutable_rollout() = rollout;
    expert_switch(group).Describe(description);
  }
  v1::RouterStats Stats() const {
    v1::RouterStats stats;
    loop_->GetStats(stats);
    return stats;
  }
  void StartLoop() {
    ServingLoopOptions options;
    options.scheduler.max_batch_tokens = options_.max_batch_tokens;
    options.scheduler.max_sequences = options_.max_sequences;
    options.scheduler.prefix_cache = options_.prefix_cache;
    options.num_kv_blocks = options_.num_kv_blocks;
    options.max_queued_sequences = options_.max_queued_sequences;
    loop_ = std::make_unique<ServingLoop>(options, *runner_, dispatcher_.get(),
                                          pool_);
  }
  void StopLoop() { loop_ = nullptr; }

 private:
  struct Group {
    std::shared_ptr<SwitchablePeer::Switch> expert_switch =
        std::make_shared<SwitchablePeer::Switch>();
    ThreadPool pool{1};
    std::unique_ptr<ExpertStore> store;
    std::unique_ptr<CpuExpertBackend> backend;
    std::unique_ptr<ExpertBatcher> batcher;
  };

  const TestEngineOptions options_;
  TempDir dir_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ThreadPool pool_{2};
  std::vector<std::unique_ptr<Group>> groups_;
  std::unique_ptr<KvStorage> kv_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<ExpertPool> experts_;
  std::unique_ptr<TokenDispatcher> dispatcher_;
  std::unique_ptr<ServingLoop> loop_;
};

// Holds the serving loop in the callback of a sequence's first event until it
// goes. The sequence is then over.
class HeldLoop {
 public:
  explicit HeldLoop(ServingLoop& loop, const std::string& fallback = "exact") {
    SequenceRequest request;
    request.fallback = *ParseFallback(fallback);
    request.tokens = {1};
    request.prompt_length = 1;
    request.max_tokens = 1;
    request.on_event = [state = state_](SequenceEvent) {
      state->held.Notify();
      state->release.WaitForNotification();
    };
    CHECK(loop.Submit(std::move(request)).ok());
    state_->held.WaitForNotification();
  }
  ~HeldLoop() { Release(); }
  void Release() {
    if (!state_->release.HasBeenNotified()) state_->release.Notify();
  }

 private:
  // The loop may still look at it when this is gone.
  struct State {
    absl::Notification held;
    absl::Notification release;
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace troupe

#endif  // TROUPE_TESTS_ROUTER_SERVICE_TEST_ENGINE_H_
