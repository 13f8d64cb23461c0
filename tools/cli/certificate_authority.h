// Makes certificates: a development CA and what it signs.
#ifndef TROUPE_TOOLS_CLI_CERTIFICATE_AUTHORITY_H_
#define TROUPE_TOOLS_CLI_CERTIFICATE_AUTHORITY_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/rpc/certificate.h"

namespace troupe {

struct CertificateRequest {
  std::string common_name;
  std::vector<std::string> uris;
  std::vector<std::string> hosts;  // DNS names and IP addresses
  // A certificate is for clients in any case.
  bool for_servers = true;
  WallTime not_before;
  WallTime not_after;
};

struct CertificateAndKey {
  std::string certificate_pem;
  std::string key_pem;
};

// A CA with an ECDSA key on P-256. Thread-safe.
class CertificateAuthority {
 public:
  // Signs itself; a new key.
  static absl::StatusOr<CertificateAuthority> Create(
      const std::string& common_name, WallTime not_before, WallTime not_after);
  // One that was made before.
  static absl::StatusOr<CertificateAuthority> Load(
      CertificateAndKey certificate_and_key);
  CertificateAuthority(CertificateAuthority&&) noexcept;
  ~CertificateAuthority();

  // A new key on P-256 and its certificate.
  absl::StatusOr<CertificateAndKey> Issue(
      const CertificateRequest& request) const;

  const std::string& certificate_pem() const;
  const std::string& key_pem() const;

 private:
  struct State;
  explicit CertificateAuthority(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_CERTIFICATE_AUTHORITY_H_
