// The edge of an expert process: validates frames, hands them to the batcher,
// sends the answers.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_SERVER_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_SERVER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "cluster/expert_frame.h"
#include "common/clock.h"
#include "expert_service/expert_batcher.h"
#include "protos/expert.grpc.pb.h"

namespace troupe {

// One reactor per router's stream. Frames are read and written as bytes, so
// that payloads are copied once on the way in and not on the way out
// (cluster/expert_wire.h). Starts in state LOADING: routers may connect
// and are told when the process is ready. Thread-safe.
class ExpertServer final
    : public v1::Expert::WithRawCallbackMethod_Exchange<
          v1::Expert::WithCallbackMethod_GetStats<v1::Expert::Service>> {
 public:
  // description.state and .experts are filled in later. limits: of the model.
  ExpertServer(v1::ExpertDescription description, const FrameLimits& limits);
  ~ExpertServer() override;

  // The weights are there: from now on batches are computed. `batcher` outlives
  // every stream.
  void SetReady(ExpertBatcher* batcher,
                const std::vector<v1::ExpertVersion>& versions,
                uint64_t weight_bytes);
  // Other experts are here, or some are leaving: told to every router.
  void SetExperts(const std::vector<v1::ExpertVersion>& versions,
                  uint64_t weight_bytes);
  // Waits until every router has said that it wants none of the leaving
  // versions any more, at most for `limit`, or, if it may be cancelled, until
  // CancelWait.
  bool AwaitReleased(milliseconds limit, bool may_be_cancelled);
  void CancelWait();
  // Takes a valid rollout with a higher revision than the present one, and
  // tells every router. FailedPrecondition otherwise.
  absl::Status SetRollout(const v1::Rollout& rollout);
  v1::ExpertDescription description() const;
  v1::ExpertStats Statistics() const;  // without integrity
  // FailedPrecondition names both and both fingerprints.
  absl::Status CheckModel(const std::string& router_name,
                          const std::string& fingerprint);

  // Tells every router to go elsewhere; new batches are answered DRAINING.
  void StartDraining();
  // Ends the streams, after what was answered has been sent.
  void EndStreams();

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Exchange(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context,
                                     const v1::GetExpertStatsRequest* request,
                                     v1::ExpertStats* response) override;

 private:
  class Stream;
  class Call;

  // One version of one expert: layer, expert, key.
  using ReleaseKey = std::tuple<uint32_t, uint32_t, uint64_t>;

  void Add(std::shared_ptr<Stream> stream);
  void Greeted(Stream* stream);
  // Of what it has released, keeps what is leaving.
  void Released(Stream* stream, const v1::ReleaseVersions& release);
  void Remove(const std::shared_ptr<Stream>& stream);
  void Broadcast();
  ExpertBatcher* batcher() const;

  const FrameLimits limits_;

  mutable absl::Mutex mu_;
  v1::ExpertDescription description_ ABSL_GUARDED_BY(mu_);
  ExpertBatcher* batcher_ ABSL_GUARDED_BY(mu_) = nullptr;
  uint64_t num_refused_routers_ ABSL_GUARDED_BY(mu_) = 0;
  std::string last_refusal_ ABSL_GUARDED_BY(mu_);
  std::set<std::shared_ptr<Stream>> streams_ ABSL_GUARDED_BY(mu_);
  std::set<ReleaseKey> leaving_ ABSL_GUARDED_BY(mu_);
  // By router that has said hello: what it has released of leaving_.
  std::map<Stream*, std::set<ReleaseKey>> released_ ABSL_GUARDED_BY(mu_);
  bool wait_is_cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_SERVER_H_
