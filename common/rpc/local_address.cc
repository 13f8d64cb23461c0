#include "common/rpc/local_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

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

absl::Status CheckPlaintext(const std::string& address, bool allow_plaintext) {
  if (allow_plaintext || IsLocalAddress(address)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "listen address ", address,
      ": other machines reach it, and there is no TLS. Give --tls-cert, "
      "--tls-key and --tls-ca (\"troupe certs init\" makes a set), listen on "
      "127.0.0.1 or unix:/path, or, on a network that you trust, say "
      "--allow-plaintext"));
}

}  // namespace troupe
