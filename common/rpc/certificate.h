// Reading X.509 certificates and keys in PEM, with OpenSSL.
#ifndef TROUPE_COMMON_RPC_CERTIFICATE_H_
#define TROUPE_COMMON_RPC_CERTIFICATE_H_

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace troupe {

using WallTime = std::chrono::system_clock::time_point;

struct CertificateInfo {
  std::string subject;  // "CN=expert,O=troupe"
  std::vector<std::string> uris;
  std::vector<std::string> hosts;  // DNS names and IP addresses
  WallTime not_before;
  WallTime not_after;
  bool is_ca = false;
};

// All certificates of a PEM file, in its order; other blocks are skipped.
// InvalidArgument when there is none or one cannot be parsed.
absl::StatusOr<std::vector<CertificateInfo>> ParseCertificates(
    absl::string_view pem);

// Whether the private key is that of the first certificate. InvalidArgument
// says what is wrong, and never holds a part of the key.
absl::Status CheckPrivateKey(absl::string_view certificate_pem,
                             absl::string_view key_pem);

// Whether the first certificate is one that these CAs signed, by way of the
// others that follow it. Times are not looked at.
bool IsSignedBy(absl::string_view certificate_pem, absl::string_view ca_pem);

// "2026-11-25T18:00:00Z".
std::string FormatWallTime(WallTime time);

// The first line of OpenSSL's queue of errors, which is emptied.
std::string OpenSslError();

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_CERTIFICATE_H_
