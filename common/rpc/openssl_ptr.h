// OpenSSL's objects with owners, and its memory streams as strings.
#ifndef TROUPE_COMMON_RPC_OPENSSL_PTR_H_
#define TROUPE_COMMON_RPC_OPENSSL_PTR_H_

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace troupe {

template <auto Free>
struct OpenSslFreer {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
template <typename T, auto Free>
using OpenSslPtr = std::unique_ptr<T, OpenSslFreer<Free>>;

using BioPtr = OpenSslPtr<BIO, BIO_free>;
using X509Ptr = OpenSslPtr<X509, X509_free>;
using KeyPtr = OpenSslPtr<EVP_PKEY, EVP_PKEY_free>;

// Reads the bytes, which must outlive it.
inline BioPtr BytesBio(absl::string_view bytes) {
  return BioPtr(BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size())));
}

// What was written into one of memory.
inline std::string BioBytes(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);  // NOLINT: OpenSSL's type
  return std::string(data, static_cast<size_t>(size));
}

}  // namespace troupe

#endif  // TROUPE_COMMON_RPC_OPENSSL_PTR_H_
