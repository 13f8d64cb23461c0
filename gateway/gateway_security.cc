#include "gateway/gateway_security.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "common/status_macros.h"

namespace troupe {
namespace {

// What users of a model call. Calls that are not here are for admins.
const std::vector<std::string>& UserMethods() {
  static const auto* const methods = new std::vector<std::string>{
      "/troupe.v1.Gateway/Generate",
      "/troupe.v1.Gateway/Tokenize",
      "/troupe.v1.Gateway/Detokenize",
      "/troupe.v1.Gateway/GetModel",
      "/inference.GRPCInferenceService/",
      "/grpc.reflection.v1alpha.ServerReflection/"};
  return *methods;
}

constexpr char kAllMethods[] = "/";

absl::StatusOr<std::shared_ptr<const Tls>> LoadOuter(
    const GatewaySecurityOptions& options,
    const std::shared_ptr<const Tls>& inner) {
  if (options.public_cert_file.empty() != options.public_key_file.empty()) {
    return absl::InvalidArgumentError(
        "--public-tls-cert and --public-tls-key go together");
  }
  const bool own_cert = !options.public_cert_file.empty();
  if (!own_cert && options.client_ca_file.empty()) return inner;
  TlsOptions outer = options.service.tls;
  if (own_cert) {
    outer.cert_file = options.public_cert_file;
    outer.key_file = options.public_key_file;
  } else if (outer.cert_file.empty()) {
    return absl::InvalidArgumentError(
        "--client-ca: clients' certificates need --tls-cert or "
        "--public-tls-cert, too");
  }
  if (!options.client_ca_file.empty()) outer.ca_file = options.client_ca_file;
  return Tls::Create(outer);
}

TlsAccess ClientAccess(const GatewaySecurityOptions& options,
                       const std::shared_ptr<const Tls>& inner) {
  TlsAccess access;
  access.demand_certificate = options.require_client_certs;
  access.methods[TlsRole::kClient] = UserMethods();
  // Another CA than the cluster's need not know of roles, and makes no admins.
  const bool clusters_ca = options.client_ca_file.empty();
  if (clusters_ca) {
    access.methods[TlsRole::kAdmin] =
        options.service.admin_listen.empty()
            ? std::vector<std::string>{kAllMethods}
            : UserMethods();
  }
  if (!options.require_client_certs || !clusters_ca) {
    access.others = UserMethods();
  }
  if (inner != nullptr) access.cluster = inner->identity()->cluster;
  return access;
}

}  // namespace

double GatewaySecurity::SecondsUntilExpiry() const {
  double seconds = std::numeric_limits<double>::infinity();
  for (const auto& tls : {inner, outer}) {
    if (tls != nullptr) seconds = std::min(seconds, tls->SecondsUntilExpiry());
  }
  return seconds;
}

absl::StatusOr<GatewaySecurity> LoadGatewaySecurity(
    const GatewaySecurityOptions& options) {
  GatewaySecurity security;
  ABSL_ASSIGN_OR_RETURN(security.inner,
                        LoadServiceTls(options.service, TlsRole::kGateway));
  ABSL_ASSIGN_OR_RETURN(security.outer, LoadOuter(options, security.inner));
  if (options.require_client_certs &&
      (security.outer == nullptr || (options.service.tls.ca_file.empty() &&
                                     options.client_ca_file.empty()))) {
    return absl::InvalidArgumentError(
        "--require-client-certs: needs a certificate of the gateway's own, and "
        "--client-ca or --tls-ca");
  }
  if (security.outer != nullptr) {
    security.for_clients =
        security.outer->ForServer(ClientAccess(options, security.inner));
    const bool own_cert = !options.public_cert_file.empty();
    const TlsOptions& tls = options.service.tls;
    security.http_cert_file =
        own_cert ? options.public_cert_file : tls.cert_file;
    security.http_key_file = own_cert ? options.public_key_file : tls.key_file;
    if (options.require_client_certs) {
      security.http_client_ca_file =
          options.client_ca_file.empty() ? tls.ca_file : options.client_ca_file;
    }
  }
  if (security.inner != nullptr) {
    security.to_routers = security.inner->ForChannels(TlsRole::kRouter);
    security.to_experts = security.inner->ForChannels(TlsRole::kExpert);
    TlsAccess admin;
    admin.methods[TlsRole::kAdmin] = {kAllMethods};
    security.for_admins = security.inner->ForServer(std::move(admin));
  }
  return security;
}

}  // namespace troupe
