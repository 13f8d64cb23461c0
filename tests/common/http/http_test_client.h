// A client on a raw socket, for tests: it sends whatever it is told to, well
// formed or not.
#ifndef TROUPE_TESTS_COMMON_HTTP_HTTP_TEST_CLIENT_H_
#define TROUPE_TESTS_COMMON_HTTP_HTTP_TEST_CLIENT_H_

#include <openssl/ssl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/http/http_message.h"

namespace troupe {

struct TlsTestClientOptions {
  std::string ca_file;  // none: any server is trusted
  std::string cert_file;
  std::string key_file;
  std::string alpn;  // "http/1.1"; none: not offered
};

// Owns its connection. Not thread-safe. Whatever takes longer than ten seconds
// has failed.
class HttpTestClient {
 public:
  struct Response {
    int status = 0;
    std::vector<HttpHeader> headers;
    std::string body;
    bool whole = false;  // by content-length, the last chunk, or the end
    size_t num_chunks = 0;

    // Empty when there is none.
    std::string Header(absl::string_view name) const;
  };

  // address: "127.0.0.1:port". receive_buffer: SO_RCVBUF; 0 for the default.
  explicit HttpTestClient(const std::string& address, int receive_buffer = 0);
  HttpTestClient(HttpTestClient&& other) noexcept;
  ~HttpTestClient();

  bool connected() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  // The subject of the server's certificate; empty when the handshake fails.
  std::string StartTls(const TlsTestClientOptions& options);

  // Frees the memory of TLS; the connection stays, but is of no more use.
  void ForgetTls();

  // False when the server has closed.
  bool Send(absl::string_view bytes);
  // Of one request; to_head: that was HEAD. None when the connection ends
  // before a head.
  std::optional<Response> Receive(bool to_head = false);
  // The next bytes; empty at the end.
  std::string ReceiveSome();
  // True when the server closes, without a byte more.
  bool ReceiveEnd();
  // True when nothing comes within `timeout_ms`.
  bool Silent(int timeout_ms);

  void CloseSendingSide();
  // With a reset instead of an orderly end.
  void Reset();
  void Close();

 private:
  // False at the end, or when there was none in time.
  bool Fill();

  int fd_ = -1;
  std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context_{nullptr, SSL_CTX_free};
  std::unique_ptr<SSL, void (*)(SSL*)> ssl_{nullptr, SSL_free};
  std::string input_;
};

}  // namespace troupe

#endif  // TROUPE_TESTS_COMMON_HTTP_HTTP_TEST_CLIENT_H_
