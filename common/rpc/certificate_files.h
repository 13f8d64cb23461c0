// The certificate files of a process, read again when they change.
#ifndef TROUPE_COMMON_RPC_CERTIFICATE_FILES_H_
#define TROUPE_COMMON_RPC_CERTIFICATE_FILES_H_

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/rpc/certificate.h"
#include "common/rpc/tls_identity.h"
#include "common/rpc/unique_fd.h"

namespace troupe {

struct TlsOptions {
  // In PEM. The certificate, then those between it and the CA if there are
  // any; its key, without a passphrase; the CAs that peers are trusted by.
  // Certificate and key go together; a server needs them.
  std::string cert_file;
  std::string key_file;
  std::string ca_file;
  // The certificate must be of one of these roles. Empty: it need not name
  // any.
  std::vector<TlsRole> roles;
  // Between two looks at the files.
  milliseconds reload_interval{1000};

  bool enabled() const {
    return !cert_file.empty() || !key_file.empty() || !ca_file.empty();
  }
};

// What a reader opens by a path sees either all of the old bytes or all of the
// new ones. In memory; nobody else can open it. Thread-safe but for Replace.
class MemoryFile {
 public:
  static absl::StatusOr<std::unique_ptr<MemoryFile>> Create(
      const char* name, absl::string_view bytes);
  absl::Status Replace(absl::string_view bytes);
  // For this process.
  std::string path() const;

 private:
  explicit MemoryFile(const char* name) : name_(name) {}
  const char* const name_;
  UniqueFd fd_;  // stays the same number
};

// Reads the files, checks that they fit together, and holds what was good
// last. A thread of its own looks for changes: a set that does not fit (half
// written, the wrong key, expired, another role) is left alone with a warning.
// Warns when less than a week is left. Thread-safe.
class CertificateFiles {
 public:
  // Errors name the file.
  static absl::StatusOr<std::unique_ptr<CertificateFiles>> Load(
      const TlsOptions& options);
  ~CertificateFiles();

  // Of the certificate; a new one must have the same.
  const std::optional<TlsIdentity>& identity() const { return identity_; }

  // Files with what was good last, for gRPC's watcher; the first has the key
  // and the certificates. Null when there is none. They may be kept longer
  // than this object.
  const std::shared_ptr<const MemoryFile>& identity_file() const {
    return identity_view_;
  }
  const std::shared_ptr<const MemoryFile>& ca_file() const { return ca_view_; }

  // Until the first of the certificate and the CAs ends; negative when one has.
  // A bundle of CAs ends with the last of them. Infinite without files.
  double SecondsUntilExpiry() const;

 private:
  struct Contents {
    std::string certificate;
    std::string key;
    std::string ca;
    bool operator==(const Contents&) const = default;
  };
  struct Checked {
    std::optional<TlsIdentity> identity;
    WallTime expiry = WallTime::max();
    std::string ends_first;  // the file
  };

  explicit CertificateFiles(const TlsOptions& options) : options_(options) {}
  absl::StatusOr<Contents> Read() const;
  absl::StatusOr<Checked> Check(const Contents& contents) const;
  absl::Status Publish(const Contents& contents);
  void Look();
  void WarnOfExpiry();
  void Watch();

  // Constant after Load.
  const TlsOptions options_;
  std::optional<TlsIdentity> identity_;
  std::shared_ptr<MemoryFile> identity_memory_;
  std::shared_ptr<MemoryFile> ca_memory_;
  std::shared_ptr<const MemoryFile> identity_view_;
  std::shared_ptr<const MemoryFile> ca_view_;
  std::thread thread_;

  // Of the thread.
  Contents used_;
  std::string last_problem_;
  bool problem_is_told_ = false;
  SteadyTime next_warning_ = SteadyTime::min();

  mutable absl::Mutex mu_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  WallTime expiry_ ABSL_GUARDED_BY(mu_) = WallTime::max();
  std::string ends_first_ ABSL_GUARDED_BY(mu_);
};

// What to warn of when a file's certificate ends then; empty: all is well.
std::string ExpiryWarning(const std::string& file, WallTime expiry,
                          WallTime now);

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_CERTIFICATE_FILES_H_
