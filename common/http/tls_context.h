// The TLS of a server whose certificate files change.
#ifndef TROUPE_COMMON_HTTP_TLS_CONTEXT_H_
#define TROUPE_COMMON_HTTP_TLS_CONTEXT_H_

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "boost/asio/ssl/context.hpp"
#include "common/clock.h"

namespace troupe {

// Reads PEM files, and again when one of them has changed. TLS 1.2 and later,
// HTTP/1.1 by ALPN. Thread-safe.
class TlsContext {
 public:
  // client_ca_file: empty for clients without certificates. The first reading
  // must succeed; errors name the file.
  static absl::StatusOr<std::unique_ptr<TlsContext>> Create(
      std::string cert_file, std::string key_file, std::string client_ca_file);

  // For a new connection. Looks at the files at most once a second.
  std::shared_ptr<boost::asio::ssl::context> Current();

 private:
  TlsContext(std::string cert_file, std::string key_file,
             std::string client_ca_file)
      : cert_file_(std::move(cert_file)),
        key_file_(std::move(key_file)),
        client_ca_file_(std::move(client_ca_file)) {}
  absl::StatusOr<std::shared_ptr<boost::asio::ssl::context>> Read() const;
  // Changes with the files.
  std::string Stamp() const;

  const std::string cert_file_;
  const std::string key_file_;
  const std::string client_ca_file_;
  absl::Mutex mu_;
  std::shared_ptr<boost::asio::ssl::context> context_ ABSL_GUARDED_BY(mu_);
  std::string stamp_ ABSL_GUARDED_BY(mu_);         // of context_
  std::string failed_stamp_ ABSL_GUARDED_BY(mu_);  // logged
  SteadyTime next_look_ ABSL_GUARDED_BY(mu_);
};

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_TLS_CONTEXT_H_
