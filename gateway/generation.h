// The generation that a client asked for, whatever it speaks.
#ifndef TROUPE_GATEWAY_GENERATION_H_
#define TROUPE_GATEWAY_GENERATION_H_

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gateway/gateway_context.h"
#include "gateway/generation_choice.h"
#include "gateway/router_attempt.h"
#include "grpcpp/support/status.h"
#include "protos/gateway.pb.h"

namespace troupe {

// Where the responses go. Called with the generation's lock held: it starts
// what it has to do and returns; it does not call the generation from within.
class GenerationClient {
 public:
  virtual ~GenerationClient() = default;
  // True: it was taken, and the next one may come at once. False: that comes
  // after Generation::OnWritten.
  virtual bool Write(v1::GenerateResponse response) = 0;
  // Nothing comes after it; the client may go.
  virtual void Finish(const grpc::Status& status) = 0;
};

// Refuses, or tokenizes, starts one router stream per choice, moves it when its
// router is lost, turns tokens into responses and hands these to its client one
// after the other.
//
// Owned by whoever serves the client and by its attempts. Thread-safe: all
// reactions take mu_; gRPC never runs one inside of a call that we make, so
// operations are started with it held. Counts as one of the context's live
// calls.
class Generation final : public RouterAttemptListener,
                         public std::enable_shared_from_this<Generation> {
 public:
  // deadline: kNoDeadline for none. lease: of the key that the request came
  // with, which is charged; it goes before the client is told of the end.
  Generation(GatewayContext& context, GenerationClient& client,
             const v1::GenerateRequest& request, SteadyTime deadline,
             KeyLease lease);

  // Once; before any other.
  void Begin();
  // The last response was delivered; !ok: the client is gone.
  void OnWritten(bool ok);
  // The client is gone, or its deadline has passed.
  void Cancel();

  const std::string& request_id() const { return request_id_; }

 private:
  bool OnRouterResponse(size_t index, RouterAttempt* attempt,
                        const v1::RouterGenerateResponse& response) override;
  void OnRouterDone(size_t index, RouterAttempt* attempt,
                    const grpc::Status& status) override;

  grpc::Status Admit();
  // Charges the key for the prompt and what was asked for.
  absl::Status Reserve() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Prepare();
  absl::StatusOr<std::vector<GenerationChoice>> Plan() const;
  RouterPool::Wish WishOf(const GenerationChoice& choice, bool is_retry) const;
  void StartAttempt(size_t index, RouterLease lease)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Calls OnRouterFound when a router is ready, or in vain when the wait is
  // over. A request waits, since `exact` prefers late to never, and its place
  // in the admission bounds how many do. False when the gateway is ending.
  bool AwaitRouter(size_t index, const RouterPool::Wish& wish)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void StopWaiting(GenerationChoice& choice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  grpc::Status NoRouter(const std::string& reason) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnRouterFound(size_t index, uint64_t wait_id,
                     std::optional<RouterLease> lease);
  // After an attempt ended early: elsewhere, if that makes sense.
  void Move(size_t index, const grpc::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What the pool calls when the choice's attempt had better go elsewhere.
  RouterLease::Leave LeaveOf(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnLeave(size_t index, uint64_t attempt_id, bool doubtful,
               const std::string& reason);
  // The attempt's stream goes on there: prompt and tokens so far are prefilled
  // again. What the old one still says is not heard.
  void Replace(size_t index, RouterLease lease)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Counts a failure.
  bool MayFailAgain(GenerationChoice& choice) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  void Echo(size_t index, const v1::RouterGenerateResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AddToken(GenerationChoice& choice, const v1::TokenOutput& token,
                bool is_stop_token, v1::GenerateResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // When it came, for the metrics.
  void ObserveToken(GenerationChoice& choice)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FinishChoice(GenerationChoice& choice, v1::FinishReason reason,
                    v1::GenerateResponse& response)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AllDone() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  v1::Usage MakeUsage() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // The call ends with `status` once what waits is written; routers are told
  // at once. Only the first counts.
  void End(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CountAndLog() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const LiveCalls::Guard live_;
  GatewayContext& context_;
  GenerationClient& client_;
  const v1::GenerateRequest request_;
  const SteadyTime start_;
  const SteadyTime deadline_;
  const SteadyTime answer_by_;
  const uint64_t seed_;
  const std::string request_id_;

  absl::Mutex mu_;
  KeyLease lease_ ABSL_GUARDED_BY(mu_);
  Admission::Ticket ticket_ ABSL_GUARDED_BY(mu_);
  std::vector<GenerationChoice> choices_ ABSL_GUARDED_BY(mu_);
  size_t num_prompt_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  double ttft_ms_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<v1::GenerateResponse> outbox_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status final_status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GENERATION_H_
