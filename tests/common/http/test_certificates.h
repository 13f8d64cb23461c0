// Certificates for tests, made on the spot.
#ifndef TROUPE_TESTS_COMMON_HTTP_TEST_CERTIFICATES_H_
#define TROUPE_TESTS_COMMON_HTTP_TEST_CERTIFICATES_H_

#include <openssl/x509.h>

#include <memory>
#include <string>

namespace troupe {

// An authority and what it signs, all with keys on P-256, valid for an hour.
// Not thread-safe.
class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name);

  void WriteCertificate(const std::string& file) const;
  // Issues one for 127.0.0.1; each file is replaced at once, as it should be.
  // begin_s, end_s: seconds from now.
  void Issue(const std::string& name, const std::string& cert_file,
             const std::string& key_file, long begin_s = -60,
             long end_s = 3600) const;

 private:
  using Key = std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)>;
  using Certificate = std::unique_ptr<X509, void (*)(X509*)>;

  Key key_;
  Certificate certificate_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_COMMON_HTTP_TEST_CERTIFICATES_H_
