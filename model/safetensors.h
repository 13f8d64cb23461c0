// Reads the safetensors format: 8 bytes of little-endian header length, a JSON
// header that maps names to dtype, shape and byte range, then the data.
#ifndef TROUPE_MODEL_SAFETENSORS_H_
#define TROUPE_MODEL_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "common/dtype.h"

namespace troupe {

// All element types of the format that are whole bytes.
enum class SafetensorsType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E4M3,
  kF8E5M2,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kI64,
  kU64,
  kF64,
};
size_t SizeOf(SafetensorsType type);     // in bytes
const char* Name(SafetensorsType type);  // as in the header: "BF16"
// The weight format, or nothing for types that are not weights.
std::optional<DataType> WeightType(SafetensorsType type);
SafetensorsType SafetensorsTypeOf(DataType dtype);

struct TensorInfo {
  std::string name;
  SafetensorsType type = SafetensorsType::kF32;
  std::vector<size_t> shape;  // no dimension: a scalar
  uint64_t offset = 0;        // of the first byte, from the start of the file
  uint64_t num_bytes = 0;
};

// The header of one file, completely checked, and the open file. It does not
// map or read the data. Movable; owns the descriptor. Thread-safe once opened
// (all methods are const).
class SafetensorsFile {
 public:
  // InvalidArgument (NotFound for a missing file) with the path, and the tensor
  // where there is one, for every header that the format does not allow: length
  // beyond the file or 100 MB, not a JSON object, invalid UTF-8, nesting,
  // duplicate keys, unknown types, shape that does not match the bytes or
  // overflows, ranges out of the file, overlapping or with holes.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  // Of the whole file, when it was opened.
  uint64_t num_bytes() const { return static_cast<uint64_t>(stamp_.num_bytes); }
  // In the order of their bytes in the file.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // nullptr when there is none of that name.
  const TensorInfo* Find(const std::string& name) const;
  // The strings of "__metadata__".
  const std::unordered_map<std::string, std::string>& metadata() const {
    return metadata_;
  }
  // Copies a tensor's bytes; for tests and small tools.
  absl::StatusOr<std::string> Read(const TensorInfo& tensor) const;
  // The same into tensor.num_bytes bytes of the caller's.
  absl::Status ReadInto(const TensorInfo& tensor, char* destination) const;
  // Lets the kernel read the bytes in the background.
  void Prefetch(const TensorInfo& tensor) const;
  // FailedPrecondition when size or time of last change are no longer those of
  // Open. The offsets of a file that was written to mean nothing.
  absl::Status CheckUnchanged() const;

 private:
  struct Stamp {
    int64_t num_bytes = 0;
    int64_t seconds = 0;
    int64_t nanoseconds = 0;
    bool operator==(const Stamp&) const = default;
  };

  SafetensorsFile(std::string path, int fd);
  absl::StatusOr<Stamp> CurrentStamp() const;

  std::string path_;
  int fd_ = -1;
  Stamp stamp_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t> index_;  // name -> tensors_
  std::unordered_map<std::string, std::string> metadata_;
};

}  // namespace troupe

#endif  // TROUPE_MODEL_SAFETENSORS_H_
