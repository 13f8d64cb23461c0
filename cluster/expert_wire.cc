#include "cluster/expert_wire.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/support/proto_buffer_reader.h"

namespace troupe {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr uint64_t kAlignment = 64;
constexpr uint32_t kMaxControlBytes = 16u << 20;  // a hello, a description
constexpr uint64_t kMaxRefusedCopies = 1u << 22;

// Field numbers of protos/expert.proto.
using Request = v1::ExpertRequest;
using Response = v1::ExpertResponse;
using Batch = v1::ExpertBatch;
using Output = v1::ExpertOutput;

static_assert(static_cast<int>(DataType::kF32) == v1::WIRE_DTYPE_FLOAT32);
static_assert(static_cast<int>(DataType::kBF16) == v1::WIRE_DTYPE_BFLOAT16);
static_assert(static_cast<int>(Verdict::kComputed) == Output::VERDICT_COMPUTED);
static_assert(static_cast<int>(Verdict::kRefused) == Output::VERDICT_REFUSED);
static_assert(static_cast<int>(Verdict::kDraining) == Output::VERDICT_DRAINING);
static_assert(static_cast<int>(Verdict::kPartial) == Output::VERDICT_PARTIAL);

void AppendVarint(uint64_t value, std::string& to) {
  while (value >= 0x80) {
    to.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  to.push_back(static_cast<char>(value));
}

size_t VarintBytes(uint64_t value) {
  size_t count = 1;
  while (value >= 0x80) {
    value >>= 7;
    ++count;
  }
  return count;
}

void AppendTag(int field, WireFormatLite::WireType type, std::string& to) {
  AppendVarint(WireFormatLite::MakeTag(field, type), to);
}

void AppendNumber(int field, uint64_t value, std::string& to) {
  if (value == 0) return;  // proto3's default is not sent
  AppendTag(field, WireFormatLite::WIRETYPE_VARINT, to);
  AppendVarint(value, to);
}

void AppendNumbers(int field, const std::vector<uint32_t>& values,
                   std::string& to) {
  if (values.empty()) return;
  size_t num_bytes = 0;
  for (const uint32_t value : values) num_bytes += VarintBytes(value);
  AppendTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, to);
  AppendVarint(num_bytes, to);
  for (const uint32_t value : values) AppendVarint(value, to);
}

void AppendFixed64s(int field, const std::vector<uint64_t>& values,
                    std::string& to) {
  if (values.empty()) return;
  AppendTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, to);
  AppendVarint(values.size() * sizeof(uint64_t), to);
  to.append(reinterpret_cast<const char*>(values.data()),
            values.size() * sizeof(uint64_t));
}

// outer_field { fields, payload_field: payload }
grpc::ByteBuffer Wrap(int outer_field, std::string fields, int payload_field,
                      const grpc::Slice& payload) {
  if (payload.size() > 0) {
    AppendTag(payload_field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, fields);
    AppendVarint(payload.size(), fields);
  }
  std::string head;
  AppendTag(outer_field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, head);
  AppendVarint(fields.size() + payload.size(), head);
  head += fields;
  const grpc::Slice slices[] = {grpc::Slice(head), payload};
  return grpc::ByteBuffer(slices, payload.size() > 0 ? 2 : 1);
}

absl::Status Malformed(absl::string_view field) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": not a protobuf message"));
}

int FieldOf(uint32_t tag) { return WireFormatLite::GetTagFieldNumber(tag); }
WireFormatLite::WireType TypeOf(uint32_t tag) {
  return WireFormatLite::GetTagWireType(tag);
}

