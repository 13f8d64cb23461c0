// Frames over gRPC: the messages of protos/expert.proto without copies of their
// payloads.
#ifndef TROUPE_CLUSTER_EXPERT_WIRE_H_
#define TROUPE_CLUSTER_EXPERT_WIRE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "cluster/expert_frame.h"
#include "google/protobuf/message_lite.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "protos/expert.pb.h"

namespace troupe {

// Memory for a payload that gRPC will own: a slice at a multiple of 64.
grpc::Slice NewPayload(size_t num_bytes);
inline char* DataOf(const grpc::Slice& slice) {
  return reinterpret_cast<char*>(const_cast<uint8_t*>(slice.begin()));
}

grpc::ByteBuffer EncodeMessage(const google::protobuf::MessageLite& message);
// An ExpertRequest with the batch, an ExpertResponse with the output; the
// payload is not copied. `output.rows` is not looked at.
grpc::ByteBuffer EncodeBatch(const ExpertBatch& batch, uint64_t attempt_id,
                             const grpc::Slice& payload);
grpc::ByteBuffer EncodeOutput(const ExpertOutput& output,
                              const grpc::Slice& payload);

// A request as it was read. The payload stays in the buffer.
struct DecodedRequest {
  enum class Kind { kNone, kHello, kBatch, kRelease };
  Kind kind = Kind::kNone;
  v1::ExpertHello hello;
  v1::ReleaseVersions release;
  uint64_t payload_offset = 0;  // of a batch, in the buffer
  uint64_t payload_bytes = 0;
};
// Takes lists no longer than `limits` allow. InvalidArgument names the field.
absl::Status DecodeRequest(grpc::ByteBuffer& buffer, const FrameLimits& limits,
                           DecodedRequest& request, ExpertBatch& batch);
// Copies bytes of a buffer, which must be there.
void CopyFromBuffer(const grpc::ByteBuffer& buffer, uint64_t offset,
                    uint64_t num_bytes, char* to);

// A response; output.rows are views of `slices`.
struct DecodedResponse {
  enum class Kind { kNone, kDescription, kOutput };
  Kind kind = Kind::kNone;
  v1::ExpertDescription description;
  ExpertOutput output;
  std::vector<grpc::Slice> slices;
};
absl::Status DecodeResponse(grpc::ByteBuffer& buffer,
                            DecodedResponse& response);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_EXPERT_WIRE_H_
