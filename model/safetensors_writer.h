// Writes the safetensors format, tensor after tensor, without holding more than
// the caller's piece in memory.
#ifndef TROUPE_MODEL_SAFETENSORS_WRITER_H_
#define TROUPE_MODEL_SAFETENSORS_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/safetensors.h"

namespace troupe {

// One file. Writes beside the path and renames at Finish, so that a file of
// that name is always complete; a writer that goes without Finish leaves
// nothing. Movable; owns the descriptor. Not thread-safe.
class SafetensorsWriter {
 public:
  // Name, type and shape of every tensor, in the order of their bytes (offset
  // and num_bytes are not read). The data begins at a multiple of 64 bytes.
  // `metadata` goes to "__metadata__", beside "format": "pt".
  static absl::StatusOr<SafetensorsWriter> Create(
      const std::string& path, const std::vector<TensorInfo>& tensors,
      const std::map<std::string, std::string>& metadata = {});

  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&& other) noexcept;
  ~SafetensorsWriter();

  // The next bytes of the data; a tensor may come in several pieces.
  absl::Status Append(const void* data, size_t num_bytes);
  // FailedPrecondition unless exactly all bytes were appended.
  absl::Status Finish();

 private:
  SafetensorsWriter() = default;
  std::string TemporaryPath() const;

  std::string path_;
  int fd_ = -1;
  uint64_t num_bytes_left_ = 0;
};

// The header with its length before it, padded with spaces.
std::string SafetensorsHeader(
    const std::vector<TensorInfo>& tensors,
    const std::map<std::string, std::string>& metadata = {});

}  // namespace troupe

#endif  // TROUPE_MODEL_SAFETENSORS_WRITER_H_
