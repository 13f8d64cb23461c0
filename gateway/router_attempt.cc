#include "gateway/router_attempt.h"

#include "common/rpc/rpc_channel.h"
#include "protos/router.grpc.pb.h"

namespace troupe {

void RouterAttempt::Begin(SteadyTime deadline, RouterLease::Leave leave) {
  lease_.Watch(std::move(leave));
  SetDeadline(context_, deadline);
  lease_.stub().async()->Generate(&context_, &request_, this);
  AddHold();  // for reads that start outside of a reaction
  StartRead(&response_);
  StartCall();
}

void RouterAttempt::OnReadDone(bool ok) {
  if (!ok) {
    RemoveHold();
    return;
  }
  lease_.Heard();
  if (listener_->OnRouterResponse(choice_, this, response_)) {
    StartRead(&response_);
  }
}

void RouterAttempt::OnDone(const grpc::Status& status) {
  listener_->OnRouterDone(choice_, this, status);
  delete this;
}

}  // namespace troupe
