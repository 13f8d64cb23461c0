// The edge of an expert process: validates frames, hands them to the batcher,
// sends the answers.
#ifndef TROUPE_EXPERT_SERVICE_EXPERT_SERVER_H_
#define TROUPE_EXPERT_SERVICE_EXPERT_SERVER_H_

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "cluster/expert_frame.h"
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

  void Add(std::shared_ptr<Stream> stream);
  void Remove(const std::shared_ptr<Stream>& stream);
  void Broadcast();
  v1::ExpertDescription description() const;
  ExpertBatcher* batcher() const;

  const FrameLimits limits_;

  mutable absl::Mutex mu_;
  v1::ExpertDescription description_ ABSL_GUARDED_BY(mu_);
  ExpertBatcher* batcher_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::set<std::shared_ptr<Stream>> streams_ ABSL_GUARDED_BY(mu_);
};

}  // namespace troupe

#endif  // TROUPE_EXPERT_SERVICE_EXPERT_SERVER_H_
