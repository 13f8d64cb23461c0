#include "common/rpc/credentials.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/log_limiter.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "grpc/grpc_security_constants.h"
#include "grpcpp/security/auth_metadata_processor.h"
#include "grpcpp/security/tls_certificate_verifier.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace troupe {
namespace {

namespace tls = grpc::experimental;

constexpr absl::string_view kHealth = "/grpc.health.v1.Health/";
constexpr milliseconds kBetweenLines(1000);

// What the memory files of the credentials belong to: gRPC's watcher reads
// them by path as long as the credentials live.
struct Files {
  std::shared_ptr<const MemoryFile> identity;
  std::shared_ptr<const MemoryFile> ca;
};

std::vector<std::string> Strings(const std::vector<grpc::string_ref>& refs) {
  std::vector<std::string> strings;
  for (const grpc::string_ref& ref : refs) {
    strings.emplace_back(ref.data(), ref.size());
  }
  return strings;
}

// Logs a refusal, seldom enough.
void LogRefusal(LogLimiter& limiter, const std::string& text) {
  uint64_t left_out = 0;
  if (!limiter.Allow(Clock::Real().Now(), left_out)) return;
  spdlog::warn("{} left_out={}", text, left_out);
}

bool Matches(const std::vector<std::string>& methods, absl::string_view path) {
  return std::any_of(
      methods.begin(), methods.end(), [&](const std::string& method) {
        return method.back() == '/' ? absl::StartsWith(path, method)
                                    : path == method;
      });
}

// The rules of one listener, for its two readers: at the handshake and at each
// call. Thread-safe.
class AccessRules {
 public:
  AccessRules(TlsAccess access, std::string cluster)
      : access_(std::move(access)), cluster_(std::move(cluster)) {}

  // Whether a client with these URIs may connect.
  absl::Status MayConnect(const std::vector<std::string>& uris,
                          bool has_certificate) const {
    absl::StatusOr<std::optional<TlsIdentity>> identity = FindTlsIdentity(uris);
    if (!identity.ok()) return identity.status();
    if (!identity->has_value()) {
      if (!access_.others.empty()) return absl::OkStatus();
      return absl::PermissionDeniedError(
          absl::StrCat(has_certificate ? "its certificate names no role"
                                       : "it shows no certificate",
                       "; allowed here: ", Allowed()));
    }
    if ((*identity)->cluster != cluster_ && !cluster_.empty()) {
      return absl::PermissionDeniedError(
          absl::StrCat("its certificate is ", TlsUri(**identity),
                       "; this is cluster ", cluster_));
    }
    if (access_.methods.count((*identity)->role) == 0) {
      return absl::PermissionDeniedError(
          absl::StrCat("its certificate is ", TlsUri(**identity),
                       "; allowed here: ", Allowed()));
    }
    return absl::OkStatus();
  }

  // Whether one that is connected may call the method.
  absl::Status MayCall(const std::vector<std::string>& uris,
                       absl::string_view path) const {
    if (absl::StartsWith(path, kHealth)) return absl::OkStatus();
    ABSL_ASSIGN_OR_RETURN(const std::optional<TlsIdentity> identity,
                          FindTlsIdentity(uris));
    if (!identity.has_value()) {
      if (Matches(access_.others, path)) return absl::OkStatus();
      return absl::PermissionDeniedError(absl::StrCat(
          path, " is not for clients without a certificate of a role"));
    }
    const auto methods = access_.methods.find(identity->role);
    if (methods != access_.methods.end() && Matches(methods->second, path)) {
      return absl::OkStatus();
    }
    return absl::PermissionDeniedError(
        absl::StrCat(path, " is not for the role ", TlsRoleName(identity->role),
                     " at this address"));
  }

 private:
  std::string Allowed() const {
    const std::string roles = absl::StrJoin(
        access_.methods, ", ", [](std::string* out, const auto& entry) {
          absl::StrAppend(out, TlsRoleName(entry.first));
        });
    return cluster_.empty() ? roles
                            : absl::StrCat(roles, " of cluster ", cluster_);
  }

  const TlsAccess access_;
  const std::string cluster_;  // empty: any
};

grpc::Status Unauthenticated(const std::string& text) {
  return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, text);
}

// Runs after OpenSSL has verified the client's chain, before anything of the
// connection is parsed.
class ClientVerifier final : public tls::ExternalCertificateVerifier {
 public:
  ClientVerifier(std::shared_ptr<const AccessRules> rules, Files files)
      : rules_(std::move(rules)), files_(std::move(files)) {}

 private:
  bool Verify(tls::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)>,
              grpc::Status* sync_status) override {
    const absl::Status status = rules_->MayConnect(
        Strings(request->uri_names()), !request->peer_cert().empty());
    if (!status.ok()) {
      const std::string text =
          absl::StrCat("a client was refused: ", status.message());
      LogRefusal(limiter_, text);
      *sync_status = Unauthenticated(text);
    }
    return true;
  }
  void Cancel(tls::TlsCustomVerificationCheckRequest*) override {}

  const std::shared_ptr<const AccessRules> rules_;
  const Files files_;
  LogLimiter limiter_{1, kBetweenLines};
};

// Asked once per call.
class CallProcessor final : public grpc::AuthMetadataProcessor {
 public:
  explicit CallProcessor(std::shared_ptr<const AccessRules> rules)
      : rules_(std::move(rules)) {}

