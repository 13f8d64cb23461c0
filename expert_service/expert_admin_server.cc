#include "expert_service/expert_admin_server.h"

#include <utility>

#include "cluster/rollout.h"
#include "common/rpc/status.h"

namespace troupe {

void ExpertAdminServer::SetReady(ExpertTransactions* transactions) {
  absl::MutexLock lock(&mu_);
  transactions_ = transactions;
}

void ExpertAdminServer::StartDraining() {
  absl::MutexLock lock(&mu_);
  transactions_ = nullptr;
}

template <typename Do>
grpc::ServerUnaryReactor* ExpertAdminServer::Answer(
    grpc::CallbackServerContext* context, const Do& action) {
  absl::Status status;
  {
    // Nothing that is done takes long.
    absl::MutexLock lock(&mu_);
    status = transactions_ == nullptr
                 ? absl::UnavailableError("the process is loading or draining")
                 : action(*transactions_);
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

namespace {

absl::Status Assign(absl::StatusOr<v1::Transaction> from, v1::Transaction* to) {
  if (from.ok()) *to = *std::move(from);
  return from.status();
}

}  // namespace

grpc::ServerUnaryReactor* ExpertAdminServer::ListExperts(
    grpc::CallbackServerContext* context, const v1::ListExpertsRequest*,
    v1::ListExpertsResponse* response) {
  return Answer(context, [&](ExpertTransactions& transactions) {
    *response->mutable_description() = server_.description();
    response->mutable_description()->clear_shm();      // not for everybody
    response->mutable_description()->clear_experts();  // they follow
    transactions.List(*response);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ExpertAdminServer::LoadExperts(
    grpc::CallbackServerContext* context, const v1::LoadExpertsRequest* request,
    v1::Transaction* response) {
  return Answer(context, [&](ExpertTransactions& transactions) {
    return Assign(transactions.Load(*request), response);
  });
}

grpc::ServerUnaryReactor* ExpertAdminServer::UnloadExperts(
    grpc::CallbackServerContext* context,
    const v1::UnloadExpertsRequest* request, v1::Transaction* response) {
  return Answer(context, [&](ExpertTransactions& transactions) {
    return Assign(transactions.Unload(*request), response);
  });
}

grpc::ServerUnaryReactor* ExpertAdminServer::GetTransaction(
    grpc::CallbackServerContext* context,
    const v1::GetTransactionRequest* request, v1::Transaction* response) {
  return Answer(context, [&](ExpertTransactions& transactions) {
    return Assign(transactions.Get(request->transaction_id()), response);
  });
}

grpc::ServerUnaryReactor* ExpertAdminServer::SetRollout(
    grpc::CallbackServerContext* context, const v1::SetRolloutRequest* request,
    v1::Rollout* response) {
  return Answer(context, [&](ExpertTransactions&) {
    absl::Status status = ValidateRollout(request->rollout());
    if (status.ok()) status = server_.SetRollout(request->rollout());
    if (status.ok()) *response = request->rollout();
    return status;
  });
}

}  // namespace troupe
