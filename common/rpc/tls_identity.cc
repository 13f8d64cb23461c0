#include "common/rpc/tls_identity.h"

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace troupe {
namespace {

constexpr absl::string_view kScheme = "spiffe://";
constexpr absl::string_view kPath = "/troupe/";
constexpr size_t kLongestClusterName = 63;

// After the scheme and the cluster.
absl::string_view PathOf(absl::string_view uri) {
  const size_t slash = uri.find('/', kScheme.size());
  return slash == absl::string_view::npos ? "" : uri.substr(slash);
}

// Of a URI whose path begins with kPath.
std::optional<TlsIdentity> ParseUri(absl::string_view uri) {
  absl::string_view role = PathOf(uri);
  TlsIdentity identity;
  identity.cluster = std::string(
      uri.substr(kScheme.size(), uri.size() - kScheme.size() - role.size()));
  if (!IsClusterName(identity.cluster)) return std::nullopt;
  role.remove_prefix(kPath.size());
  for (const TlsRole candidate : kAllTlsRoles) {
    if (role == TlsRoleName(candidate)) {
      identity.role = candidate;
      return identity;
    }
  }
  return std::nullopt;
}

}  // namespace

absl::string_view TlsRoleName(TlsRole role) {
  switch (role) {
    case TlsRole::kGateway:
      return "gateway";
    case TlsRole::kRouter:
      return "router";
    case TlsRole::kExpert:
      return "expert";
    case TlsRole::kAdmin:
      return "admin";
    case TlsRole::kClient:
      return "client";
  }
  return "";
}

std::string TlsUri(const TlsIdentity& identity) {
  return absl::StrCat(kScheme, identity.cluster, kPath,
                      TlsRoleName(identity.role));
}

bool IsClusterName(absl::string_view name) {
  if (name.empty() || name.size() > kLongestClusterName) return false;
  for (const char c : name) {
    const bool good = absl::ascii_islower(static_cast<unsigned char>(c)) ||
                      absl::ascii_isdigit(static_cast<unsigned char>(c)) ||
                      c == '.' || c == '-' || c == '_';
    if (!good) return false;
  }
  return true;
}

absl::StatusOr<std::optional<TlsIdentity>> FindTlsIdentity(
    const std::vector<std::string>& uris) {
  const std::string* only = nullptr;
  for (const std::string& uri : uris) {
    if (!absl::StartsWith(uri, kScheme)) continue;
    if (only != nullptr) {
      return absl::InvalidArgumentError(
          "its subject alternative names have several spiffe URIs");
    }
    only = &uri;
  }
  if (only == nullptr || !absl::StartsWith(PathOf(*only), kPath)) {
    return std::nullopt;
  }
  const std::optional<TlsIdentity> identity = ParseUri(*only);
  if (!identity.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the URI \"", absl::CHexEscape(*only),
        "\" among its subject alternative names is not "
        "spiffe://CLUSTER/troupe/ROLE with the role gateway, router, expert, "
        "admin or client"));
  }
  return identity;
}

}  // namespace troupe
