#include "common/http/tls_context.h"

#include <openssl/ssl.h>
#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

namespace ssl = boost::asio::ssl;

int ChooseHttp11(SSL*, const unsigned char** out, unsigned char* out_size,
                 const unsigned char* in, unsigned in_size, void*) {
  static constexpr unsigned char kOffer[] = "\x08http/1.1";
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, out_size, kOffer, sizeof(kOffer) - 1, in,
                            in_size) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

absl::Status Failed(const std::string& file,
                    const boost::system::error_code& error) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", error.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::Create(
    std::string cert_file, std::string key_file, std::string client_ca_file) {
  std::unique_ptr<TlsContext> tls(new TlsContext(
      std::move(cert_file), std::move(key_file), std::move(client_ca_file)));
  absl::MutexLock lock(&tls->mu_);
  tls->stamp_ = tls->Stamp();
  ABSL_ASSIGN_OR_RETURN(tls->context_, tls->Read());
  return tls;
}

std::shared_ptr<ssl::context> TlsContext::Current() {
  absl::MutexLock lock(&mu_);
  const SteadyTime now = Clock::Real().Now();
  if (now < next_look_) return context_;
  next_look_ = now + milliseconds(1000);
  std::string stamp = Stamp();
  if (stamp == stamp_) return context_;
  // stamp_ stays until it has worked: what failed may have been half written,
  // or there were no descriptors.
  absl::StatusOr<std::shared_ptr<ssl::context>> context = Read();
  if (context.ok()) {
    context_ = *std::move(context);
    stamp_ = std::move(stamp);
    spdlog::info("certificate read again file={}", cert_file_);
  } else if (stamp != failed_stamp_) {
    failed_stamp_ = std::move(stamp);
    spdlog::error("certificate not changed: {}",
                  std::string(context.status().message()));
  }
  return context_;
}

absl::StatusOr<std::shared_ptr<ssl::context>> TlsContext::Read() const {
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  SSL_CTX* const native = context->native_handle();
  SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION);
  SSL_CTX_set_options(native, SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_alpn_select_cb(native, ChooseHttp11, nullptr);
  // Tickets hold the sessions; they end with this context, and so with the
  // certificates that it trusts. A server that verifies clients must name what
  // its sessions are for.
  SSL_CTX_set_session_cache_mode(native, SSL_SESS_CACHE_OFF);
  static constexpr unsigned char kSessionContext[] = "troupe";
  SSL_CTX_set_session_id_context(native, kSessionContext,
                                 sizeof(kSessionContext) - 1);
  // Never asks a terminal.
  SSL_CTX_set_default_passwd_cb(
      native, [](char*, int, int, void*) -> int { return -1; });
  boost::system::error_code error;
  if (context->use_certificate_chain_file(cert_file_, error)) {
    return Failed(cert_file_, error);
  }
  if (context->use_private_key_file(key_file_, ssl::context::pem, error)) {
    return Failed(key_file_, error);
  }
  // Of different kinds they are both taken, and each handshake would fail.
  if (SSL_CTX_check_private_key(native) != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        key_file_, ": is not the key of the certificate ", cert_file_));
  }
  if (client_ca_file_.empty()) return context;
  if (context->load_verify_file(client_ca_file_, error)) {
    return Failed(client_ca_file_, error);
  }
  SSL_CTX_set_client_CA_list(native,
                             SSL_load_client_CA_file(client_ca_file_.c_str()));
  context->set_verify_mode(ssl::verify_peer | ssl::verify_fail_if_no_peer_cert,
                           error);
  return context;
}

std::string TlsContext::Stamp() const {
  std::string stamp;
  for (const std::string& file : {cert_file_, key_file_, client_ca_file_}) {
    struct stat info = {};
    if (file.empty() || stat(file.c_str(), &info) != 0) continue;
    absl::StrAppend(&stamp, info.st_ino, " ", info.st_size, " ",
                    info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec, ";");
  }
  return stamp;
}

}  // namespace troupe
