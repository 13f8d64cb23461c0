#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/strict_json.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

using nlohmann::json;

// The reference implementation's limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDimensions = 16;

struct TypeRow {
  SafetensorsType type;
  const char* name;
  size_t num_bytes;
};
constexpr TypeRow kTypes[] = {
    {SafetensorsType::kBool, "BOOL", 1},
    {SafetensorsType::kU8, "U8", 1},
    {SafetensorsType::kI8, "I8", 1},
    {SafetensorsType::kF8E4M3, "F8_E4M3", 1},
    {SafetensorsType::kF8E5M2, "F8_E5M2", 1},
    {SafetensorsType::kI16, "I16", 2},
    {SafetensorsType::kU16, "U16", 2},
    {SafetensorsType::kF16, "F16", 2},
    {SafetensorsType::kBF16, "BF16", 2},
    {SafetensorsType::kI32, "I32", 4},
    {SafetensorsType::kU32, "U32", 4},
    {SafetensorsType::kF32, "F32", 4},
    {SafetensorsType::kI64, "I64", 8},
    {SafetensorsType::kU64, "U64", 8},
    {SafetensorsType::kF64, "F64", 8},
};

const TypeRow& RowOf(SafetensorsType type) {
  for (const TypeRow& row : kTypes) {
    if (row.type == type) return row;
  }
  CHECK(false && "type without a row");
  return kTypes[0];
}

// Reads the header
//   {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
//    "__metadata__": {"key": "value", ...}}
// as it is parsed, without a tree of it, and stops at the first fault. The
// memory used is a small multiple of the text's. Offsets are relative to the
// end of the header.
class HeaderHandler final : public nlohmann::json_sax<json> {
 public:
  explicit HeaderHandler(uint64_t data_bytes) : data_bytes_(data_bytes) {}

  std::vector<TensorInfo>& tensors() { return tensors_; }
  std::unordered_map<std::string, size_t>& index() { return index_; }
  std::unordered_map<std::string, std::string>& metadata() { return metadata_; }
  const std::string& error() const { return error_; }

