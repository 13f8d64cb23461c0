// TLS of a gateway: towards clients, and towards routers and expert processes.
#ifndef TROUPE_GATEWAY_GATEWAY_SECURITY_H_
#define TROUPE_GATEWAY_GATEWAY_SECURITY_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/rpc/credentials.h"
#include "common/rpc/tls_flags.h"

namespace troupe {

struct GatewaySecurityOptions {
  // The gateway's identity in its cluster; without it routers are called in
  // plain text.
  ServiceTlsFlags service;
  // What clients are shown instead; empty: the above.
  std::string public_cert_file;
  std::string public_key_file;
  // The CA of clients' certificates; empty: that of `service`. Those of another
  // CA are never admins.
  std::string client_ca_file;
  // Else clients may show one.
  bool require_client_certs = false;
};

// Null: plain text. What it holds follows the files. Copies share it.
struct GatewaySecurity {
  std::shared_ptr<const Tls> inner;
  std::shared_ptr<const Tls> outer;
  std::shared_ptr<grpc::ServerCredentials> for_clients;
  std::shared_ptr<grpc::ServerCredentials> for_admins;
  // The files of the HTTP port; empty: plain text.
  std::string http_cert_file;
  std::string http_key_file;
  std::string http_client_ca_file;  // empty: no certificates of clients
  std::shared_ptr<grpc::ChannelCredentials> to_routers;
  std::shared_ptr<grpc::ChannelCredentials> to_experts;

  // Of both; see Tls.
  double SecondsUntilExpiry() const;
};

// Errors name the flag or the file.
absl::StatusOr<GatewaySecurity> LoadGatewaySecurity(
    const GatewaySecurityOptions& options);

}  // namespace troupe

#endif  // TROUPE_GATEWAY_GATEWAY_SECURITY_H_
