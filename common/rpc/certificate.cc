#include "common/rpc/certificate.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/rpc/openssl_ptr.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

using StorePtr = OpenSslPtr<X509_STORE, X509_STORE_free>;
using StoreContextPtr = OpenSslPtr<X509_STORE_CTX, X509_STORE_CTX_free>;
using NamesPtr = OpenSslPtr<GENERAL_NAMES, GENERAL_NAMES_free>;

// Does not own what is in it.
struct FreeStack {
  void operator()(STACK_OF(X509) * stack) const { sk_X509_free(stack); }
};
using StackPtr = std::unique_ptr<STACK_OF(X509), FreeStack>;

// The files are small; a large one is none of these.
constexpr size_t kLargestPem = 1 << 20;

absl::StatusOr<std::vector<X509Ptr>> ReadAll(absl::string_view pem) {
  if (pem.size() > kLargestPem) {
    return absl::InvalidArgumentError("is larger than 1 MiB");
  }
  const BioPtr reader = BytesBio(pem);
  std::vector<X509Ptr> all;
  ERR_clear_error();
  while (X509* read =
             PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr)) {
    all.emplace_back(read);
  }
  // The end looks like a block without a start.
  const unsigned long error = ERR_peek_last_error();  // NOLINT: OpenSSL's type
  const bool at_end = ERR_GET_LIB(error) == ERR_LIB_PEM &&
                      ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
  if (!at_end) {
    return absl::InvalidArgumentError(
        absl::StrCat("certificate ", all.size() + 1,
                     " in it cannot be read: ", OpenSslError()));
  }
  ERR_clear_error();
  if (all.empty()) {
    return absl::InvalidArgumentError("has no certificate in PEM form");
  }
  return all;
}

std::string StringOf(const ASN1_STRING* string) {
  return std::string(
      reinterpret_cast<const char*>(ASN1_STRING_get0_data(string)),
      static_cast<size_t>(ASN1_STRING_length(string)));
}

absl::StatusOr<WallTime> TimeOf(const ASN1_TIME* time) {
  std::tm fields = {};
  if (ASN1_TIME_to_tm(time, &fields) != 1) {
    return absl::InvalidArgumentError("a certificate's time cannot be read");
  }
  return std::chrono::system_clock::from_time_t(timegm(&fields));
}

std::string SubjectOf(const X509* certificate) {
  const BioPtr text(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(text.get(), X509_get_subject_name(certificate), 0,
                     XN_FLAG_RFC2253);
  return BioBytes(text.get());
}

void AddNames(const X509* certificate, CertificateInfo& info) {
  const NamesPtr names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  if (names == nullptr) return;
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_URI) {
      info.uris.push_back(StringOf(name->d.uniformResourceIdentifier));
    } else if (name->type == GEN_DNS) {
      info.hosts.push_back(StringOf(name->d.dNSName));
    } else if (name->type == GEN_IPADD) {
      const std::string bytes = StringOf(name->d.iPAddress);
      char text[INET6_ADDRSTRLEN] = "";
      inet_ntop(bytes.size() == 4 ? AF_INET : AF_INET6, bytes.data(), text,
                sizeof(text));
      if (bytes.size() == 4 || bytes.size() == 16) info.hosts.push_back(text);
    }
  }
}

// A key that needs a passphrase is an error, not a question on the terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

}  // namespace

absl::StatusOr<std::vector<CertificateInfo>> ParseCertificates(
    absl::string_view pem) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<X509Ptr> all, ReadAll(pem));
  std::vector<CertificateInfo> infos;
  for (const X509Ptr& certificate : all) {
    CertificateInfo& info = infos.emplace_back();
    info.subject = SubjectOf(certificate.get());
    AddNames(certificate.get(), info);
    ABSL_ASSIGN_OR_RETURN(info.not_before,
                          TimeOf(X509_get0_notBefore(certificate.get())));
    ABSL_ASSIGN_OR_RETURN(info.not_after,
                          TimeOf(X509_get0_notAfter(certificate.get())));
    info.is_ca = X509_check_ca(certificate.get()) > 0;
  }
  return infos;
}

absl::Status CheckPrivateKey(absl::string_view certificate_pem,
                             absl::string_view key_pem) {
  ABSL_ASSIGN_OR_RETURN(const std::vector<X509Ptr> all,
                        ReadAll(certificate_pem));
  if (key_pem.size() > kLargestPem) {
    return absl::InvalidArgumentError("is larger than 1 MiB");
  }
  const KeyPtr key(PEM_read_bio_PrivateKey(BytesBio(key_pem).get(), nullptr,
                                           &NoPassphrase, nullptr));
  if (key == nullptr) {
    ERR_clear_error();
    return absl::InvalidArgumentError(
        "has no private key in PEM form without a passphrase");
  }
  const bool matches = X509_check_private_key(all[0].get(), key.get()) == 1;
  ERR_clear_error();
  if (!matches) {
    return absl::InvalidArgumentError("is the key of another certificate");
  }
  return absl::OkStatus();
}

bool IsSignedBy(absl::string_view certificate_pem, absl::string_view ca_pem) {
  const absl::StatusOr<std::vector<X509Ptr>> chain = ReadAll(certificate_pem);
  const absl::StatusOr<std::vector<X509Ptr>> cas = ReadAll(ca_pem);
  if (!chain.ok() || !cas.ok()) return false;
  const StorePtr store(X509_STORE_new());
  for (const X509Ptr& ca : *cas) X509_STORE_add_cert(store.get(), ca.get());
  const StackPtr between(sk_X509_new_null());
  for (size_t i = 1; i < chain->size(); ++i) {
    sk_X509_push(between.get(), (*chain)[i].get());
  }
  const StoreContextPtr context(X509_STORE_CTX_new());
  X509_STORE_CTX_init(context.get(), store.get(), chain->front().get(),
                      between.get());
  X509_STORE_CTX_set_flags(context.get(), X509_V_FLAG_NO_CHECK_TIME);
  const bool is_signed = X509_verify_cert(context.get()) == 1;
  ERR_clear_error();
  return is_signed;
}

std::string FormatWallTime(WallTime time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm fields = {};
  gmtime_r(&seconds, &fields);
  char text[32] = "";
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &fields);
  return text;
}

std::string OpenSslError() {
  char text[256] = "no error";
  const unsigned long error = ERR_get_error();  // NOLINT: OpenSSL's type
  if (error != 0) ERR_error_string_n(error, text, sizeof(text));
  ERR_clear_error();
  return text;
}

}  // namespace troupe
