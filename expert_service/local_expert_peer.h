// An expert "process" inside the router's own process: for tests and
// benchmarks. The frames are the same values, only not serialised.
#ifndef TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_
#define TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_

#include <memory>
#include <utility>

#include "cluster/expert_peer.h"
#include "expert_service/expert_batcher.h"

namespace troupe {

// Thread-safe. Does not own the batcher, which outlives the callbacks.
class LocalExpertPeer final : public ExpertPeer {
 public:
  LocalExpertPeer(v1::ExpertDescription description, ExpertBatcher& batcher)
      : description_(std::move(description)), batcher_(batcher) {}
  ~LocalExpertPeer() override {
    // No callback may run after this.
    (void)batcher_.WaitUntilIdle(milliseconds(60000));
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
    batcher_.Submit(std::move(batch),
                    [done = std::move(done)](v1::ExpertOutput output) {
                      done(std::move(output));
                    });
  }

  const char* transport() const override { return "local"; }

 private:
  const v1::ExpertDescription description_;
  ExpertBatcher& batcher_;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_
