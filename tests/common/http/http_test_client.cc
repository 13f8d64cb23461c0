#include "tests/common/http/http_test_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace troupe {
namespace {

constexpr int kTimeoutMs = 10000;

}  // namespace

std::string HttpTestClient::Response::Header(absl::string_view name) const {
  for (const HttpHeader& header : headers) {
    if (absl::EqualsIgnoreCase(header.name, name)) return header.value;
  }
  return "";
}

HttpTestClient::HttpTestClient(const std::string& address, int receive_buffer) {
  const size_t colon = address.rfind(':');
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(
      static_cast<uint16_t>(std::atoi(address.substr(colon + 1).c_str())));
  inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr);
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (receive_buffer > 0) {
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer,
               sizeof(receive_buffer));
  }
  const timeval timeout = {kTimeoutMs / 1000, 0};
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  if (connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) Close();
}

HttpTestClient::HttpTestClient(HttpTestClient&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      context_(std::move(other.context_)),
      ssl_(std::move(other.ssl_)),
      input_(std::move(other.input_)) {}

HttpTestClient::~HttpTestClient() { Close(); }

std::string HttpTestClient::StartTls(const TlsTestClientOptions& options) {
  context_.reset(SSL_CTX_new(TLS_client_method()));
  if (!options.ca_file.empty()) {
    SSL_CTX_load_verify_locations(context_.get(), options.ca_file.c_str(),
                                  nullptr);
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
  }
  if (!options.cert_file.empty()) {
    SSL_CTX_use_certificate_chain_file(context_.get(),
                                       options.cert_file.c_str());
    SSL_CTX_use_PrivateKey_file(context_.get(), options.key_file.c_str(),
                                SSL_FILETYPE_PEM);
  }
  ssl_.reset(SSL_new(context_.get()));
  if (!options.alpn.empty()) {
    const std::string list =
        std::string(1, static_cast<char>(options.alpn.size())) + options.alpn;
    SSL_set_alpn_protos(ssl_.get(),
                        reinterpret_cast<const unsigned char*>(list.data()),
                        static_cast<unsigned>(list.size()));
  }
  SSL_set_fd(ssl_.get(), fd_);
  if (SSL_connect(ssl_.get()) != 1) return "";
  X509* const peer = SSL_get0_peer_certificate(ssl_.get());
  char name[256] = "";
  if (peer != nullptr) {
    X509_NAME_get_text_by_NID(X509_get_subject_name(peer), NID_commonName, name,
                              sizeof(name));
  }
  return name;
}

void HttpTestClient::ForgetTls() {
  ssl_.reset();
  context_.reset();
}

bool HttpTestClient::Send(absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent =
        ssl_ != nullptr ? SSL_write(ssl_.get(), bytes.data(),
                                    static_cast<int>(bytes.size()))
                        : send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool HttpTestClient::Fill() {
  char buffer[16384];
  const ssize_t received = ssl_ != nullptr
                               ? SSL_read(ssl_.get(), buffer, sizeof(buffer))
                               : recv(fd_, buffer, sizeof(buffer), 0);
  if (received <= 0) return false;
  input_.append(buffer, static_cast<size_t>(received));
  return true;
}

std::string HttpTestClient::ReceiveSome() {
  if (input_.empty()) Fill();
  return std::exchange(input_, std::string());
}

bool HttpTestClient::ReceiveEnd() {
  if (!input_.empty()) return false;
  char byte;
  if (ssl_ != nullptr) {
    // An end without the alert that announces it (an attacker's) is none.
    const int result = SSL_read(ssl_.get(), &byte, 1);
    return SSL_get_error(ssl_.get(), result) == SSL_ERROR_ZERO_RETURN;
  }
  return recv(fd_, &byte, 1, 0) == 0;
}

bool HttpTestClient::Silent(int timeout_ms) {
  pollfd poll_fd = {fd_, POLLIN, 0};
  return input_.empty() && poll(&poll_fd, 1, timeout_ms) == 0;
}

std::optional<HttpTestClient::Response> HttpTestClient::Receive(bool to_head) {
  size_t end = 0;
  while ((end = input_.find("\r\n\r\n")) == std::string::npos) {
    if (!Fill()) return std::nullopt;
  }
  Response response;
  std::vector<std::string> lines =
      absl::StrSplit(input_.substr(0, end), "\r\n");
  input_.erase(0, end + 4);
  if (!absl::StartsWith(lines[0], "HTTP/1.1 ") ||
      !absl::SimpleAtoi(lines[0].substr(9, 3), &response.status)) {
    return std::nullopt;
  }
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::pair<std::string, std::string> header =
        absl::StrSplit(lines[i], absl::MaxSplits(": ", 1));
    response.headers.push_back({header.first, header.second});
  }
  const auto take = [&](size_t num_bytes) {
    while (input_.size() < num_bytes) {
      if (!Fill()) return false;
    }
    response.body += input_.substr(0, num_bytes);
    input_.erase(0, num_bytes);
    return true;
  };
  size_t length = 0;
  if (to_head || response.status == 204 || response.status == 304 ||
      response.status / 100 == 1) {
    response.whole = true;
  } else if (absl::SimpleAtoi(response.Header("content-length"), &length)) {
    response.whole = take(length);
  } else if (response.Header("transfer-encoding") == "chunked") {
    while (true) {
      size_t line = 0;
      while ((line = input_.find("\r\n")) == std::string::npos) {
        if (!Fill()) return response;
      }
      const size_t size =
          std::strtoul(input_.substr(0, line).c_str(), nullptr, 16);
      input_.erase(0, line + 2);
      if (!take(size) || !take(2)) return response;
      response.body.resize(response.body.size() - 2);
      if (size == 0) break;
      ++response.num_chunks;
    }
    response.whole = true;
  } else {
    while (Fill()) {
    }
    response.body = std::exchange(input_, std::string());
    response.whole = true;
  }
  return response;
}

void HttpTestClient::CloseSendingSide() { shutdown(fd_, SHUT_WR); }

void HttpTestClient::Reset() {
  const linger now = {1, 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
  Close();
}

void HttpTestClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

}  // namespace troupe
