#include "model/strict_json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

using nlohmann::json;

// Builds the value, and stops at the first thing that it does not allow.
class StrictHandler final : public nlohmann::json_sax<json> {
 public:
  json& root() { return root_; }
  const std::string& error() const { return error_; }

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t&) override {
    return Add(value);
  }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t&) override { return Fail("binary value"); }

  bool start_object(size_t) override { return Open(json::object()); }
  bool start_array(size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    if (open_.back()->contains(value)) {
      return Fail(absl::StrCat("duplicate key \"", Printable(value), "\""));
    }
    key_ = std::move(value);
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& e) override {
    // The library's message quotes the input; the position is enough.
    return Fail(absl::StrCat(
        e.id == 406 ? "number out of range" : "invalid JSON or UTF-8",
        " at byte ", position));
  }

 private:
  bool Fail(std::string error) {
    error_ = std::move(error);
    return false;
  }

  json* Place(json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }

  template <typename T>
  bool Add(T&& value) {
    Place(json(std::forward<T>(value)));
    return true;
  }

  // A pointer to an open container stays valid: its parent gets no further
  // element before it is closed.
  bool Open(json container) {
    if (open_.size() == kMaxJsonDepth) {
      return Fail(absl::StrCat("nested deeper than ", kMaxJsonDepth));
    }
    open_.push_back(Place(std::move(container)));
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  json root_;
  std::vector<json*> open_;
  std::string key_;
  std::string error_;
};

}  // namespace

std::string Printable(const std::string& text) {
  constexpr size_t kMax = 200;
  if (text.size() <= kMax) return absl::CHexEscape(text);
  return absl::StrCat(absl::CHexEscape(text.substr(0, kMax)), "...");
}

absl::StatusOr<json> ParseStrictJson(const std::string& text,
                                     const std::string& what) {
  // The parser would take a zero byte for the end.
  if (const size_t zero = text.find('\0'); zero != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": zero byte at ", zero));
  }
  StrictHandler handler;
  if (!json::sax_parse(text, &handler)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", handler.error()));
  }
  return std::move(handler.root());
}

absl::StatusOr<int> OpenRegularFile(const std::string& path,
                                    uint64_t* num_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  struct stat file;
  if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a regular file"));
  }
  if (num_bytes != nullptr) *num_bytes = static_cast<uint64_t>(file.st_size);
  return fd;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          size_t max_bytes) {
  uint64_t num_bytes = 0;
  ABSL_ASSIGN_OR_RETURN(const int fd, OpenRegularFile(path, &num_bytes));
  if (num_bytes > max_bytes) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", num_bytes, " bytes, at most ", max_bytes, " allowed"));
  }
  std::string text(num_bytes, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = pread(fd, text.data() + done, text.size() - done, done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n == 0 ? EIO : errno;
      close(fd);
      return absl::ErrnoToStatus(error, absl::StrCat("cannot read ", path));
    }
    done += static_cast<size_t>(n);
  }
  close(fd);
  return text;
}

absl::StatusOr<json> ReadJsonFile(const std::string& path, size_t max_bytes) {
  ABSL_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, max_bytes));
  return ParseStrictJson(text, path);
}

}  // namespace troupe
