#include "cluster/expert_frame.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace troupe {
namespace {

constexpr uint64_t kAlignment = 64;

// As it lies in shared memory, little-endian.
struct FlatBatchHeader {
  uint64_t attempt_id;
  uint64_t payload_bytes;
  uint32_t layer;
  uint32_t num_tokens;
  uint32_t timeout_ms;
  uint32_t dtype;
  uint32_t num_experts;
  uint32_t num_copies;
  uint32_t num_versions;    // 0 or num_experts
  uint32_t num_priorities;  // 0 or num_copies
  uint32_t reserved[4];
};
static_assert(sizeof(FlatBatchHeader) == kAlignment);

struct FlatOutputHeader {
  uint64_t attempt_id;
  uint64_t payload_bytes;
  uint64_t free_rows;
  uint32_t verdict;
  uint32_t dtype;
  uint32_t compute_us;
  uint32_t queue_us;
  uint32_t num_refused;  // at the end of the payload
  uint32_t reserved[5];
};
static_assert(sizeof(FlatOutputHeader) == kAlignment);

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("ExpertBatch.", field, ": ", what));
}

uint64_t Aligned(uint64_t num_bytes) {
  return (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

uint64_t PayloadOffset(uint64_t num_versions, uint64_t num_experts,
                       uint64_t num_copies, uint64_t num_priorities) {
  return Aligned(sizeof(FlatBatchHeader) + num_versions * sizeof(uint64_t) +
                 (2 * num_experts + num_copies + num_priorities) *
                     sizeof(uint32_t));
}
uint64_t PayloadOffset(const ExpertBatch& batch) {
  return PayloadOffset(batch.versions.size(), batch.expert_ids.size(),
                       batch.row_of_copy.size(), batch.priorities.size());
}

template <typename T>
char* PutNumbers(const std::vector<T>& numbers, char* to) {
  const size_t num_bytes = numbers.size() * sizeof(T);
  if (num_bytes > 0) std::memcpy(to, numbers.data(), num_bytes);
  return to + num_bytes;
}

template <typename T>
const char* TakeNumbers(const char* from, size_t count,
                        std::vector<T>& numbers) {
  numbers.resize(count);
  const size_t num_bytes = count * sizeof(T);
  if (num_bytes > 0) std::memcpy(numbers.data(), from, num_bytes);
  return from + num_bytes;
}

bool IsWireDtype(uint32_t dtype) {
  return dtype == static_cast<uint32_t>(DataType::kF32) ||
         dtype == static_cast<uint32_t>(DataType::kBF16);
}

}  // namespace

void ExpertBatch::Clear() {
  attempt_id = 0;
  layer = 0;
  num_tokens = 0;
  timeout_ms = 0;
  dtype = DataType::kF32;
  expert_ids.clear();
  copies_per_expert.clear();
  versions.clear();
  row_of_copy.clear();
  priorities.clear();
}

const char* Name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kComputed:
      return "computed";
    case Verdict::kRefused:
      return "refused";
    case Verdict::kDraining:
      return "draining";
    case Verdict::kPartial:
      return "partial";
    case Verdict::kGone:
      return "the version is gone";
    case Verdict::kUnspecified:
      break;
  }
  return "no verdict";
}

void PayloadView::Add(absl::string_view piece) {
  if (piece.empty()) return;
  if (only_.empty()) {
    only_ = piece;
    return;
  }
  if (several_.empty()) several_.push_back(only_);
  several_.push_back(piece);
}

size_t PayloadView::size() const {
  size_t num_bytes = 0;
  for (const absl::string_view piece : pieces()) num_bytes += piece.size();
  return num_bytes;
}

void PayloadReader::Read(char* to, size_t num_bytes) {
  while (num_bytes > 0) {
    CHECK_LT(piece_, payload_.pieces().size());
    const absl::string_view piece = payload_.pieces()[piece_];
    const size_t take = std::min(num_bytes, piece.size() - offset_);
    std::memcpy(to, piece.data() + offset_, take);
    to += take;
    num_bytes -= take;
    offset_ += take;
    if (offset_ == piece.size()) {
      ++piece_;
      offset_ = 0;
    }
  }
}

void PayloadReader::ReadFloats(DataType dtype, float* to, size_t count) {
  if (dtype == DataType::kF32) {
    Read(reinterpret_cast<char*>(to), count * sizeof(float));
    return;
  }
  char chunk[2048];  // an element may lie across two pieces
  while (count > 0) {
    const size_t take = std::min(count, sizeof(chunk) / SizeOf(dtype));
    Read(chunk, take * SizeOf(dtype));
    ReadElements(dtype, chunk, take, to);
    to += take;
    count -= take;
  }
}

void WriteElements(DataType dtype, const float* from, size_t count, char* to) {
  if (dtype == DataType::kF32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  CHECK(dtype == DataType::kBF16);
  for (size_t i = 0; i < count; ++i) {
    const uint16_t bits = BF16FromF32(from[i]);
    std::memcpy(to + i * sizeof(bits), &bits, sizeof(bits));
  }
}

void ReadElements(DataType dtype, const char* from, size_t count, float* to) {
  if (dtype == DataType::kF32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  CHECK(dtype == DataType::kBF16);
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, from + i * sizeof(bits), sizeof(bits));
    to[i] = F32FromBF16(bits);
  }
}

