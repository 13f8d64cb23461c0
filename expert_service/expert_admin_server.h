// The ExpertAdmin service of an expert process.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_ADMIN_SERVER_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_ADMIN_SERVER_H_

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "expert_service/expert_server.h"
#include "expert_service/expert_transactions.h"
#include "protos/admin.grpc.pb.h"

namespace troupe {

// Maps calls to ExpertTransactions, and rollouts to the ExpertServer. Does not
// own them; the transactions are there between SetReady and StartDraining.
// Thread-safe.
class ExpertAdminServer final : public v1::ExpertAdmin::CallbackService {
 public:
  explicit ExpertAdminServer(ExpertServer& server) : server_(server) {}

  void SetReady(ExpertTransactions* transactions);
  // From here on calls are answered UNAVAILABLE, none uses the transactions.
  void StartDraining();

  grpc::ServerUnaryReactor* ListExperts(
      grpc::CallbackServerContext* context,
      const v1::ListExpertsRequest* request,
      v1::ListExpertsResponse* response) override;
  grpc::ServerUnaryReactor* LoadExperts(grpc::CallbackServerContext* context,
                                        const v1::LoadExpertsRequest* request,
                                        v1::Transaction* response) override;
  grpc::ServerUnaryReactor* UnloadExperts(
      grpc::CallbackServerContext* context,
      const v1::UnloadExpertsRequest* request,
      v1::Transaction* response) override;
  grpc::ServerUnaryReactor* GetTransaction(
      grpc::CallbackServerContext* context,
      const v1::GetTransactionRequest* request,
      v1::Transaction* response) override;
  grpc::ServerUnaryReactor* SetRollout(grpc::CallbackServerContext* context,
                                       const v1::SetRolloutRequest* request,
                                       v1::Rollout* response) override;

 private:
  // Calls do(transactions) if there are any, and answers.
  template <typename Do>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context,
                                   const Do& action);

  ExpertServer& server_;

  absl::Mutex mu_;
  ExpertTransactions* transactions_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_ADMIN_SERVER_H_
