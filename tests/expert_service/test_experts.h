// A tiny checkpoint and batches for its experts.
#ifndef TROUPE_TESTS_EXPERT_SERVICE_TEST_EXPERTS_H_
#define TROUPE_TESTS_EXPERT_SERVICE_TEST_EXPERTS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "common/check.h"
#include "common/thread_pool.h"
#include "expert_service/cpu_expert_backend.h"
#include "expert_service/expert_batcher.h"
#include "expert_service/expert_store.h"
#include "kernels/reference/expert_ffn.h"
#include "model/checkpoint.h"
#include "tests/fakes/checkpoint_builder.h"
#include "tests/fakes/expert_frames.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {

inline absl::Status NoProgress(uint64_t, uint64_t) { return absl::OkStatus(); }

// Owns everything, the files included. Layer 0 lacks expert 4: the store is
// that of a process which owns experts 0-3.
class TestExperts {
 public:
  static constexpr size_t kNumOwned = 4;

  TestExperts() : builder_(TinyConfig(Architecture::kMixtral)) {
    builder_.Write(dir_.path());
    checkpoint_ = *Checkpoint::Open(dir_.path());
    store_ = *ExpertStore::Load(*checkpoint_, {{0, config().num_layers}},
                                {{0, kNumOwned}}, pool_, NoProgress);
  }

  const ModelConfig& config() const { return checkpoint_->config(); }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ExpertStore& store() const { return *store_; }
  ExpertStore& store() { return *store_; }
  ThreadPool& pool() { return pool_; }

  // What the naive reference computes for one row.
  std::vector<float> Reference(size_t layer, size_t expert,
                               const float* row) const {
    const auto matrix = [&](const char* name) {
      const CheckpointBuilder::Tensor& tensor =
          const_cast<CheckpointBuilder&>(builder_).Find(
              "model.layers." + std::to_string(layer) +
              ".block_sparse_moe.experts." + std::to_string(expert) + "." +
              name + ".weight");
      return ConstFloatMatrix(
          reinterpret_cast<const float*>(tensor.bytes.data()),
          tensor.info.shape[0], tensor.info.shape[1]);
    };
    std::vector<float> output(config().hidden_size);
    reference::GatedMlp(ConstFloatMatrix(row, 1, output.size()),
                        {matrix("w1"), matrix("w3"), matrix("w2")},
                        FloatMatrix(output.data(), 1, output.size()));
    return output;
  }

 private:
  TempDir dir_;
  CheckpointBuilder builder_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ThreadPool pool_{2};
  std::unique_ptr<ExpertStore> store_;
};

// A valid batch of random rows and copies for experts [0, kNumOwned).
inline v1::ExpertBatch RandomBatch(size_t hidden_size, size_t layer,
                                   size_t num_tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  v1::ExpertBatch batch;
  batch.set_attempt_id(seed);
  batch.set_layer(static_cast<uint32_t>(layer));
  batch.set_num_tokens(static_cast<uint32_t>(num_tokens));
  std::vector<float> hidden(num_tokens * hidden_size);
  for (float& value : hidden) value = uniform(random);
  batch.set_hidden_states(hidden.data(), hidden.size() * sizeof(float));
  for (uint32_t expert = 0; expert < TestExperts::kNumOwned; ++expert) {
    uint32_t copies = 0;
    for (uint32_t token = 0; token < num_tokens; ++token) {
      // Every token goes somewhere.
      if (token % TestExperts::kNumOwned != expert && random() % 2 == 0) {
        continue;
      }
      batch.add_row_of_copy(token);
      ++copies;
    }
    if (copies == 0) continue;
    batch.add_expert_ids(expert);
    batch.add_copies_per_expert(copies);
  }
  return batch;
}

// A call that keeps everything itself and tells a function of its end.
class TestCall final : public ExpertCall {
 public:
  using Done = std::function<void(v1::ExpertOutput output)>;

  TestCall(const v1::ExpertBatch& proto, Done done)
      : input_(proto.hidden_states()), done_(std::move(done)) {
    batch = FromProto(proto);
    hidden_states = input_;
  }
  char* Reserve(size_t num_bytes) override {
    rows_.resize(num_bytes);
    return rows_.data();
  }
  void Finish(const ExpertOutput& output) override {
    v1::ExpertOutput answer = ToProto(output);
    if (HasRows(output.verdict)) answer.set_outputs(rows_);
    done_(std::move(answer));
    delete this;
  }

 private:
  const std::string input_;
  std::string rows_;
  const Done done_;
};

inline void Submit(ExpertBatcher& batcher, const v1::ExpertBatch& batch,
                   TestCall::Done done) {
  batcher.Submit(new TestCall(batch, std::move(done)));
}

// Holds the batcher's thread in a callback until it goes, so that a test
// decides what lies in the queue together.
class HeldBatcher {
 public:
  HeldBatcher(ExpertBatcher& batcher, size_t hidden_size) {
    Submit(batcher, RandomBatch(hidden_size, 0, 1, 999),
           [state = state_](v1::ExpertOutput) {
             state->held.Notify();
             state->release.WaitForNotification();
           });
    state_->held.WaitForNotification();
  }
  ~HeldBatcher() { state_->release.Notify(); }

 private:
  // The thread may still look at it when this is gone.
  struct State {
    absl::Notification held;
    absl::Notification release;
  };
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace troupe

#endif  // TROUPE_TESTS_EXPERT_SERVICE_TEST_EXPERTS_H_
