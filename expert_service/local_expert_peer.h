// An expert "process" inside the router's own process: for tests and
// benchmarks. The frames are the same values, rounded alike.
#ifndef TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_
#define TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "cluster/expert_peer.h"
#include "expert_service/expert_batcher.h"

namespace troupe {

// Thread-safe. Does not own the batcher, which outlives the callbacks.
// The thread that waits for the outputs computes them, if the batcher has no
// thread of its own: then none has to be woken, and the router's ThreadPool
// serves both.
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

  void Send(const ExpertBatch& batch, size_t payload_bytes, WritePayload write,
            OutputCallback done) override {
    const absl::Status status = batcher_.Validate(batch, payload_bytes);
    if (!status.ok()) {
      done(status);
      return;
    }
    Call* const call = NewCall();
    call->batch = batch;
    call->input.resize(payload_bytes);
    write(call->input.data());
    call->hidden_states = call->input;
    call->done = std::move(done);
    batcher_.Submit(call);
  }

  void Poll() override {
    if (batcher_.has_own_thread()) return;
    while (batcher_.RunOne()) {
    }
  }

  const char* transport() const override { return "local"; }

 private:
  // Both buffers come from new, so they are aligned well enough.
  struct Call final : ExpertCall {
    explicit Call(LocalExpertPeer& p) : peer(p) {}
    char* Reserve(size_t num_bytes) override {
      rows.resize(num_bytes);
      return rows.data();
    }
    void Finish(const ExpertOutput& output) override {
      ExpertOutput answer = output;
      if (HasRows(output.verdict)) answer.rows = PayloadView(rows);
      const OutputCallback callback = std::move(done);
      done = nullptr;
      callback(answer);
      peer.Recycle(this);
    }

    LocalExpertPeer& peer;
    std::string input;
    std::string rows;
    OutputCallback done;
  };

  Call* NewCall() {
    absl::MutexLock lock(&mu_);
    ++in_flight_;
    if (idle_calls_.empty()) {
      calls_.push_back(std::make_unique<Call>(*this));
      return calls_.back().get();
    }
    Call* const call = idle_calls_.back();
    idle_calls_.pop_back();
    return call;
  }
  void Recycle(Call* call) {
    absl::MutexLock lock(&mu_);
    idle_calls_.push_back(call);
    --in_flight_;
  }

  const v1::ExpertDescription description_;
  ExpertBatcher& batcher_;

  absl::Mutex mu_;
  std::vector<std::unique_ptr<Call>> calls_ ABSL_GUARDED_BY(mu_);
  std::vector<Call*> idle_calls_ ABSL_GUARDED_BY(mu_);
  size_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;  // callbacks to come
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_LOCAL_EXPERT_PEER_H_
