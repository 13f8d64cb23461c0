#include "tools/cli/key_file.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "common/check.h"
#include "common/rpc/unique_fd.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

constexpr absl::Duration kDraftWait = absl::Seconds(2);
constexpr size_t kSecretBytes = 32;

std::string NewSecret() {
  std::array<char, kSecretBytes> bytes;
  CHECK_EQ(getrandom(bytes.data(), bytes.size(), 0),
           static_cast<ssize_t>(bytes.size()));
  std::string secret = absl::StrCat(
      "trp-",
      absl::WebSafeBase64Escape(absl::string_view(bytes.data(), bytes.size())));
  OPENSSL_cleanse(bytes.data(), bytes.size());
  return secret;
}

// The file that will be the new one. Gone when it was not put in place.
class Draft {
 public:
  static absl::StatusOr<Draft> Open(const std::string& path) {
    Draft draft(path);
    const absl::Time until = absl::Now() + kDraftWait;
    while (true) {
      draft.fd_ = UniqueFd(open(draft.name_.c_str(),
                                O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
      if (draft.fd_.valid()) return draft;
      if (errno != EEXIST) {
        return absl::ErrnoToStatus(errno,
                                   absl::StrCat("cannot make ", draft.name_));
      }
      if (absl::Now() >= until) {
        return absl::AlreadyExistsError(
            absl::StrCat(draft.name_,
                         " exists: the draft of another change. Remove it if "
                         "none is going on"));
      }
      absl::SleepFor(absl::Milliseconds(10));
    }
  }
  Draft(Draft&&) = default;
  ~Draft() {
    if (fd_.valid()) unlink(name_.c_str());
  }

  absl::Status Install(const std::string& text) {
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t n =
          write(fd_.get(), text.data() + done, text.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Failed("cannot write ");
      done += static_cast<size_t>(n);
    }
    if (fsync(fd_.get()) != 0) return Failed("cannot write ");
    if (std::rename(name_.c_str(), path_.c_str()) != 0) {
      return Failed("cannot put in place ");
    }
    fd_ = UniqueFd();
    // The name, too, is to outlive a power failure.
    const std::filesystem::path folder =
        std::filesystem::path(path_).parent_path();
    const UniqueFd folder_fd(open(folder.empty() ? "." : folder.c_str(),
                                  O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder_fd.valid()) fsync(folder_fd.get());
    return absl::OkStatus();
  }

 private:
  explicit Draft(const std::string& path)
      : path_(path), name_(absl::StrCat(path, ".new")) {}
  absl::Status Failed(absl::string_view what) const {
    return absl::ErrnoToStatus(errno, absl::StrCat(what, name_));
  }

  std::string path_;
  std::string name_;
  UniqueFd fd_;  // none: it is in place
};

absl::Status Change(
    std::string path, bool may_be_new,
    const std::function<absl::Status(std::vector<ApiKey>&)>& change) {
  std::error_code error;
  // Behind a link it is the file itself that is replaced.
  const std::filesystem::path real = std::filesystem::canonical(path, error);
  const bool exists = !error;
  if (exists) path = real.string();
  if (!exists && !may_be_new) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path));
  }
  ABSL_ASSIGN_OR_RETURN(Draft draft, Draft::Open(path));
  std::vector<ApiKey> keys;
  // Looked at again: another change may have made it.
  if (std::filesystem::exists(path, error)) {
    ABSL_ASSIGN_OR_RETURN(const ApiKeys before, ApiKeys::Read(path));
    keys = before.all();
  }
  ABSL_RETURN_IF_ERROR(change(keys));
  const std::string text = FormatApiKeys(keys);
  ABSL_RETURN_IF_ERROR(ApiKeys::Parse(text, path).status());
  return draft.Install(text);
}

std::vector<ApiKey>::iterator FindKey(std::vector<ApiKey>& keys,
                                      const std::string& name) {
  return std::find_if(keys.begin(), keys.end(),
                      [&](const ApiKey& key) { return key.name == name; });
}

std::string OrDash(uint64_t limit) {
  return limit == 0 ? "-" : absl::StrCat(limit);
}

}  // namespace

absl::StatusOr<std::string> AddKeyToFile(const std::string& path, ApiKey key) {
  ABSL_RETURN_IF_ERROR(CheckKeyName(key.name));
  std::string secret = NewSecret();
  key.sha256 = HashApiKey(secret);
  ABSL_RETURN_IF_ERROR(
      Change(path, /*may_be_new=*/true,
             [&](std::vector<ApiKey>& keys) -> absl::Status {
               const auto known = FindKey(keys, key.name);
               if (known != keys.end()) {
                 return absl::AlreadyExistsError(
                     absl::StrCat(path, ": there is a key \"", key.name, "\"",
                                  known->disabled ? ", which is revoked" : ""));
               }
               keys.push_back(key);
               return absl::OkStatus();
             }));
  return secret;
}

absl::Status RevokeKeyInFile(const std::string& path, const std::string& name,
                             bool remove) {
  return Change(path, /*may_be_new=*/false,
                [&](std::vector<ApiKey>& keys) -> absl::Status {
                  const auto known = FindKey(keys, name);
                  if (known == keys.end()) {
                    return absl::NotFoundError(
                        absl::StrCat(path, ": there is no key \"", name, "\""));
                  }
                  if (remove) {
                    keys.erase(known);
                  } else {
                    known->disabled = true;
                  }
                  return absl::OkStatus();
                });
}

std::string DescribeKeys(const ApiKeys& keys, absl::Time now) {
  size_t width = 4;
  for (const ApiKey& key : keys.all()) width = std::max(width, key.name.size());
  const auto line = [width](const auto&... cells) {
    return absl::StrFormat("%-*s  %-6s  %8s  %10s  %10s  %10s  %-20s  %s\n",
                           static_cast<int>(width), cells...);
  };
  std::string text = line("NAME", "ROLE", "PRIORITY", "REQ/MIN", "TOKENS/MIN",
                          "CONCURRENT", "EXPIRES", "STATE");
  for (const ApiKey& key : keys.all()) {
    const bool expired = now >= key.expires;
    absl::StrAppend(
        &text,
        line(key.name, KeyRoleName(key.role), absl::StrCat(key.limits.priority),
             OrDash(key.limits.requests_per_minute),
             OrDash(key.limits.tokens_per_minute),
             OrDash(key.limits.max_concurrent),
             key.expires == absl::InfiniteFuture()
                 ? "never"
                 : absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", key.expires,
                                    absl::UTCTimeZone()),
             key.disabled ? "revoked" : (expired ? "expired" : "good")));
  }
  return text;
}

absl::StatusOr<absl::Time> ParseExpiryOrDays(absl::string_view text,
                                             absl::Time now) {
  absl::string_view number = text;
  int days = 0;
  if (absl::ConsumeSuffix(&number, "d") && absl::SimpleAtoi(number, &days)) {
    if (days < 1 || days > 36500) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", text, "\" is not 1 to 36500 days"));
    }
    return now + absl::Hours(24) * days;
  }
  absl::StatusOr<absl::Time> time = ParseExpiry(text);
  if (time.ok() && *time <= now) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" has passed"));
  }
  return time;
}

}  // namespace troupe
