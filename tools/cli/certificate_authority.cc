#include "tools/cli/certificate_authority.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/rpc/openssl_ptr.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

constexpr int kSerialBits = 127;  // positive, at most 20 bytes (RFC 5280)
constexpr char kOrganization[] = "troupe";

using NumberPtr = OpenSslPtr<BIGNUM, BN_free>;
using ExtensionPtr = OpenSslPtr<X509_EXTENSION, X509_EXTENSION_free>;

absl::Status Failed(const char* what) {
  return absl::InternalError(absl::StrCat(what, ": ", OpenSslError()));
}

absl::StatusOr<std::string> KeyPem(EVP_PKEY* key) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0,
                                    nullptr, nullptr) != 1) {
    return Failed("cannot write a key");
  }
  return BioBytes(bio.get());
}

absl::StatusOr<std::string> CertificatePem(X509* certificate) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(bio.get(), certificate) != 1) {
    return Failed("cannot write a certificate");
  }
  return BioBytes(bio.get());
}

absl::Status AddExtension(X509* certificate, X509* issuer, int id,
                          const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const ExtensionPtr extension(
      X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str()));
  if (extension == nullptr ||
      X509_add_ext(certificate, extension.get(), -1) != 1) {
    return Failed(absl::StrCat("cannot make the extension ", value).c_str());
  }
  return absl::OkStatus();
}

// All but extensions and signature.
absl::StatusOr<X509Ptr> NewCertificate(const std::string& common_name,
                                       WallTime not_before, WallTime not_after,
                                       EVP_PKEY* key) {
  X509Ptr certificate(X509_new());
  const NumberPtr serial(BN_new());
  X509_NAME* name = X509_get_subject_name(certificate.get());
  const auto add = [&](const char* field, const std::string& value) {
    return X509_NAME_add_entry_by_txt(
               name, field, MBSTRING_UTF8,
               reinterpret_cast<const unsigned char*>(value.data()),
               static_cast<int>(value.size()), -1, 0) == 1;
  };
  using Clock = std::chrono::system_clock;
  const bool done =
      X509_set_version(certificate.get(), X509_VERSION_3) == 1 &&
      BN_rand(serial.get(), kSerialBits, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) ==
          1 &&
      BN_to_ASN1_INTEGER(serial.get(),
                         X509_get_serialNumber(certificate.get())) != nullptr &&
      ASN1_TIME_set(X509_getm_notBefore(certificate.get()),
                    Clock::to_time_t(not_before)) != nullptr &&
      ASN1_TIME_set(X509_getm_notAfter(certificate.get()),
                    Clock::to_time_t(not_after)) != nullptr &&
      add("O", kOrganization) && add("CN", common_name) &&
      X509_set_pubkey(certificate.get(), key) == 1;
  if (!done) return Failed("cannot make a certificate");
  return certificate;
}

bool IsAddress(const std::string& host) {
  in6_addr ignored;
  return inet_pton(AF_INET, host.c_str(), &ignored) == 1 ||
         inet_pton(AF_INET6, host.c_str(), &ignored) == 1;
}

// For OpenSSL's small language of extensions, in which a comma separates.
absl::StatusOr<std::string> AlternativeNames(
    const CertificateRequest& request) {
  std::string names;
  const auto add = [&](const char* kind, const std::string& value) {
    absl::StrAppend(&names, names.empty() ? "" : ",", kind, ":", value);
  };
  for (const std::string& uri : request.uris) add("URI", uri);
  for (const std::string& host : request.hosts) {
    if (IsAddress(host)) {
      add("IP", host);
      continue;
    }
    for (const char c : host) {
      if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' &&
          c != '-' && c != '*' && c != '_') {
        return absl::InvalidArgumentError(
            absl::StrCat("\"", host,
                         "\" is neither a host's name nor an IP "
                         "address"));
      }
    }
    if (host.empty()) return absl::InvalidArgumentError("a host without name");
    add("DNS", host);
  }
  return names;
}

}  // namespace

struct CertificateAuthority::State {
  X509Ptr certificate;
  KeyPtr key;
  CertificateAndKey pem;
};

