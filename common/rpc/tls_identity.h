// Who a certificate speaks for: a role in a cluster, written as a URI in its
// subject alternative names, "spiffe://CLUSTER/troupe/ROLE".
#ifndef TROUPE_COMMON_RPC_TLS_IDENTITY_H_
#define TROUPE_COMMON_RPC_TLS_IDENTITY_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace troupe {

// kAdmin: people and programs that change a cluster (troupe experts);
// kClient: those that use it, where a gateway asks for certificates.
enum class TlsRole { kGateway, kRouter, kExpert, kAdmin, kClient };
inline constexpr TlsRole kAllTlsRoles[] = {TlsRole::kGateway, TlsRole::kRouter,
                                           TlsRole::kExpert, TlsRole::kAdmin,
                                           TlsRole::kClient};
absl::string_view TlsRoleName(TlsRole role);  // "gateway", ...

struct TlsIdentity {
  std::string cluster;
  TlsRole role = TlsRole::kClient;
  bool operator==(const TlsIdentity&) const = default;
};
std::string TlsUri(const TlsIdentity& identity);

// 1 to 63 small letters, digits, '.', '-' and '_', as SPIFFE has it for trust
// domains.
bool IsClusterName(absl::string_view name);

// The identity among the URIs of one certificate; none when there is no
// spiffe URI, or one of another system's (its path begins otherwise).
// InvalidArgument when there are several, or one of ours that is not of the
// form above: such a certificate is not to be trusted with a guess.
absl::StatusOr<std::optional<TlsIdentity>> FindTlsIdentity(
    const std::vector<std::string>& uris);

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_TLS_IDENTITY_H_