absl::Status ValidateFrame(const ExpertBatch& batch, uint64_t payload_bytes,
                           const FrameLimits& limits) {
  const uint64_t num_tokens = batch.num_tokens;
  if (!IsWireDtype(static_cast<uint32_t>(batch.dtype))) {
    return Wrong("dtype", absl::StrCat(static_cast<uint32_t>(batch.dtype),
                                       " is neither float32 nor bfloat16"));
  }
  const uint64_t row_bytes = limits.hidden_size * SizeOf(batch.dtype);
  if (batch.layer >= limits.num_layers) {
    return Wrong("layer", absl::StrCat(batch.layer, " of a model with ",
                                       limits.num_layers, " layers"));
  }
  if (num_tokens == 0) return Wrong("num_tokens", "0");
  if (num_tokens * row_bytes != payload_bytes) {
    return Wrong("hidden_states",
                 absl::StrCat(payload_bytes, " bytes instead of ", num_tokens,
                              " x ", row_bytes));
  }
  if (batch.expert_ids.empty()) return Wrong("expert_ids", "empty");
  if (batch.copies_per_expert.size() != batch.expert_ids.size()) {
    return Wrong("copies_per_expert",
                 absl::StrCat(batch.copies_per_expert.size(), " numbers for ",
                              batch.expert_ids.size(), " experts"));
  }
  if (!batch.versions.empty() &&
      batch.versions.size() != batch.expert_ids.size()) {
    return Wrong("versions", absl::StrCat(batch.versions.size(), " for ",
                                          batch.expert_ids.size(), " experts"));
  }
  uint64_t num_copies = 0;
  for (size_t i = 0; i < batch.expert_ids.size(); ++i) {
    const uint32_t expert = batch.expert_ids[i];
    if (i > 0 && expert <= batch.expert_ids[i - 1] &&
        (expert < batch.expert_ids[i - 1] ||
         batch.version(i) <= batch.version(i - 1))) {
      return Wrong("expert_ids", absl::StrCat("not ascending at ", expert));
    }
    if (expert >= limits.num_experts) {
      return Wrong("expert_ids",
                   absl::StrCat("expert ", expert, " of a model with ",
                                limits.num_experts, " experts"));
    }
    // A token goes to an expert, and there to one version, at most once.
    const uint32_t copies = batch.copies_per_expert[i];
    if (copies == 0 || copies > num_tokens) {
      return Wrong("copies_per_expert",
                   absl::StrCat(copies, " for ", num_tokens, " tokens"));
    }
    num_copies += copies;
  }
  // Every token is sent for at least one copy: room in rows bounds the memory.
  if (num_tokens > num_copies) {
    return Wrong("num_tokens",
                 absl::StrCat(num_tokens, " for ", num_copies, " copies"));
  }
  if (num_copies != batch.row_of_copy.size()) {
    return Wrong("row_of_copy", absl::StrCat(batch.row_of_copy.size(),
                                             " rows instead of ", num_copies));
  }
  if (!batch.priorities.empty() && batch.priorities.size() != num_copies) {
    return Wrong("priorities",
                 absl::StrCat(batch.priorities.size(), " numbers for ",
                              num_copies, " copies"));
  }
  for (const uint32_t row : batch.row_of_copy) {
    if (row >= num_tokens) {
      return Wrong("row_of_copy",
                   absl::StrCat(row, " with ", num_tokens, " tokens"));
    }
  }
  return absl::OkStatus();
}

uint64_t FlatBatchBytes(const ExpertBatch& batch, uint64_t payload_bytes) {
  return PayloadOffset(batch) + payload_bytes;
}

char* EncodeFlatBatch(const ExpertBatch& batch, uint64_t attempt_id,
                      uint64_t payload_bytes, char* to) {
  FlatBatchHeader header = {};
  header.attempt_id = attempt_id;
  header.payload_bytes = payload_bytes;
  header.layer = batch.layer;
  header.num_tokens = batch.num_tokens;
  header.timeout_ms = batch.timeout_ms;
  header.dtype = static_cast<uint32_t>(batch.dtype);
  header.num_experts = static_cast<uint32_t>(batch.expert_ids.size());
  header.num_copies = static_cast<uint32_t>(batch.row_of_copy.size());
  header.num_versions = static_cast<uint32_t>(batch.versions.size());
  header.num_priorities = static_cast<uint32_t>(batch.priorities.size());
  std::memcpy(to, &header, sizeof(header));
  char* at = to + sizeof(header);
  at = PutNumbers(batch.versions, at);
  at = PutNumbers(batch.expert_ids, at);
  at = PutNumbers(batch.copies_per_expert, at);
  at = PutNumbers(batch.row_of_copy, at);
  PutNumbers(batch.priorities, at);
  return to + PayloadOffset(batch);
}