  bool start_object(size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kHeader;
        return true;
      case State::kMetadataValue:
        state_ = State::kMetadata;
        return true;
      case State::kTensorValue:
        state_ = State::kTensor;
        has_type_ = has_shape_ = has_offsets_ = false;
        return true;
      default:
        return Unexpected("object");
    }
  }

  bool end_object() override {
    switch (state_) {
      case State::kHeader:
        state_ = State::kEnd;
        return true;
      case State::kMetadata:
        state_ = State::kHeader;
        return true;
      case State::kTensor:
        state_ = State::kHeader;
        return FinishTensor();
      default:
        return Unexpected("end of object");
    }
  }

  bool key(string_t& name) override {
    switch (state_) {
      case State::kHeader:
        if (name == "__metadata__") {
          if (has_metadata_) return Fail("duplicate key \"__metadata__\"");
          has_metadata_ = true;
          state_ = State::kMetadataValue;
          return true;
        }
        if (!index_.emplace(name, tensors_.size()).second) {
          return Fail(
              absl::StrCat("tensor ", Printable(name), ": duplicate key"));
        }
        tensors_.emplace_back().name = name;
        state_ = State::kTensorValue;
        return true;
      case State::kMetadata:
        if (metadata_.count(name) > 0) {
          return Fail(absl::StrCat("__metadata__: duplicate key \"",
                                   Printable(name), "\""));
        }
        metadata_key_ = name;
        return true;
      case State::kTensor:
        if (name == "dtype" && !has_type_) {
          has_type_ = true;
          state_ = State::kType;
        } else if (name == "shape" && !has_shape_) {
          has_shape_ = true;
          state_ = State::kShapeValue;
        } else if (name == "data_offsets" && !has_offsets_) {
          has_offsets_ = true;
          state_ = State::kOffsetsValue;
        } else {
          return Fail(absl::StrCat("duplicate or unknown key \"",
                                   Printable(name), "\""));
        }
        return true;
      default:
        return Unexpected("key");
    }
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) {
      metadata_[metadata_key_] = value;
      return true;
    }
    if (state_ != State::kType) return Unexpected("string");
    state_ = State::kTensor;
    for (const TypeRow& row : kTypes) {
      if (value == row.name) {
        tensors_.back().type = row.type;
        return true;
      }
    }
    return Fail(absl::StrCat("unknown dtype \"", Printable(value), "\""));
  }

  bool start_array(size_t) override {
    if (state_ == State::kShapeValue) {
      state_ = State::kShape;
      return true;
    }
    if (state_ == State::kOffsetsValue) {
      state_ = State::kOffsets;
      num_offsets_ = 0;
      return true;
    }
    return Unexpected("array");
  }

  bool end_array() override {
    if (state_ == State::kOffsets && num_offsets_ != 2) {
      return Fail("data_offsets must hold two numbers");
    }
    state_ = State::kTensor;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (tensors_.back().shape.size() == kMaxDimensions) {
        return Fail(absl::StrCat("more than ", kMaxDimensions, " dimensions"));
      }
      tensors_.back().shape.push_back(value);
      return true;
    }
    if (state_ == State::kOffsets) {
      if (num_offsets_ == 2) {
        return Fail("data_offsets must hold two numbers");
      }
      offsets_[num_offsets_++] = value;
      return true;
    }
    return Unexpected("number");
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("boolean"); }
  // Negative, or beyond 64 bits.
  bool number_integer(number_integer_t) override {
    return Unexpected("negative number");
  }
  bool number_float(number_float_t, const string_t&) override {
    return Unexpected("fraction or number beyond 64 bits");
  }
  bool binary(binary_t&) override { return Unexpected("binary value"); }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("invalid JSON or UTF-8 at byte ", position,
                             " of the header"));
  }

 private:
  enum class State {
    kStart,
    kHeader,
    kMetadataValue,
    kMetadata,
    kTensorValue,
    kTensor,
    kType,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
    kEnd,
  };

  bool InTensor() const {
    return state_ >= State::kTensorValue && state_ < State::kEnd;
  }

  bool Fail(const std::string& error) {
    error_ = InTensor()
                 ? absl::StrCat("tensor ", Printable(tensors_.back().name),
                                ": ", error)
                 : error;
    return false;
  }

  bool Unexpected(const char* what) {
    return Fail(absl::StrCat("unexpected ", what, " in the header"));
  }

  // Called in state kHeader, so that it names the tensor itself.
  bool FinishTensor() {
    state_ = State::kTensor;
    TensorInfo& tensor = tensors_.back();
    if (!has_type_ || !has_shape_ || !has_offsets_) {
      return Fail("needs dtype, shape and data_offsets");
    }
    if (offsets_[0] > offsets_[1] || offsets_[1] > data_bytes_) {
      return Fail(absl::StrCat("data_offsets [", offsets_[0], ", ", offsets_[1],
                               "] are not within the ", data_bytes_,
                               " bytes of data"));
    }
    uint64_t num_bytes = SizeOf(tensor.type);
    for (const size_t dimension : tensor.shape) {
      if (__builtin_mul_overflow(num_bytes, dimension, &num_bytes)) {
        return Fail("shape overflows 64 bits");
      }
    }
    if (num_bytes != offsets_[1] - offsets_[0]) {
      return Fail(absl::StrCat("shape and dtype make ", num_bytes,
                               " bytes, data_offsets ",
                               offsets_[1] - offsets_[0]));
    }
    tensor.offset = offsets_[0];
    tensor.num_bytes = num_bytes;
    tensor.shape.shrink_to_fit();
    state_ = State::kHeader;
    return true;
  }

  const uint64_t data_bytes_;
  State state_ = State::kStart;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t> index_;
  std::unordered_map<std::string, std::string> metadata_;
  std::string metadata_key_;
  bool has_metadata_ = false;
  bool has_type_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  uint64_t offsets_[2] = {};
  size_t num_offsets_ = 0;
  std::string error_;
};

