// Certificate files of a development cluster: what `troupe certs` does.
#ifndef TROUPE_TOOLS_CLI_CERTS_H_
#define TROUPE_TOOLS_CLI_CERTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/rpc/certificate_files.h"

namespace troupe {

// A set is a folder: ca.pem and ca.key, and ROLE.pem and ROLE.key of every
// role.

struct CertsOptions {
  std::string dir;
  std::string cluster;
  // Names and IP addresses that gateways, routers and expert processes are
  // dialled by, for clients that look at those; localhost and its addresses are
  // always there.
  std::vector<std::string> hosts;
  int days = 365;      // of what the CA signs
  int ca_days = 3650;  // of the CA
};

// Makes a set, whole or not at all. The folder must be empty or not there.
// Keys can be read by this user alone.
absl::Status InitCerts(const CertsOptions& options);

// New keys and certificates for all roles, or for those, from the set's CA;
// everything else about them stays. Running processes take them up.
absl::Status RenewCerts(const std::string& dir, int days,
                        const std::vector<TlsRole>& roles);

// What a file of certificates, or every *.pem of a folder, says: subject, names
// and end, as text for people.
absl::StatusOr<std::string> DescribeCerts(const std::string& path,
                                          WallTime now);

// The files of one role in a set.
TlsOptions CertsOf(const std::string& dir, TlsRole role);

}  // namespace troupe

#endif  // TROUPE_TOOLS_CLI_CERTS_H_
