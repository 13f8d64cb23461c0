// Memory that two processes map, and that neither can resize.
#ifndef TROUPE_COMMON_RPC_SEALED_MEMORY_H_
#define TROUPE_COMMON_RPC_SEALED_MEMORY_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "common/rpc/unique_fd.h"

namespace troupe {

// A memfd with F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_SEAL. It has no name in
// any file system: it lives as long as a process holds or maps it, so nothing
// is left behind by a crash. Thread-safe.
class SealedMemory {
 public:
  // num_bytes > 0, a multiple of the page size; the contents are zero. `name`
  // is for /proc alone.
  static absl::StatusOr<SealedMemory> Create(const char* name,
                                             size_t num_bytes);
  // One that another process made. InvalidArgument unless it has all seals
  // (without them its owner could cut it, and our next access would be
  // SIGBUS) and exactly this size.
  static absl::StatusOr<SealedMemory> Attach(UniqueFd fd, size_t num_bytes);

  int fd() const { return fd_.get(); }
  size_t num_bytes() const { return num_bytes_; }

 private:
  SealedMemory(UniqueFd fd, size_t num_bytes)
      : fd_(std::move(fd)), num_bytes_(num_bytes) {}

  UniqueFd fd_;
  size_t num_bytes_;
};

// Owns a mapping.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  // [offset, offset + num_bytes) of the memory, both multiples of the page
  // size.
  static absl::StatusOr<Mapping> Map(const SealedMemory& memory, size_t offset,
                                     size_t num_bytes);
  // The same range twice, one behind the other: byte i is also byte
  // num_bytes + i, so that what goes past the end lies in one piece.
  static absl::StatusOr<Mapping> MapTwice(const SealedMemory& memory,
                                          size_t offset, size_t num_bytes);

  char* data() const { return data_; }

 private:
  Mapping(char* data, size_t num_bytes) : data_(data), num_bytes_(num_bytes) {}

  char* data_ = nullptr;
  size_t num_bytes_ = 0;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_SEALED_MEMORY_H_
