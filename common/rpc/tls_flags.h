// The flags about TLS that all programs share.
#ifndef TROUPE_COMMON_RPC_TLS_FLAGS_H_
#define TROUPE_COMMON_RPC_TLS_FLAGS_H_

#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "common/rpc/credentials.h"

namespace troupe {

// The environment variables of --tls-cert, --tls-key and --tls-ca.
inline constexpr const char* kTlsVariables[] = {
    "TROUPE_TLS_CERT", "TROUPE_TLS_KEY", "TROUPE_TLS_CA"};

// --tls-cert, --tls-key and --tls-ca; `options` must live as long as `app`.
void AddTlsFlags(CLI::App& app, TlsOptions& options);

// What a service is told about TLS.
struct ServiceTlsFlags {
  TlsOptions tls;
  // Further addresses, for admins alone. Empty: admins use the others.
  std::vector<std::string> admin_listen;
  bool allow_plaintext = false;
};
// The above, --allow-plaintext and, where a service has admin calls,
// --admin-listen.
void AddServiceTlsFlags(CLI::App& app, ServiceTlsFlags& flags,
                        bool has_admin_calls);

// Null when no file is given: plain text. InvalidArgument names the flag that
// is missing, other errors the file.
absl::StatusOr<std::shared_ptr<const Tls>> LoadServiceTls(
    const ServiceTlsFlags& flags, TlsRole role);
// For a client, which needs the CA alone.
absl::StatusOr<std::shared_ptr<const Tls>> LoadClientTls(
    const TlsOptions& options);

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_TLS_FLAGS_H_
