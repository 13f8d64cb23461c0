#include "tests/common/http/test_certificates.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <functional>

#include "common/check.h"

namespace troupe {
namespace {

using Certificate = std::unique_ptr<X509, void (*)(X509*)>;

EVP_PKEY* NewKey() { return EVP_EC_gen("P-256"); }

void AddExtension(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* const extension =
      X509V3_EXT_conf_nid(nullptr, &context, nid, value);
  CHECK(extension != nullptr);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

// Not signed yet.
Certificate NewCertificate(const std::string& name, EVP_PKEY* key, long begin_s,
                           long end_s) {
  static long serial = 0;
  Certificate certificate(X509_new(), X509_free);
  X509_set_version(certificate.get(), 2);  // that is, version 3
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), begin_s);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), end_s);
  X509_NAME_add_entry_by_txt(
      X509_get_subject_name(certificate.get()), "CN", MBSTRING_ASC,
      reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509_set_pubkey(certificate.get(), key);
  return certificate;
}

void WriteFile(const std::string& file,
               const std::function<int(std::FILE*)>& write) {
  const std::string draft = file + ".draft";
  std::FILE* const out = std::fopen(draft.c_str(), "w");
  CHECK(out != nullptr);
  CHECK(write(out) == 1);
  std::fclose(out);
  CHECK(std::rename(draft.c_str(), file.c_str()) == 0);
}

}  // namespace

TestAuthority::TestAuthority(const std::string& name)
    : key_(NewKey(), EVP_PKEY_free),
      certificate_(NewCertificate(name, key_.get(), -60, 3600)) {
  X509_set_issuer_name(certificate_.get(),
                       X509_get_subject_name(certificate_.get()));
  AddExtension(certificate_.get(), certificate_.get(), NID_basic_constraints,
               "critical,CA:TRUE");
  CHECK(X509_sign(certificate_.get(), key_.get(), EVP_sha256()) > 0);
}

void TestAuthority::WriteCertificate(const std::string& file) const {
  WriteFile(file, [this](std::FILE* out) {
    return PEM_write_X509(out, certificate_.get());
  });
}

void TestAuthority::Issue(const std::string& name, const std::string& cert_file,
                          const std::string& key_file, long begin_s,
                          long end_s) const {
  const Key key(NewKey(), EVP_PKEY_free);
  const Certificate certificate =
      NewCertificate(name, key.get(), begin_s, end_s);
  X509_set_issuer_name(certificate.get(),
                       X509_get_subject_name(certificate_.get()));
  AddExtension(certificate.get(), certificate_.get(), NID_subject_alt_name,
               "IP:127.0.0.1,DNS:localhost");
  CHECK(X509_sign(certificate.get(), key_.get(), EVP_sha256()) > 0);
  WriteFile(cert_file, [&certificate](std::FILE* out) {
    return PEM_write_X509(out, certificate.get());
  });
  WriteFile(key_file, [&key](std::FILE* out) {
    return PEM_write_PrivateKey(out, key.get(), nullptr, nullptr, 0, nullptr,
                                nullptr);
  });
}

}  // namespace troupe
