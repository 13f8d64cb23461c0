#include "common/rpc/sealed_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace troupe {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

absl::Status Failed(const char* what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", strerror(errno)));
}

}  // namespace

absl::StatusOr<SealedMemory> SealedMemory::Create(const char* name,
                                                  size_t num_bytes) {
  UniqueFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return Failed("memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(num_bytes)) != 0) {
    return Failed("ftruncate of a memfd");
  }
  if (fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) {
    return Failed("F_ADD_SEALS");
  }
  return SealedMemory(std::move(fd), num_bytes);
}

absl::StatusOr<SealedMemory> SealedMemory::Attach(UniqueFd fd,
                                                  size_t num_bytes) {
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) {
    return absl::InvalidArgumentError("shared memory without its seals");
  }
  struct stat status = {};
  if (fstat(fd.get(), &status) != 0) return Failed("fstat of a memfd");
  if (static_cast<uint64_t>(status.st_size) != num_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shared memory of ", status.st_size, " bytes instead of ", num_bytes));
  }
  return SealedMemory(std::move(fd), num_bytes);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, num_bytes_);
}

absl::StatusOr<Mapping> Mapping::Map(const SealedMemory& memory, size_t offset,
                                     size_t num_bytes) {
  void* data = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                    memory.fd(), static_cast<off_t>(offset));
  if (data == MAP_FAILED) return Failed("mmap of shared memory");
  return Mapping(static_cast<char*>(data), num_bytes);
}

absl::StatusOr<Mapping> Mapping::MapTwice(const SealedMemory& memory,
                                          size_t offset, size_t num_bytes) {
  // Room for both first, so that nobody else's mapping can come between.
  void* room = mmap(nullptr, 2 * num_bytes, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return Failed("mmap of room");
  Mapping mapping(static_cast<char*>(room), 2 * num_bytes);
  for (const size_t at : {size_t{0}, num_bytes}) {
    if (mmap(mapping.data() + at, num_bytes, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED, memory.fd(),
             static_cast<off_t>(offset)) == MAP_FAILED) {
      return Failed("mmap of shared memory");
    }
  }
  return mapping;
}

}  // namespace troupe