absl::Status ReadAt(int fd, const std::string& path, uint64_t offset,
                    char* destination, size_t num_bytes) {
  while (num_bytes > 0) {
    const ssize_t n =
        pread(fd, destination, num_bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    }
    if (n == 0) {
      return absl::DataLossError(absl::StrCat(path, ": ends at byte ", offset));
    }
    destination += n;
    offset += static_cast<uint64_t>(n);
    num_bytes -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

size_t SizeOf(SafetensorsType type) { return RowOf(type).num_bytes; }

const char* Name(SafetensorsType type) { return RowOf(type).name; }

std::optional<DataType> WeightType(SafetensorsType type) {
  switch (type) {
    case SafetensorsType::kF32:
      return DataType::kF32;
    case SafetensorsType::kBF16:
      return DataType::kBF16;
    case SafetensorsType::kF16:
      return DataType::kF16;
    default:
      return std::nullopt;
  }
}

SafetensorsType SafetensorsTypeOf(DataType dtype) {
  switch (dtype) {
    case DataType::kF32:
      return SafetensorsType::kF32;
    case DataType::kBF16:
      return SafetensorsType::kBF16;
    case DataType::kF16:
      return SafetensorsType::kF16;
  }
  CHECK(false && "unknown dtype");
  return SafetensorsType::kF32;
}

SafetensorsFile::SafetensorsFile(std::string path, int fd)
    : path_(std::move(path)), fd_(fd) {}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept {
  *this = std::move(other);
}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(stamp_, other.stamp_);
  std::swap(tensors_, other.tensors_);
  std::swap(index_, other.index_);
  std::swap(metadata_, other.metadata_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  uint64_t file_bytes = 0;
  ABSL_ASSIGN_OR_RETURN(const int fd, OpenRegularFile(path, &file_bytes));
  SafetensorsFile file(path, fd);
  ABSL_ASSIGN_OR_RETURN(file.stamp_, file.CurrentStamp());

  const auto invalid = [&path](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
  };
  if (file_bytes < 8) return invalid("shorter than the header's length");
  unsigned char length[8];
  ABSL_RETURN_IF_ERROR(
      ReadAt(fd, path, 0, reinterpret_cast<char*>(length), sizeof(length)));
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length[i];
  if (header_bytes > kMaxHeaderBytes) {
    return invalid(absl::StrCat("header of ", header_bytes, " bytes, at most ",
                                kMaxHeaderBytes, " allowed"));
  }
  if (header_bytes > file_bytes - 8) {
    return invalid(absl::StrCat("truncated: header of ", header_bytes,
                                " bytes in a file of ", file_bytes));
  }
  std::string header(header_bytes, '\0');
  ABSL_RETURN_IF_ERROR(ReadAt(fd, path, 8, header.data(), header.size()));
  // The parser would skip white space and a byte order mark, and take a zero
  // byte for the end.
  if (header.empty() || header[0] != '{') {
    return invalid("the header does not start with {");
  }
  if (const size_t zero = header.find('\0'); zero != std::string::npos) {
    return invalid(absl::StrCat("zero byte at ", zero, " of the header"));
  }

  const uint64_t data_begin = 8 + header_bytes;
  const uint64_t data_bytes = file_bytes - data_begin;
  HeaderHandler handler(data_bytes);
  if (!json::sax_parse(header, &handler)) return invalid(handler.error());

  // In the order of their bytes every tensor starts where the one before ends,
  // and the last ends with the file.
  std::vector<TensorInfo>& tensors = handler.tensors();
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              if (a.offset != b.offset) return a.offset < b.offset;
              if (a.num_bytes != b.num_bytes) return a.num_bytes < b.num_bytes;
              return a.name < b.name;
            });
  uint64_t end = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    TensorInfo& tensor = tensors[i];
    if (tensor.offset != end) {
      return invalid(absl::StrCat(
          "tensor ", Printable(tensor.name), ": starts at ", tensor.offset,
          tensor.offset < end
              ? " and overlaps the tensor before, which ends at "
              : " after a hole that begins at ",
          end));
    }
    end += tensor.num_bytes;
    tensor.offset += data_begin;
    handler.index()[tensor.name] = i;
  }
  if (end != data_bytes) {
    return invalid(
        absl::StrCat("the tensors end at ", end, ", the data at ", data_bytes));
  }
  file.tensors_ = std::move(tensors);
  file.index_ = std::move(handler.index());
  file.metadata_ = std::move(handler.metadata());
  return file;
}

const TensorInfo* SafetensorsFile::Find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

absl::StatusOr<std::string> SafetensorsFile::Read(
    const TensorInfo& tensor) const {
  std::string bytes(tensor.num_bytes, '\0');
  ABSL_RETURN_IF_ERROR(ReadInto(tensor, bytes.data()));
  return bytes;
}

absl::Status SafetensorsFile::ReadInto(const TensorInfo& tensor,
                                       char* destination) const {
  return ReadAt(fd_, path_, tensor.offset, destination, tensor.num_bytes);
}

void SafetensorsFile::Prefetch(const TensorInfo& tensor) const {
  posix_fadvise(fd_, static_cast<off_t>(tensor.offset),
                static_cast<off_t>(tensor.num_bytes), POSIX_FADV_WILLNEED);
}

absl::Status SafetensorsFile::CheckUnchanged() const {
  ABSL_ASSIGN_OR_RETURN(const Stamp now, CurrentStamp());
  if (now == stamp_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(path_, ": was written to after it was opened"));
}

absl::StatusOr<SafetensorsFile::Stamp> SafetensorsFile::CurrentStamp() const {
  struct stat file;
  if (fstat(fd_, &file) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot stat ", path_));
  }
  return Stamp{file.st_size, file.st_mtim.tv_sec, file.st_mtim.tv_nsec};
}

}  // namespace troupe
