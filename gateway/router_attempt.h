// One Router.Generate call.
#ifndef TROUPE_GATEWAY_ROUTER_ATTEMPT_H_
#define TROUPE_GATEWAY_ROUTER_ATTEMPT_H_

#include <memory>
#include <string>
#include <utility>

#include "common/clock.h"
#include "gateway/router_pool.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "protos/router.pb.h"

namespace troupe {

class RouterAttempt;

// Hears what a router says, from any thread, one call at a time per attempt.
class RouterAttemptListener {
 public:
  virtual ~RouterAttemptListener() = default;
  // True: read on; false after RouterAttempt::Pause.
  virtual bool OnRouterResponse(size_t choice, RouterAttempt* attempt,
                                const v1::RouterGenerateResponse& response) = 0;
  // The attempt is deleted when this returns.
  virtual void OnRouterDone(size_t choice, RouterAttempt* attempt,
                            const grpc::Status& status) = 0;
};

// The call of one choice. Deletes itself when it is done; keeps its listener
// alive until then. Public functions: under one lock of the listener's.
class RouterAttempt final
    : public grpc::ClientReadReactor<v1::RouterGenerateResponse> {
 public:
  RouterAttempt(std::shared_ptr<RouterAttemptListener> listener, size_t choice,
                RouterLease lease, v1::RouterGenerateRequest request)
      : listener_(std::move(listener)),
        choice_(choice),
        lease_(std::move(lease)),
        request_(std::move(request)) {}

  // `leave`: what the pool calls when the stream had better go elsewhere.
  void Begin(SteadyTime deadline, RouterLease::Leave leave);

  // No read is in flight; the next one waits for Resume.
  void Pause() { paused_ = true; }
  void Resume() {
    if (!std::exchange(paused_, false)) return;
    StartRead(&response_);
  }
  void Cancel() {
    context_.TryCancel();
    Resume();
  }

  // As in Begin: the pool's word of before was wrong.
  void WatchAgain(RouterLease::Leave leave) { lease_.Watch(std::move(leave)); }

  const RouterLease& lease() const { return lease_; }

 private:
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  const std::shared_ptr<RouterAttemptListener> listener_;
  const size_t choice_;
  RouterLease lease_;
  const v1::RouterGenerateRequest request_;
  grpc::ClientContext context_;
  v1::RouterGenerateResponse response_;
  bool paused_ = false;
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_ROUTER_ATTEMPT_H_