CertificateAuthority::CertificateAuthority(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
CertificateAuthority::CertificateAuthority(CertificateAuthority&&) noexcept =
    default;
CertificateAuthority::~CertificateAuthority() = default;

const std::string& CertificateAuthority::certificate_pem() const {
  return state_->pem.certificate_pem;
}
const std::string& CertificateAuthority::key_pem() const {
  return state_->pem.key_pem;
}

absl::StatusOr<CertificateAuthority> CertificateAuthority::Create(
    const std::string& common_name, WallTime not_before, WallTime not_after) {
  auto state = std::make_unique<State>();
  state->key = KeyPtr(EVP_EC_gen("P-256"));
  if (state->key == nullptr) return Failed("cannot make a key");
  ABSL_ASSIGN_OR_RETURN(
      state->certificate,
      NewCertificate(common_name, not_before, not_after, state->key.get()));
  X509* const ca = state->certificate.get();
  X509_set_issuer_name(ca, X509_get_subject_name(ca));
  ABSL_RETURN_IF_ERROR(AddExtension(ca, ca, NID_basic_constraints,
                                    "critical,CA:TRUE,pathlen:0"));
  ABSL_RETURN_IF_ERROR(
      AddExtension(ca, ca, NID_key_usage, "critical,keyCertSign,cRLSign"));
  ABSL_RETURN_IF_ERROR(
      AddExtension(ca, ca, NID_subject_key_identifier, "hash"));
  if (X509_sign(ca, state->key.get(), EVP_sha256()) == 0) {
    return Failed("cannot sign");
  }
  ABSL_ASSIGN_OR_RETURN(state->pem.certificate_pem, CertificatePem(ca));
  ABSL_ASSIGN_OR_RETURN(state->pem.key_pem, KeyPem(state->key.get()));
  return CertificateAuthority(std::move(state));
}

absl::StatusOr<CertificateAuthority> CertificateAuthority::Load(
    CertificateAndKey certificate_and_key) {
  ABSL_RETURN_IF_ERROR(CheckPrivateKey(certificate_and_key.certificate_pem,
                                       certificate_and_key.key_pem));
  auto state = std::make_unique<State>();
  state->pem = std::move(certificate_and_key);
  state->certificate = X509Ptr(PEM_read_bio_X509(
      BytesBio(state->pem.certificate_pem).get(), nullptr, nullptr, nullptr));
  state->key = KeyPtr(PEM_read_bio_PrivateKey(
      BytesBio(state->pem.key_pem).get(), nullptr, nullptr, nullptr));
  if (state->certificate == nullptr || state->key == nullptr) {
    return Failed("cannot read the CA");
  }
  if (X509_check_ca(state->certificate.get()) == 0) {
    return absl::InvalidArgumentError("is not the certificate of a CA");
  }
  return CertificateAuthority(std::move(state));
}

absl::StatusOr<CertificateAndKey> CertificateAuthority::Issue(
    const CertificateRequest& request) const {
  const KeyPtr key(EVP_EC_gen("P-256"));
  if (key == nullptr) return Failed("cannot make a key");
  ABSL_ASSIGN_OR_RETURN(const X509Ptr certificate,
                        NewCertificate(request.common_name, request.not_before,
                                       request.not_after, key.get()));
  X509* const issued = certificate.get();
  X509* const ca = state_->certificate.get();
  X509_set_issuer_name(issued, X509_get_subject_name(ca));
  ABSL_ASSIGN_OR_RETURN(const std::string names, AlternativeNames(request));
  for (const auto& [id, value] :
       {std::pair(NID_basic_constraints, std::string("critical,CA:FALSE")),
        std::pair(NID_key_usage, std::string("critical,digitalSignature")),
        std::pair(NID_ext_key_usage,
                  std::string(request.for_servers ? "serverAuth,clientAuth"
                                                  : "clientAuth")),
        std::pair(NID_subject_key_identifier, std::string("hash")),
        std::pair(NID_authority_key_identifier, std::string("keyid")),
        std::pair(NID_subject_alt_name, names)}) {
    if (value.empty()) continue;
    ABSL_RETURN_IF_ERROR(AddExtension(issued, ca, id, value));
  }
  if (X509_sign(issued, state_->key.get(), EVP_sha256()) == 0) {
    return Failed("cannot sign");
  }
  CertificateAndKey made;
  ABSL_ASSIGN_OR_RETURN(made.certificate_pem, CertificatePem(issued));
  ABSL_ASSIGN_OR_RETURN(made.key_pem, KeyPem(key.get()));
  return made;
}

}  // namespace troupe
