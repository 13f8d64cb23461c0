// What goes over a hop, and how it lies in shared memory. docs/wire_format.md.
#ifndef TROUPE_CLUSTER_EXPERT_FRAME_H_
#define TROUPE_CLUSTER_EXPERT_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "cluster/version_key.h"
#include "common/dtype.h"

namespace troupe {

// The routed copies of one layer for all experts that one process owns, without
// the hidden states, which lie in the memory of a transport: rows
// [num_tokens, hidden_size] of `dtype`, little-endian. Kept and filled again,
// so that its vectors are allocated once.
struct ExpertBatch {
  uint64_t attempt_id = 0;  // unique on its connection
  uint32_t layer = 0;
  uint32_t num_tokens = 0;
  // Milliseconds from now after which nobody wants the answer; 0 = never.
  uint32_t timeout_ms = 0;
  // Of the hidden states, and of the outputs that are wanted. A number that a
  // peer made up is refused when the frame is read.
  DataType dtype = DataType::kF32;
  // The experts that have copies here, ascending, and how many each has. The
  // copies are sorted by expert.
  std::vector<uint32_t> expert_ids;
  std::vector<uint32_t> copies_per_expert;
  // Which version of each expert (VersionKeyOf), as long as expert_ids. Then an
  // expert may be there once per version, ascending by key. Empty: the only
  // version that is there.
  std::vector<uint64_t> versions;
  // [num_copies]: the row of the hidden states of each copy.
  std::vector<uint32_t> row_of_copy;
  // [num_copies] or empty: all the same. When there is room for some of the
  // copies alone, those with the lowest numbers are refused; of equals, the
  // last ones.
  std::vector<uint32_t> priorities;

  size_t num_copies() const { return row_of_copy.size(); }
  uint64_t version(size_t i) const {
    return versions.empty() ? 0 : versions[i];
  }
  void Clear();
};

enum class Verdict : uint8_t {
  kUnspecified = 0,
  kComputed = 1,
  kRefused = 2,   // no room: nothing was computed, ask elsewhere
  kDraining = 3,  // leaving: nothing was computed, ask elsewhere
  kGone = 4,      // a version that is not here (any more)
  kPartial = 5,   // room for some: all but ExpertOutput::refused_copies
};
inline constexpr Verdict kLastVerdict = Verdict::kPartial;
const char* Name(Verdict verdict);
inline bool HasRows(Verdict verdict) {
  return verdict == Verdict::kComputed || verdict == Verdict::kPartial;
}

// Bytes in the memory of a transport, in one piece or, over gRPC, in several.
class PayloadView {
 public:
  PayloadView() = default;
  explicit PayloadView(absl::string_view piece) { Add(piece); }
  void Add(absl::string_view piece);
  // None of them is empty.
  absl::Span<const absl::string_view> pieces() const {
    if (!several_.empty()) return several_;
    return absl::MakeConstSpan(&only_, only_.empty() ? 0 : 1);
  }
  size_t size() const;

 private:
  absl::string_view only_;  // without an allocation
  std::vector<absl::string_view> several_;
};

// The answer to one batch. Rows [num_copies, hidden_size] of the batch's dtype,
// in the order of its copies, not weighted; of a partial one, those of the
// copies that were not refused.
struct ExpertOutput {
  uint64_t attempt_id = 0;
  Verdict verdict = Verdict::kUnspecified;
  DataType dtype = DataType::kF32;
  uint64_t free_rows = 0;   // room in the queue now
  uint32_t compute_us = 0;  // time in the grouped GEMM
  uint32_t queue_us = 0;    // time before it
  // Of a partial answer: copies of the batch, ascending. That they are the
  // batch's is not looked at when a frame is read.
  std::vector<uint32_t> refused_copies;
  // Valid until the callback that brought it returns.
  PayloadView rows;
};

// Reads a payload from its begin to its end.
class PayloadReader {
 public:
  explicit PayloadReader(const PayloadView& payload) : payload_(payload) {}
  // The next bytes; there must be as many.
  void Read(char* to, size_t num_bytes);
  // The next elements of `dtype`, as float.
  void ReadFloats(DataType dtype, float* to, size_t count);

 private:
  const PayloadView& payload_;
  size_t piece_ = 0;
  size_t offset_ = 0;
};

// The rounding of a wire format: count floats to elements of dtype. `to` needs
// no alignment.
void WriteElements(DataType dtype, const float* from, size_t count, char* to);
void ReadElements(DataType dtype, const char* from, size_t count, float* to);

// What a process that serves a model accepts; everything is checked against it
// before memory is taken.
struct FrameLimits {
  size_t hidden_size = 0;
  size_t num_layers = 0;
  size_t num_experts = 0;  // per layer
  // Of the lists by expert and version.
  size_t max_groups() const { return num_experts * kMaxVersionsPerExpert; }
};
// Whether header and payload agree with one another and with the model;
// InvalidArgument names the field. That the experts are here is not looked at.
absl::Status ValidateFrame(const ExpertBatch& batch, uint64_t payload_bytes,
                           const FrameLimits& limits);

// In shared memory a frame is a header of 64 bytes, the numbers of a batch,
// and, at the next multiple of 64, the payload. Encoders write everything but
// the payload, and return where that goes.
uint64_t FlatBatchBytes(const ExpertBatch& batch, uint64_t payload_bytes);
char* EncodeFlatBatch(const ExpertBatch& batch, uint64_t attempt_id,
                      uint64_t payload_bytes, char* to);
// Copies everything that decides anything into `batch`, since the frame may
// change under us. Checks that the lists are in the frame and no longer than
// the model allows; the rest is ValidateFrame's. Returns the payload's place.
absl::StatusOr<absl::string_view> DecodeFlatBatch(absl::string_view frame,
                                                  const FrameLimits& limits,
                                                  ExpertBatch& batch);

// payload_bytes: of the rows and, behind them, the refused copies.
uint64_t FlatOutputBytes(uint64_t payload_bytes);
// Where the payload of an output frame at `frame` lies.
char* FlatOutputPayload(char* frame);
// Writes the header; `output.rows` is not looked at.
void EncodeFlatOutput(const ExpertOutput& output, uint64_t payload_bytes,
                      char* to);
absl::StatusOr<ExpertOutput> DecodeFlatOutput(absl::string_view frame);

}  // namespace troupe

#endif  // TROUPE_CLUSTER_EXPERT_FRAME_H_
