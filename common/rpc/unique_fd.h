// A file descriptor that is closed by its owner.
#ifndef TROUPE_COMMON_RPC_UNIQUE_FD_H_
#define TROUPE_COMMON_RPC_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace troupe {

// Owns the descriptor; -1 is none. Not thread-safe.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      if (fd_ >= 0) close(fd_);
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~UniqueFd() {
    if (fd_ >= 0) close(fd_);
  }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_UNIQUE_FD_H_
