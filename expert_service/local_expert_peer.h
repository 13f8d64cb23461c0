// An expert "process" inside the router's own process: for tests and
// benchmarks. The frames are the same values, only not serialised.
#ifndef TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_
#define TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_

#include <cstddef>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "cluster/expert_peer.h"
#include "expert_service/expert_batcher.h"

namespace troupe {

// Thread-safe. Does not own the batcher, which outlives the callbacks.
class LocalExpertPeer final : public ExpertPeer {
 public:
  LocalExpertPeer(v1::ExpertDescription description, ExpertBatcher& batcher)
      : description_(std::move(description)), batcher_(batcher) {}
  ~LocalExpertPeer() override {
    absl::MutexLock lock(&mu_);
    const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return in_flight_ == 0;
    };
    mu_.Await(absl::Condition(&idle));
  }

  void Connect(Listener* listener) override {
    listener->OnDescription(description_);
  }

  void Send(v1::ExpertBatch batch, OutputCallback done) override {
    const absl::Status status = batcher_.Validate(batch);
    if (!status.ok()) {
      done(status);
      return;
    }
    {
      absl::MutexLock lock(&mu_);
      ++in_flight_;
    }
    batcher_.Submit(std::move(batch),
                    [this, done = std::move(done)](v1::ExpertOutput output) {
                      done(std::move(output));
                      absl::MutexLock lock(&mu_);
                      --in_flight_;
                    });
  }

  const char* transport() const override { return "local"; }

 private:
  const v1::ExpertDescription description_;
  ExpertBatcher& batcher_;

  absl::Mutex mu_;
  size_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;  // callbacks to come
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_