 private:
  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata,
                       grpc::AuthContext* context, OutputMetadata*,
                       OutputMetadata*) override {
    const auto path = metadata.find(":path");
    if (path == metadata.end()) {
      return grpc::Status(grpc::StatusCode::INTERNAL, "a call without a path");
    }
    const absl::Status status = rules_->MayCall(
        Strings(context->FindPropertyValues(GRPC_PEER_URI_PROPERTY_NAME)),
        absl::string_view(path->second.data(), path->second.size()));
    if (status.ok()) return grpc::Status::OK;
    LogRefusal(limiter_,
               absl::StrCat("a call was refused: ", status.message()));
    return grpc::Status(grpc::StatusCode::PERMISSION_DENIED,
                        std::string(status.message()));
  }

  const std::shared_ptr<const AccessRules> rules_;
  LogLimiter limiter_{1, kBetweenLines};
};

// Runs after OpenSSL has verified the server's chain.
class ServerVerifier final : public tls::ExternalCertificateVerifier {
 public:
  ServerVerifier(TlsRole role, std::string cluster, Files files)
      : role_(role), cluster_(std::move(cluster)), files_(std::move(files)) {}

 private:
  bool Verify(tls::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)>,
              grpc::Status* sync_status) override {
    const std::string problem = Problem(request);
    if (!problem.empty()) {
      const std::string text =
          absl::StrCat("the server was refused: ", problem);
      const grpc::string_ref target = request->target_name();
      LogRefusal(limiter_,
                 absl::StrCat(absl::string_view(target.data(), target.size()),
                              ": ", text));
      *sync_status = Unauthenticated(text);
    }
    return true;
  }
  void Cancel(tls::TlsCustomVerificationCheckRequest*) override {}

  std::string Problem(tls::TlsCustomVerificationCheckRequest* request) {
    const absl::StatusOr<std::optional<TlsIdentity>> identity =
        FindTlsIdentity(Strings(request->uri_names()));
    if (!identity.ok()) return std::string(identity.status().message());
    const std::string wanted = absl::StrCat(
        "wanted is the role ", TlsRoleName(role_),
        cluster_.empty() ? "" : absl::StrCat(" of cluster ", cluster_));
    if (identity->has_value()) {
      const bool fits = (*identity)->role == role_ &&
                        (cluster_.empty() || (*identity)->cluster == cluster_);
      if (fits) return "";
      return absl::StrCat("its certificate is ", TlsUri(**identity), "; ",
                          wanted);
    }
    if (role_ != TlsRole::kGateway) {
      return absl::StrCat("its certificate names no role; ", wanted);
    }
    grpc::Status host_status;
    host_.Verify(request, nullptr, &host_status);
    if (host_status.ok()) return "";
    return "its certificate names neither a role nor the host that was dialled";
  }

  const TlsRole role_;
  const std::string cluster_;
  const Files files_;
  tls::HostNameCertificateVerifier host_;
  LogLimiter limiter_{1, kBetweenLines};
};

}  // namespace

Tls::Tls(std::unique_ptr<CertificateFiles> files) : files_(std::move(files)) {
  // gRPC's watcher takes one certificate for good that has a bad successor;
  // hence it watches files in memory that have what was checked.
  constexpr unsigned int kRefreshSeconds = 1;
  const std::string identity =
      files_->identity_file() == nullptr ? "" : files_->identity_file()->path();
  const std::string ca =
      files_->ca_file() == nullptr ? "" : files_->ca_file()->path();
  provider_ = std::make_shared<tls::FileWatcherCertificateProvider>(
      identity, identity, ca, kRefreshSeconds);
}

absl::StatusOr<std::shared_ptr<const Tls>> Tls::Create(
    const TlsOptions& options) {
  if (options.cert_file.empty() != options.key_file.empty()) {
    return absl::InvalidArgumentError(
        "a TLS certificate and its key go together: one is given without the "
        "other");
  }
  if (!options.enabled()) {
    return absl::InvalidArgumentError("no certificate file is given");
  }
  ABSL_ASSIGN_OR_RETURN(std::unique_ptr<CertificateFiles> files,
                        CertificateFiles::Load(options));
  return std::shared_ptr<const Tls>(new Tls(std::move(files)));
}

std::string Tls::OwnCluster() const {
  return identity().has_value() ? identity()->cluster : "";
}

std::shared_ptr<grpc::ServerCredentials> Tls::ForServer(
    TlsAccess access) const {
  CHECK(files_->identity_file() != nullptr);
  const bool demand = access.demand_certificate;
  const bool ask = files_->ca_file() != nullptr;
  CHECK(ask || !demand);
  std::string cluster = access.cluster.empty() ? OwnCluster() : access.cluster;
  const auto rules =
      std::make_shared<const AccessRules>(std::move(access), cluster);
  tls::TlsServerCredentialsOptions options(provider_);
  options.watch_identity_key_cert_pairs();
  if (ask) options.watch_root_certs();
  options.set_cert_request_type(
      demand ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
      : ask  ? GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY
             : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  options.set_certificate_verifier(
      tls::ExternalCertificateVerifier::Create<ClientVerifier>(
          rules, Files{files_->identity_file(), files_->ca_file()}));
  std::shared_ptr<grpc::ServerCredentials> credentials =
      tls::TlsServerCredentials(options);
  credentials->SetAuthMetadataProcessor(std::make_shared<CallProcessor>(rules));
  return credentials;
}

std::shared_ptr<grpc::ChannelCredentials> Tls::ForChannels(
    TlsRole server) const {
  CHECK(files_->ca_file() != nullptr);
  tls::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(provider_);
  options.watch_root_certs();
  if (files_->identity_file() != nullptr) {
    options.watch_identity_key_cert_pairs();
  }
  options.set_certificate_verifier(
      tls::ExternalCertificateVerifier::Create<ServerVerifier>(
          server, OwnCluster(),
          Files{files_->identity_file(), files_->ca_file()}));
  // What the certificate must say is the verifier's to know.
  options.set_check_call_host(false);
  return tls::TlsCredentials(options);
}

}  // namespace troupe
