#include "tools/cli/certs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/rpc/unique_fd.h"
#include "common/status_macros.h"
#include "tools/cli/certificate_authority.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;

// Clocks of two machines may differ by so much.
constexpr std::chrono::minutes kSkew(5);
constexpr mode_t kKeyMode = 0600;
constexpr mode_t kCertificateMode = 0644;

std::string PathOf(const std::string& dir, absl::string_view name,
                   const char* suffix) {
  return absl::StrCat(dir, "/", name, suffix);
}

absl::Status Failed(const std::string& what) {
  return absl::InternalError(absl::StrCat(what, ": ", strerror(errno)));
}

absl::StatusOr<std::string> Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.good())
    return absl::NotFoundError(absl::StrCat(path, ": ", strerror(errno)));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Readers see the old file or the new one; the mode holds from the start.
absl::Status Write(const std::string& path, const std::string& bytes,
                   mode_t mode) {
  const std::string next = path + ".new";
  unlink(next.c_str());
  {
    const UniqueFd fd(
        open(next.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
    if (!fd.valid() || fchmod(fd.get(), mode) != 0 ||
        write(fd.get(), bytes.data(), bytes.size()) !=
            static_cast<ssize_t>(bytes.size()) ||
        fsync(fd.get()) != 0) {
      return Failed(absl::StrCat("cannot write ", next));
    }
  }
  if (rename(next.c_str(), path.c_str()) != 0) {
    return Failed(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

absl::Status WritePair(const std::string& dir, absl::string_view name,
                       const CertificateAndKey& pair) {
  ABSL_RETURN_IF_ERROR(
      Write(PathOf(dir, name, ".key"), pair.key_pem, kKeyMode));
  return Write(PathOf(dir, name, ".pem"), pair.certificate_pem,
               kCertificateMode);
}

CertificateRequest RequestFor(const TlsIdentity& identity,
                              std::vector<std::string> hosts, int days) {
  const WallTime now = std::chrono::system_clock::now();
  CertificateRequest request;
  request.common_name = std::string(TlsRoleName(identity.role));
  request.uris = {TlsUri(identity)};
  request.for_servers =
      identity.role != TlsRole::kAdmin && identity.role != TlsRole::kClient;
  if (request.for_servers) request.hosts = std::move(hosts);
  request.not_before = now - kSkew;
  request.not_after = now + std::chrono::hours(24 * days);
  return request;
}

// All files of a set into a folder that is there.
absl::Status WriteSet(const CertsOptions& options, const std::string& dir) {
  const WallTime now = std::chrono::system_clock::now();
  ABSL_ASSIGN_OR_RETURN(const CertificateAuthority ca,
                        CertificateAuthority::Create(
                            absl::StrCat(options.cluster, " CA"), now - kSkew,
                            now + std::chrono::hours(24 * options.ca_days)));
  ABSL_RETURN_IF_ERROR(
      WritePair(dir, "ca", {ca.certificate_pem(), ca.key_pem()}));
  std::vector<std::string> hosts = {"localhost", "127.0.0.1", "::1"};
  hosts.insert(hosts.end(), options.hosts.begin(), options.hosts.end());
  for (const TlsRole role : kAllTlsRoles) {
    ABSL_ASSIGN_OR_RETURN(
        const CertificateAndKey pair,
        ca.Issue(RequestFor({options.cluster, role}, hosts, options.days)));
    ABSL_RETURN_IF_ERROR(WritePair(dir, TlsRoleName(role), pair));
  }
  return absl::OkStatus();
}

std::string Describe(const std::string& path, const CertificateInfo& info,
                     WallTime now) {
  const double days =
      std::chrono::duration<double, std::ratio<86400>>(info.not_after - now)
          .count();
  std::vector<std::string> names = info.uris;
  names.insert(names.end(), info.hosts.begin(), info.hosts.end());
  return absl::StrFormat(
      "%s\n  subject  %s%s\n  names    %s\n  expires  %s, %s\n", path,
      info.subject, info.is_ca ? " (CA)" : "",
      names.empty() ? "-" : absl::StrJoin(names, ", "),
      FormatWallTime(info.not_after),
      days > 0 ? absl::StrFormat("%.1f days left", days) : "EXPIRED");
}

}  // namespace

absl::Status InitCerts(const CertsOptions& options) {
  if (!IsClusterName(options.cluster)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--cluster is \"", options.cluster,
        "\"; allowed: 1 to 63 small letters, digits, '.', '-' and '_'"));
  }
  std::error_code error;
  std::string dir = options.dir;
  while (dir.size() > 1 && dir.back() == '/') dir.pop_back();
  if (fs::exists(dir, error) && !fs::is_empty(dir, error)) {
    return absl::AlreadyExistsError(absl::StrCat(
        dir,
        ": is not an empty folder, and nothing is overwritten; \"troupe "
        "certs renew\" makes new certificates for a set"));
  }
  // Beside it, then moved: there is never half a set.
  std::string next = dir + ".new-XXXXXX";
  if (mkdtemp(next.data()) == nullptr) {  // of mode 0700
    return Failed(absl::StrCat("cannot make a folder beside ", dir));
  }
  absl::Status status = WriteSet(options, next);
  if (status.ok() && rename(next.c_str(), dir.c_str()) != 0) {
    status = Failed(absl::StrCat("cannot make ", dir));
  }
  if (!status.ok()) fs::remove_all(next, error);
  return status;
}

absl::Status RenewCerts(const std::string& dir, int days,
                        const std::vector<TlsRole>& roles) {
  CertificateAndKey ca_pair;
  ABSL_ASSIGN_OR_RETURN(ca_pair.certificate_pem,
                        Read(PathOf(dir, "ca", ".pem")));
  ABSL_ASSIGN_OR_RETURN(ca_pair.key_pem, Read(PathOf(dir, "ca", ".key")));
  absl::StatusOr<CertificateAuthority> ca =
      CertificateAuthority::Load(std::move(ca_pair));
  if (!ca.ok()) {
    return absl::Status(
        ca.status().code(),
        absl::StrCat(PathOf(dir, "ca", ".pem"), ": ", ca.status().message()));
  }
  for (const TlsRole role : kAllTlsRoles) {
    if (!roles.empty() &&
        std::find(roles.begin(), roles.end(), role) == roles.end()) {
      continue;
    }
    const std::string path = PathOf(dir, TlsRoleName(role), ".pem");
    ABSL_ASSIGN_OR_RETURN(const std::string old_pem, Read(path));
    ABSL_ASSIGN_OR_RETURN(const std::vector<CertificateInfo> old,
                          ParseCertificates(old_pem));
    ABSL_ASSIGN_OR_RETURN(const std::optional<TlsIdentity> identity,
                          FindTlsIdentity(old.front().uris));
    if (!identity.has_value() || identity->role != role) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": is not of the role ", TlsRoleName(role)));
    }
    ABSL_ASSIGN_OR_RETURN(
        const CertificateAndKey pair,
        ca->Issue(RequestFor(*identity, old.front().hosts, days)));
    ABSL_RETURN_IF_ERROR(WritePair(dir, TlsRoleName(role), pair));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> DescribeCerts(const std::string& path,
                                          WallTime now) {
  std::error_code error;
  std::vector<std::string> files;
  if (fs::is_directory(path, error)) {
    for (const auto& entry : fs::directory_iterator(path, error)) {
      if (entry.path().extension() == ".pem") {
        files.push_back(entry.path().string());
      }
    }
    std::sort(files.begin(), files.end());
    if (files.empty()) {
      return absl::NotFoundError(absl::StrCat(path, ": has no *.pem"));
    }
  } else {
    files = {path};
  }
  std::string text;
  for (const std::string& file : files) {
    ABSL_ASSIGN_OR_RETURN(const std::string pem, Read(file));
    const absl::StatusOr<std::vector<CertificateInfo>> infos =
        ParseCertificates(pem);
    if (!infos.ok()) {
      return absl::Status(infos.status().code(),
                          absl::StrCat(file, ": ", infos.status().message()));
    }
    for (const CertificateInfo& info : *infos) {
      text += Describe(file, info, now);
    }
  }
  return text;
}

TlsOptions CertsOf(const std::string& dir, TlsRole role) {
  TlsOptions options;
  options.cert_file = PathOf(dir, TlsRoleName(role), ".pem");
  options.key_file = PathOf(dir, TlsRoleName(role), ".key");
  options.ca_file = PathOf(dir, "ca", ".pem");
  options.roles = {role};
  return options;
}

}  // namespace troupe