// Reads the length of a field and checks that as many bytes follow within the
// surrounding message.
bool ReadLength(CodedInputStream& in, uint32_t tag, uint32_t* num_bytes) {
  return TypeOf(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED &&
         in.ReadVarint32(num_bytes) &&
         *num_bytes <= static_cast<uint32_t>(std::max(0, in.BytesUntilLimit()));
}

template <typename T>
bool ReadNumber(CodedInputStream& in, uint32_t tag, T* value) {
  uint64_t number = 0;
  if (TypeOf(tag) != WireFormatLite::WIRETYPE_VARINT ||
      !in.ReadVarint64(&number) || number > std::numeric_limits<T>::max()) {
    return false;
  }
  *value = static_cast<T>(number);
  return true;
}

// Packed or not, at most max_count in all.
bool ReadNumbers(CodedInputStream& in, uint32_t tag, uint64_t max_count,
                 std::vector<uint32_t>& values) {
  if (TypeOf(tag) == WireFormatLite::WIRETYPE_VARINT) {
    values.push_back(0);
    return values.size() <= max_count && ReadNumber(in, tag, &values.back());
  }
  uint32_t num_bytes = 0;
  if (!ReadLength(in, tag, &num_bytes)) return false;
  const CodedInputStream::Limit outer =
      in.PushLimit(static_cast<int>(num_bytes));
  while (in.BytesUntilLimit() > 0) {
    uint32_t value = 0;
    if (values.size() >= max_count || !in.ReadVarint32(&value)) return false;
    values.push_back(value);
  }
  in.PopLimit(outer);
  return true;
}

bool ReadFixed64s(CodedInputStream& in, uint32_t tag, uint64_t max_count,
                  std::vector<uint64_t>& values) {
  uint64_t value = 0;
  if (TypeOf(tag) == WireFormatLite::WIRETYPE_FIXED64) {
    if (values.size() >= max_count || !in.ReadLittleEndian64(&value)) {
      return false;
    }
    values.push_back(value);
    return true;
  }
  uint32_t num_bytes = 0;
  if (!ReadLength(in, tag, &num_bytes) || num_bytes % sizeof(value) != 0 ||
      values.size() + num_bytes / sizeof(value) > max_count) {
    return false;
  }
  for (uint32_t i = 0; i < num_bytes / sizeof(value); ++i) {
    if (!in.ReadLittleEndian64(&value)) return false;
    values.push_back(value);
  }
  return true;
}

bool ReadControl(CodedInputStream& in, uint32_t num_bytes,
                 google::protobuf::MessageLite& message) {
  if (num_bytes > kMaxControlBytes) return false;
  const CodedInputStream::Limit outer =
      in.PushLimit(static_cast<int>(num_bytes));
  if (!message.ParseFromCodedStream(&in) || !in.ConsumedEntireMessage()) {
    return false;
  }
  in.PopLimit(outer);
  return true;
}

// Notes where a payload lies, and passes over it.
bool ReadPayload(CodedInputStream& in, uint32_t tag, uint64_t* offset,
                 uint64_t* num_bytes) {
  uint32_t length = 0;
  if (!ReadLength(in, tag, &length)) return false;
  *offset = static_cast<uint64_t>(in.CurrentPosition());
  *num_bytes = length;
  return in.Skip(static_cast<int>(length));
}

absl::Status ReadBatch(CodedInputStream& in, const FrameLimits& limits,
                       uint64_t max_copies, DecodedRequest& request,
                       ExpertBatch& batch) {
  batch.Clear();
  request.payload_offset = 0;
  request.payload_bytes = 0;
  uint32_t tag = 0;
  while ((tag = in.ReadTag()) != 0) {
    bool ok = true;
    const char* field = "";
    switch (FieldOf(tag)) {
      case Batch::kAttemptIdFieldNumber:
        field = ".attempt_id";
        ok = ReadNumber(in, tag, &batch.attempt_id);
        break;
      case Batch::kLayerFieldNumber:
        field = ".layer";
        ok = ReadNumber(in, tag, &batch.layer);
        break;
      case Batch::kNumTokensFieldNumber:
        field = ".num_tokens";
        ok = ReadNumber(in, tag, &batch.num_tokens);
        break;
      case Batch::kHiddenStatesFieldNumber:
        field = ".hidden_states";
        ok = ReadPayload(in, tag, &request.payload_offset,
                         &request.payload_bytes);
        break;
      case Batch::kExpertIdsFieldNumber:
        field = ".expert_ids";
        ok = ReadNumbers(in, tag, limits.max_groups(), batch.expert_ids);
        break;
      case Batch::kCopiesPerExpertFieldNumber:
        field = ".copies_per_expert";
        // One more than right, so that the message says how many there are.
        ok = ReadNumbers(in, tag, limits.max_groups() + 1,
                         batch.copies_per_expert);
        break;
      case Batch::kVersionsFieldNumber:
        field = ".versions";
        ok = ReadFixed64s(in, tag, limits.max_groups() + 1, batch.versions);
        break;
      case Batch::kRowOfCopyFieldNumber:
        field = ".row_of_copy";
        ok = ReadNumbers(in, tag, max_copies, batch.row_of_copy);
        break;
      case Batch::kPrioritiesFieldNumber:
        field = ".priorities";
        ok = ReadNumbers(in, tag, max_copies, batch.priorities);
        break;
      case Batch::kTimeoutMsFieldNumber:
        field = ".timeout_ms";
        ok = ReadNumber(in, tag, &batch.timeout_ms);
        break;
      case Batch::kDtypeFieldNumber: {
        field = ".dtype";
        uint32_t dtype = 0;
        ok = ReadNumber(in, tag, &dtype) && dtype <= 1;
        batch.dtype = static_cast<DataType>(dtype);
        break;
      }
      default:
        ok = WireFormatLite::SkipField(&in, tag);
    }
    if (!ok) {
      return absl::InvalidArgumentError(absl::StrCat(
          "ExpertBatch", field, ": malformed, or more than the model allows"));
    }
  }
  if (!in.ConsumedEntireMessage()) return Malformed("ExpertBatch");
  return absl::OkStatus();
}

absl::Status ReadOutput(CodedInputStream& in, uint64_t* payload_offset,
                        uint64_t* payload_bytes, ExpertOutput& output) {
  output = ExpertOutput();
  uint32_t tag = 0;
  while ((tag = in.ReadTag()) != 0) {
    bool ok = true;
    const char* field = "";
    switch (FieldOf(tag)) {
      case Output::kAttemptIdFieldNumber:
        field = ".attempt_id";
        ok = ReadNumber(in, tag, &output.attempt_id);
        break;
      case Output::kVerdictFieldNumber: {
        field = ".verdict";
        uint8_t verdict = 0;
        ok = ReadNumber(in, tag, &verdict) &&
             verdict <= static_cast<uint8_t>(kLastVerdict);
        output.verdict = static_cast<Verdict>(verdict);
        break;
      }
      case Output::kOutputsFieldNumber:
        field = ".outputs";
        ok = ReadPayload(in, tag, payload_offset, payload_bytes);
        break;
      case Output::kRefusedCopiesFieldNumber:
        field = ".refused_copies";
        ok = ReadNumbers(in, tag, kMaxRefusedCopies, output.refused_copies);
        break;
      case Output::kFreeRowsFieldNumber:
        field = ".free_rows";
        ok = ReadNumber(in, tag, &output.free_rows);
        break;
      case Output::kComputeUsFieldNumber:
        field = ".compute_us";
        ok = ReadNumber(in, tag, &output.compute_us);
        break;
      case Output::kQueueUsFieldNumber:
        field = ".queue_us";
        ok = ReadNumber(in, tag, &output.queue_us);
        break;
      case Output::kDtypeFieldNumber: {
        field = ".dtype";
        uint8_t dtype = 0;
        ok = ReadNumber(in, tag, &dtype) && dtype <= 1;
        output.dtype = static_cast<DataType>(dtype);
        break;
      }
      default:
        ok = WireFormatLite::SkipField(&in, tag);
    }
    if (!ok) return Malformed(absl::StrCat("ExpertOutput", field));
  }
  if (!in.ConsumedEntireMessage()) return Malformed("ExpertOutput");
  return absl::OkStatus();
}

// Calls take(piece) for the pieces of [offset, offset + num_bytes).
template <typename Take>
void ForPieces(const std::vector<grpc::Slice>& slices, uint64_t offset,
               uint64_t num_bytes, const Take& take) {
  for (const grpc::Slice& slice : slices) {
    if (num_bytes == 0) return;
    if (offset >= slice.size()) {
      offset -= slice.size();
      continue;
    }
    const uint64_t count = std::min<uint64_t>(num_bytes, slice.size() - offset);
    take(absl::string_view(DataOf(slice) + offset, count));
    num_bytes -= count;
    offset = 0;
  }
  CHECK_EQ(num_bytes, 0u);
}

}  // namespace

