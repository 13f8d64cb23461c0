#include "model/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace troupe {
namespace {

uint64_t NumBytes(const TensorInfo& tensor) {
  uint64_t num_bytes = SizeOf(tensor.type);
  for (const size_t dimension : tensor.shape) {
    CHECK(!__builtin_mul_overflow(num_bytes, dimension, &num_bytes));
  }
  return num_bytes;
}

}  // namespace

std::string SafetensorsHeader(
    const std::vector<TensorInfo>& tensors,
    const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  for (const auto& [key, value] : metadata) header["__metadata__"][key] = value;
  uint64_t offset = 0;
  for (const TensorInfo& tensor : tensors) {
    const uint64_t end = offset + NumBytes(tensor);
    header.push_back({tensor.name,
                      {{"dtype", Name(tensor.type)},
                       {"shape", tensor.shape},
                       {"data_offsets", {offset, end}}}});
    offset = end;
  }
  std::string text = header.dump();
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');
  std::string result;
  for (int i = 0; i < 8; ++i) {
    result.push_back(static_cast<char>(uint64_t{text.size()} >> (8 * i)));
  }
  return result + text;
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, const std::vector<TensorInfo>& tensors,
    const std::map<std::string, std::string>& metadata) {
  SafetensorsWriter writer;
  writer.path_ = path;
  const std::string temporary = writer.TemporaryPath();
  writer.fd_ =
      open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer.fd_ < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", temporary));
  }
  const std::string header = SafetensorsHeader(tensors, metadata);
  writer.num_bytes_left_ = header.size();
  for (const TensorInfo& tensor : tensors) {
    writer.num_bytes_left_ += NumBytes(tensor);
  }
  ABSL_RETURN_IF_ERROR(writer.Append(header.data(), header.size()));
  return writer;
}

SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept {
  *this = std::move(other);
}

SafetensorsWriter& SafetensorsWriter::operator=(
    SafetensorsWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(num_bytes_left_, other.num_bytes_left_);
  return *this;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(TemporaryPath().c_str());
}

std::string SafetensorsWriter::TemporaryPath() const {
  return absl::StrCat(path_, ".part");
}

absl::Status SafetensorsWriter::Append(const void* data, size_t num_bytes) {
  if (num_bytes > num_bytes_left_) {
    return absl::FailedPreconditionError(absl::StrCat(
        path_, ": ", num_bytes, " bytes appended, room for ", num_bytes_left_));
  }
  num_bytes_left_ -= num_bytes;
  const char* from = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t n = write(fd_, from, num_bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path_));
    }
    from += n;
    num_bytes -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  if (num_bytes_left_ > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": ", num_bytes_left_, " bytes were not appended"));
  }
  const int fd = std::exchange(fd_, -1);
  if (close(fd) != 0 ||
      std::rename(TemporaryPath().c_str(), path_.c_str()) != 0) {
    const int error = errno;
    unlink(TemporaryPath().c_str());
    return absl::ErrnoToStatus(error, absl::StrCat("cannot write ", path_));
  }
  return absl::OkStatus();
}

}  // namespace troupe
