#include "gateway/exposure.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/logging.h"

namespace troupe {

bool IsLocalAddress(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return true;
  std::string host(address.substr(0, address.rfind(':')));
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]")) {
    host = host.substr(1, host.size() - 2);
  }
  in_addr v4;
  in6_addr v6;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) {
    return ntohl(v4.s_addr) >> 24 == 127;
  }
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) {
    return IN6_IS_ADDR_LOOPBACK(&v6);
  }
  return absl::EqualsIgnoreCase(host, "localhost");
}

bool WarnWhenOpen(const std::string& address, bool demands_keys,
                  bool demands_certificates) {
  if (demands_keys || demands_certificates || IsLocalAddress(address)) {
    return false;
  }
  spdlog::warn(
      "ANYBODY WHO REACHES {} MAY USE THIS GATEWAY: it demands neither API "
      "keys (--api-keys) nor client certificates",
      address);
  return true;
}

}  // namespace troupe
