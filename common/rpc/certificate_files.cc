#include "common/rpc/certificate_files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

constexpr std::chrono::hours kWarnBefore(7 * 24);
constexpr std::chrono::hours kWarnEvery(24);
constexpr std::streamsize kLargestFile = 1 << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.good()) {
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot be read: ", strerror(errno)));
  }
  std::string bytes(static_cast<size_t>(kLargestFile), '\0');
  file.read(bytes.data(), kLargestFile);
  bytes.resize(static_cast<size_t>(file.gcount()));
  if (file.bad() || (!file.eof() && file.peek() != EOF)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot be read, or is larger than 1 MiB"));
  }
  return bytes;
}

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

std::string RoleNames(const std::vector<TlsRole>& roles) {
  return absl::StrJoin(roles, " or ", [](std::string* out, TlsRole role) {
    absl::StrAppend(out, TlsRoleName(role));
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryFile>> MemoryFile::Create(
    const char* name, absl::string_view bytes) {
  auto file = std::unique_ptr<MemoryFile>(new MemoryFile(name));
  ABSL_RETURN_IF_ERROR(file->Replace(bytes));
  // gRPC opens it by its path.
  absl::StatusOr<std::string> read = ReadFile(file->path());
  if (!read.ok() || *read != bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "TLS needs /proc to be mounted: ", file->path(), " cannot be read"));
  }
  return file;
}

absl::Status MemoryFile::Replace(absl::string_view bytes) {
  UniqueFd fd(memfd_create(name_, MFD_CLOEXEC));
  if (!fd.valid() || write(fd.get(), bytes.data(), bytes.size()) !=
                         static_cast<ssize_t>(bytes.size())) {
    return absl::InternalError(
        absl::StrCat("memory for ", name_, ": ", strerror(errno)));
  }
  if (!fd_.valid()) {
    fd_ = std::move(fd);
  } else if (dup3(fd.get(), fd_.get(), O_CLOEXEC) < 0) {
    return absl::InternalError(absl::StrCat("dup3: ", strerror(errno)));
  }
  return absl::OkStatus();
}

std::string MemoryFile::path() const {
  return absl::StrCat("/proc/self/fd/", fd_.get());
}

absl::StatusOr<std::unique_ptr<CertificateFiles>> CertificateFiles::Load(
    const TlsOptions& options) {
  auto files = std::unique_ptr<CertificateFiles>(new CertificateFiles(options));
  ABSL_ASSIGN_OR_RETURN(files->used_, files->Read());
  const Contents& contents = files->used_;
  ABSL_ASSIGN_OR_RETURN(const Checked checked, files->Check(contents));
  files->identity_ = checked.identity;
  {
    absl::MutexLock lock(&files->mu_);
    files->expiry_ = checked.expiry;
    files->ends_first_ = checked.ends_first;
  }
  if (!options.cert_file.empty()) {
    ABSL_ASSIGN_OR_RETURN(
        files->identity_memory_,
        MemoryFile::Create(
            "troupe-certificate",
            absl::StrCat(contents.key, "\n", contents.certificate)));
    files->identity_view_ = files->identity_memory_;
  }
  if (!options.ca_file.empty()) {
    ABSL_ASSIGN_OR_RETURN(files->ca_memory_,
                          MemoryFile::Create("troupe-ca", contents.ca));
    files->ca_view_ = files->ca_memory_;
  }
  if (!options.cert_file.empty() && !options.ca_file.empty() &&
      !IsSignedBy(contents.certificate, contents.ca)) {
    spdlog::warn(
        "{}: is not signed by a CA of {}; peers that trust the same "
        "CAs will refuse it",
        options.cert_file, options.ca_file);
  }
  files->WarnOfExpiry();
  files->thread_ = std::thread(&CertificateFiles::Watch, files.get());
  return files;
}

CertificateFiles::~CertificateFiles() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

double CertificateFiles::SecondsUntilExpiry() const {
  absl::MutexLock lock(&mu_);
  if (expiry_ == WallTime::max()) {
    return std::numeric_limits<double>::infinity();
  }
  return std::chrono::duration<double>(expiry_ -
                                       std::chrono::system_clock::now())
      .count();
}

absl::StatusOr<CertificateFiles::Contents> CertificateFiles::Read() const {
  Contents contents;
  for (const auto& [path, bytes] :
       {std::pair(&options_.cert_file, &contents.certificate),
        std::pair(&options_.key_file, &contents.key),
        std::pair(&options_.ca_file, &contents.ca)}) {
    if (path->empty()) continue;
    ABSL_ASSIGN_OR_RETURN(*bytes, ReadFile(*path));
  }
  return contents;
}

absl::StatusOr<CertificateFiles::Checked> CertificateFiles::Check(
    const Contents& contents) const {
  Checked checked;
  const WallTime now = std::chrono::system_clock::now();
  if (!options_.cert_file.empty()) {
    absl::StatusOr<std::vector<CertificateInfo>> chain =
        ParseCertificates(contents.certificate);
    if (!chain.ok()) return InFile(options_.cert_file, chain.status());
    const CertificateInfo& own = chain->front();
    absl::StatusOr<std::optional<TlsIdentity>> identity =
        FindTlsIdentity(own.uris);
    if (!identity.ok()) return InFile(options_.cert_file, identity.status());
    checked.identity = *std::move(identity);
    if (!options_.roles.empty() &&
        (!checked.identity.has_value() ||
         std::find(options_.roles.begin(), options_.roles.end(),
                   checked.identity->role) == options_.roles.end())) {
      return absl::InvalidArgumentError(absl::StrCat(
          options_.cert_file, ": is ",
          checked.identity.has_value() ? TlsUri(*checked.identity)
                                       : "a certificate without a role",
          "; wanted is one of the role ", RoleNames(options_.roles)));
    }
    if (own.not_after <= now) {
      return absl::FailedPreconditionError(absl::StrCat(
          options_.cert_file, ": expired at ", FormatWallTime(own.not_after)));
    }
    const absl::Status key_status =
        CheckPrivateKey(contents.certificate, contents.key);
    if (!key_status.ok()) return InFile(options_.key_file, key_status);
    checked.expiry = own.not_after;
    checked.ends_first = options_.cert_file;
  }
  if (!options_.ca_file.empty()) {
    absl::StatusOr<std::vector<CertificateInfo>> cas =
        ParseCertificates(contents.ca);
    if (!cas.ok()) return InFile(options_.ca_file, cas.status());
    WallTime last = WallTime::min();
    for (const CertificateInfo& ca : *cas) last = std::max(last, ca.not_after);
    if (last <= now) {
      return absl::FailedPreconditionError(absl::StrCat(
          options_.ca_file, ": expired at ", FormatWallTime(last)));
    }
    if (last < checked.expiry) {
      checked.expiry = last;
      checked.ends_first = options_.ca_file;
    }
  }
  return checked;
}

absl::Status CertificateFiles::Publish(const Contents& contents) {
  // New CAs first: who shows the new certificate may know the new CA alone.
  if (ca_memory_ != nullptr && contents.ca != used_.ca) {
    ABSL_RETURN_IF_ERROR(ca_memory_->Replace(contents.ca));
  }
  if (identity_memory_ != nullptr) {
    ABSL_RETURN_IF_ERROR(identity_memory_->Replace(
        absl::StrCat(contents.key, "\n", contents.certificate)));
  }
  return absl::OkStatus();
}

void CertificateFiles::Look() {
  absl::StatusOr<Contents> contents = Read();
  if (contents.ok() && *contents == used_) {
    last_problem_.clear();
    return;
  }
  absl::StatusOr<Checked> checked =
      contents.ok() ? Check(*contents) : contents.status();
  if (checked.ok() && checked->identity != identity_) {
    checked = absl::FailedPreconditionError(absl::StrCat(
        options_.cert_file, ": is of another role or cluster than before (",
        checked->identity.has_value() ? TlsUri(*checked->identity) : "none",
        "); that needs a restart"));
  }
  if (checked.ok()) {
    const absl::Status status = Publish(*contents);
    if (!status.ok()) checked = status;
  }
  if (!checked.ok()) {
    // Files that are written one after the other do not fit for a moment: told
    // is what is still so at the second look, once.
    const std::string problem(checked.status().message());
    if (problem != last_problem_) {
      last_problem_ = problem;
      problem_is_told_ = false;
    } else if (!problem_is_told_) {
      problem_is_told_ = true;
      spdlog::warn("new certificate files are not used: {}", problem);
    }
    return;
  }
  used_ = *std::move(contents);
  last_problem_.clear();
  {
    absl::MutexLock lock(&mu_);
    expiry_ = checked->expiry;
    ends_first_ = checked->ends_first;
  }
  next_warning_ = SteadyTime::min();
  spdlog::info("certificate files read again: {} ends first, at {}",
               checked->ends_first, FormatWallTime(checked->expiry));
}

void CertificateFiles::WarnOfExpiry() {
  const SteadyTime now = std::chrono::steady_clock::now();
  if (now < next_warning_) return;
  std::string warning;
  {
    absl::MutexLock lock(&mu_);
    warning =
        ExpiryWarning(ends_first_, expiry_, std::chrono::system_clock::now());
  }
  if (warning.empty()) return;
  spdlog::warn("{}", warning);
  next_warning_ = now + kWarnEvery;
}

void CertificateFiles::Watch() {
  const auto stopped = [this]()
                           ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_; };
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&stopped),
                               absl::FromChrono(options_.reload_interval))) {
        return;
      }
    }
    Look();
    WarnOfExpiry();
  }
}

std::string ExpiryWarning(const std::string& file, WallTime expiry,
                          WallTime now) {
  if (expiry == WallTime::max() || expiry - now >= kWarnBefore) return "";
  if (expiry <= now) {
    return absl::StrCat(file, ": expired at ", FormatWallTime(expiry),
                        "; new connections are refused");
  }
  const double hours =
      std::chrono::duration<double, std::ratio<3600>>(expiry - now).count();
  return absl::StrFormat("%s: expires in %.1f days, at %s; renew it", file,
                         hours / 24, FormatWallTime(expiry));
}

}  // namespace troupe