grpc::Slice NewPayload(size_t num_bytes) {
  if (num_bytes == 0) return grpc::Slice();
  const size_t rounded = (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
  void* memory = std::aligned_alloc(kAlignment, rounded);
  CHECK(memory != nullptr);
  return grpc::Slice(memory, num_bytes, std::free);
}

grpc::ByteBuffer EncodeMessage(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

grpc::ByteBuffer EncodeBatch(const ExpertBatch& batch, uint64_t attempt_id,
                             const grpc::Slice& payload) {
  std::string fields;
  AppendNumber(Batch::kAttemptIdFieldNumber, attempt_id, fields);
  AppendNumber(Batch::kLayerFieldNumber, batch.layer, fields);
  AppendNumber(Batch::kNumTokensFieldNumber, batch.num_tokens, fields);
  AppendNumbers(Batch::kExpertIdsFieldNumber, batch.expert_ids, fields);
  AppendNumbers(Batch::kCopiesPerExpertFieldNumber, batch.copies_per_expert,
                fields);
  AppendNumbers(Batch::kRowOfCopyFieldNumber, batch.row_of_copy, fields);
  AppendFixed64s(Batch::kVersionsFieldNumber, batch.versions, fields);
  AppendNumbers(Batch::kPrioritiesFieldNumber, batch.priorities, fields);
  AppendNumber(Batch::kTimeoutMsFieldNumber, batch.timeout_ms, fields);
  AppendNumber(Batch::kDtypeFieldNumber, static_cast<uint64_t>(batch.dtype),
               fields);
  return Wrap(Request::kBatchFieldNumber, std::move(fields),
              Batch::kHiddenStatesFieldNumber, payload);
}

grpc::ByteBuffer EncodeOutput(const ExpertOutput& output,
                              const grpc::Slice& payload) {
  std::string fields;
  AppendNumber(Output::kAttemptIdFieldNumber, output.attempt_id, fields);
  AppendNumber(Output::kVerdictFieldNumber,
               static_cast<uint64_t>(output.verdict), fields);
  AppendNumbers(Output::kRefusedCopiesFieldNumber, output.refused_copies,
                fields);
  AppendNumber(Output::kFreeRowsFieldNumber, output.free_rows, fields);
  AppendNumber(Output::kComputeUsFieldNumber, output.compute_us, fields);
  AppendNumber(Output::kQueueUsFieldNumber, output.queue_us, fields);
  AppendNumber(Output::kDtypeFieldNumber, static_cast<uint64_t>(output.dtype),
               fields);
  return Wrap(Response::kOutputFieldNumber, std::move(fields),
              Output::kOutputsFieldNumber, payload);
}

absl::Status DecodeRequest(grpc::ByteBuffer& buffer, const FrameLimits& limits,
                           DecodedRequest& request, ExpertBatch& batch) {
  request.kind = DecodedRequest::Kind::kNone;
  const uint64_t message_bytes = buffer.Length();
  // A token is at least a row of bfloat16, and goes to each expert once; a few
  // more, so that a frame without its rows is told what it lacks.
  const uint64_t max_copies = std::min<uint64_t>(
      message_bytes,
      4096 + limits.num_experts *
                 (message_bytes / std::max<size_t>(1, 2 * limits.hidden_size)));
  grpc::ProtoBufferReader reader(&buffer);
  CodedInputStream in(&reader);
  const CodedInputStream::Limit all = in.PushLimit(
      static_cast<int>(std::min<uint64_t>(message_bytes, INT32_MAX)));
  uint32_t tag = 0;
  while ((tag = in.ReadTag()) != 0) {
    if (FieldOf(tag) != Request::kHelloFieldNumber &&
        FieldOf(tag) != Request::kBatchFieldNumber &&
        FieldOf(tag) != Request::kReleaseFieldNumber) {
      if (!WireFormatLite::SkipField(&in, tag)) {
        return Malformed("ExpertRequest");
      }
      continue;
    }
    uint32_t num_bytes = 0;
    if (!ReadLength(in, tag, &num_bytes)) return Malformed("ExpertRequest");
    if (FieldOf(tag) == Request::kHelloFieldNumber) {
      request.kind = DecodedRequest::Kind::kHello;
      request.hello.Clear();
      if (!ReadControl(in, num_bytes, request.hello)) {
        return Malformed("ExpertRequest.hello");
      }
      continue;
    }
    if (FieldOf(tag) == Request::kReleaseFieldNumber) {
      request.kind = DecodedRequest::Kind::kRelease;
      request.release.Clear();
      if (!ReadControl(in, num_bytes, request.release)) {
        return Malformed("ExpertRequest.release");
      }
      continue;
    }
    request.kind = DecodedRequest::Kind::kBatch;
    const CodedInputStream::Limit outer =
        in.PushLimit(static_cast<int>(num_bytes));
    absl::Status status = ReadBatch(in, limits, max_copies, request, batch);
    if (!status.ok()) return status;
    in.PopLimit(outer);
  }
  if (!in.ConsumedEntireMessage()) return Malformed("ExpertRequest");
  in.PopLimit(all);
  return absl::OkStatus();
}

void CopyFromBuffer(const grpc::ByteBuffer& buffer, uint64_t offset,
                    uint64_t num_bytes, char* to) {
  std::vector<grpc::Slice> slices;
  CHECK(buffer.Dump(&slices).ok());
  ForPieces(slices, offset, num_bytes, [&to](absl::string_view piece) {
    std::memcpy(to, piece.data(), piece.size());
    to += piece.size();
  });
}

absl::Status DecodeResponse(grpc::ByteBuffer& buffer,
                            DecodedResponse& response) {
  response.kind = DecodedResponse::Kind::kNone;
  uint64_t payload_offset = 0;
  uint64_t payload_bytes = 0;
  {
    grpc::ProtoBufferReader reader(&buffer);
    CodedInputStream in(&reader);
    in.PushLimit(
        static_cast<int>(std::min<uint64_t>(buffer.Length(), INT32_MAX)));
    uint32_t tag = 0;
    while ((tag = in.ReadTag()) != 0) {
      if (FieldOf(tag) != Response::kDescriptionFieldNumber &&
          FieldOf(tag) != Response::kOutputFieldNumber) {
        if (!WireFormatLite::SkipField(&in, tag)) {
          return Malformed("ExpertResponse");
        }
        continue;
      }
      uint32_t num_bytes = 0;
      if (!ReadLength(in, tag, &num_bytes)) return Malformed("ExpertResponse");
      if (FieldOf(tag) == Response::kDescriptionFieldNumber) {
        response.kind = DecodedResponse::Kind::kDescription;
        response.description.Clear();
        if (!ReadControl(in, num_bytes, response.description)) {
          return Malformed("ExpertResponse.description");
        }
        continue;
      }
      response.kind = DecodedResponse::Kind::kOutput;
      const CodedInputStream::Limit outer =
          in.PushLimit(static_cast<int>(num_bytes));
      payload_bytes = 0;
      absl::Status status =
          ReadOutput(in, &payload_offset, &payload_bytes, response.output);
      if (!status.ok()) return status;
      in.PopLimit(outer);
    }
    if (!in.ConsumedEntireMessage()) return Malformed("ExpertResponse");
  }
  if (response.kind == DecodedResponse::Kind::kOutput && payload_bytes > 0) {
    CHECK(buffer.Dump(&response.slices).ok());
    ForPieces(response.slices, payload_offset, payload_bytes,
              [&response](absl::string_view piece) {
                response.output.rows.Add(piece);
              });
  }
  return absl::OkStatus();
}

}  // namespace troupe