absl::StatusOr<absl::string_view> DecodeFlatBatch(absl::string_view frame,
                                                  const FrameLimits& limits,
                                                  ExpertBatch& batch) {
  batch.Clear();
  FlatBatchHeader header;
  if (frame.size() < sizeof(header)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ExpertBatch: a frame of ", frame.size(), " bytes"));
  }
  std::memcpy(&header, frame.data(), sizeof(header));
  batch.attempt_id = header.attempt_id;
  batch.layer = header.layer;
  batch.num_tokens = header.num_tokens;
  batch.timeout_ms = header.timeout_ms;
  if (!IsWireDtype(header.dtype)) {
    return Wrong("dtype", absl::StrCat(header.dtype,
                                       " is neither float32 nor bfloat16"));
  }
  batch.dtype = static_cast<DataType>(header.dtype);
  // Numbers of 32 bits: no overflow in 64.
  const uint64_t offset =
      PayloadOffset(header.num_versions, header.num_experts, header.num_copies,
                    header.num_priorities);
  if (header.num_experts > limits.max_groups()) {
    return Wrong("expert_ids",
                 absl::StrCat(header.num_experts, " of a model with ",
                              limits.num_experts, " experts"));
  }
  if (header.num_versions != 0 && header.num_versions != header.num_experts) {
    return Wrong("versions", absl::StrCat(header.num_versions, " for ",
                                          header.num_experts, " experts"));
  }
  if (header.num_priorities != 0 &&
      header.num_priorities != header.num_copies) {
    return Wrong("priorities", absl::StrCat(header.num_priorities, " for ",
                                            header.num_copies, " copies"));
  }
  if (offset > frame.size()) {
    return Wrong("row_of_copy",
                 absl::StrCat(header.num_copies, " copies in a frame of ",
                              frame.size(), " bytes"));
  }
  if (header.payload_bytes != frame.size() - offset) {
    return Wrong("hidden_states",
                 absl::StrCat(header.payload_bytes, " bytes in a frame of ",
                              frame.size(), " with ", offset, " before them"));
  }
  const char* at = frame.data() + sizeof(header);
  at = TakeNumbers(at, header.num_versions, batch.versions);
  at = TakeNumbers(at, header.num_experts, batch.expert_ids);
  at = TakeNumbers(at, header.num_experts, batch.copies_per_expert);
  at = TakeNumbers(at, header.num_copies, batch.row_of_copy);
  TakeNumbers(at, header.num_priorities, batch.priorities);
  return frame.substr(offset);
}

uint64_t FlatOutputBytes(uint64_t payload_bytes) {
  return sizeof(FlatOutputHeader) + payload_bytes;
}

char* FlatOutputPayload(char* frame) {
  return frame + sizeof(FlatOutputHeader);
}

void EncodeFlatOutput(const ExpertOutput& output, uint64_t payload_bytes,
                      char* to) {
  FlatOutputHeader header = {};
  header.attempt_id = output.attempt_id;
  header.payload_bytes = payload_bytes;
  header.free_rows = output.free_rows;
  header.verdict = static_cast<uint32_t>(output.verdict);
  header.dtype = static_cast<uint32_t>(output.dtype);
  header.compute_us = output.compute_us;
  header.queue_us = output.queue_us;
  header.num_refused = static_cast<uint32_t>(output.refused_copies.size());
  std::memcpy(to, &header, sizeof(header));
  PutNumbers(output.refused_copies,
             FlatOutputPayload(to) + payload_bytes -
                 output.refused_copies.size() * sizeof(uint32_t));
}

absl::StatusOr<ExpertOutput> DecodeFlatOutput(absl::string_view frame) {
  FlatOutputHeader header;
  if (frame.size() < sizeof(header)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ExpertOutput: a frame of ", frame.size(), " bytes"));
  }
  std::memcpy(&header, frame.data(), sizeof(header));
  if (header.payload_bytes != frame.size() - sizeof(header)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ExpertOutput.outputs: ", header.payload_bytes,
                     " bytes in a frame of ", frame.size()));
  }
  if (!IsWireDtype(header.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ExpertOutput.dtype: ", header.dtype,
                     " is neither float32 nor bfloat16"));
  }
  if (header.verdict > static_cast<uint32_t>(kLastVerdict)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ExpertOutput.verdict: ", header.verdict));
  }
  ExpertOutput output;
  output.attempt_id = header.attempt_id;
  output.verdict = static_cast<Verdict>(header.verdict);
  output.dtype = static_cast<DataType>(header.dtype);
  output.free_rows = header.free_rows;
  output.compute_us = header.compute_us;
  output.queue_us = header.queue_us;
  const absl::string_view payload = frame.substr(sizeof(header));
  const uint64_t list_bytes = uint64_t{header.num_refused} * sizeof(uint32_t);
  if (list_bytes > payload.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ExpertOutput.refused_copies: ", header.num_refused,
                     " in a payload of ", payload.size(), " bytes"));
  }
  const uint64_t row_bytes = payload.size() - list_bytes;
  TakeNumbers(payload.data() + row_bytes, header.num_refused,
              output.refused_copies);
  output.rows = PayloadView(payload.substr(0, row_bytes));
  return output;
}

}  // namespace troupe
