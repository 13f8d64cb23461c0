// TLS for the services: credentials for listeners and channels from
// certificate files, and who may do what.
#ifndef TROUPE_COMMON_RPC_CREDENTIALS_H_
#define TROUPE_COMMON_RPC_CREDENTIALS_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/rpc/certificate_files.h"
#include "common/rpc/tls_identity.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"

namespace troupe {

// Who may connect to a listener, and what each may call there. A method is a
// path, "/troupe.v1.Expert/GetStats", or the beginning of several,
// "/troupe.v1.Router/". Health is for all who may connect.
struct TlsAccess {
  std::map<TlsRole, std::vector<std::string>> methods;
  // Of those whose certificate names no role, and of those without one where
  // none is demanded. Empty: they are refused.
  std::vector<std::string> others;
  // Else a client may show one.
  bool demand_certificate = true;
  // Of which cluster the roles are. Empty: of that of the own certificate;
  // if that names none, of any.
  std::string cluster;
};

// The certificate files of a process and what follows from them. What it makes
// follows changes of the files as long as this object lives. Thread-safe.
class Tls {
 public:
  // InvalidArgument, NotFound or FailedPrecondition names the file.
  static absl::StatusOr<std::shared_ptr<const Tls>> Create(
      const TlsOptions& options);

  // For a listener. The options had certificate and key, and the CA if `access`
  // lets any certificate in.
  std::shared_ptr<grpc::ServerCredentials> ForServer(TlsAccess access) const;

  // For channels to servers of that role, and of the own cluster if the own
  // certificate names one. A gateway may also have a certificate that names no
  // role, if it is of the host that was dialled. The options had the CA.
  std::shared_ptr<grpc::ChannelCredentials> ForChannels(TlsRole server) const;

  const std::optional<TlsIdentity>& identity() const {
    return files_->identity();
  }
  // See CertificateFiles; for a metric.
  double SecondsUntilExpiry() const { return files_->SecondsUntilExpiry(); }

 private:
  explicit Tls(std::unique_ptr<CertificateFiles> files);
  std::string OwnCluster() const;

  const std::unique_ptr<CertificateFiles> files_;
  std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider_;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_CREDENTIALS_H_
