#include "tests/fakes/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace troupe {

HttpClient::HttpClient(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in peer = {};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(
      static_cast<uint16_t>(std::atoi(address.substr(colon + 1).c_str())));
  CHECK_EQ(inet_pton(AF_INET, address.substr(0, colon).c_str(), &peer.sin_addr),
           1);
  fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd_ >= 0);
  const timeval patience = {60, 0};
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  CHECK_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)), 0);
}

HttpClient::~HttpClient() { Close(); }

void HttpClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void HttpClient::Shutdown() { shutdown(fd_, SHUT_RDWR); }

void HttpClient::Write(const std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t count =
        send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
    if (count <= 0) return;  // the answer is read all the same
    done += static_cast<size_t>(count);
  }
}

bool HttpClient::Fill() {
  char bytes[65536];
  const ssize_t count = recv(fd_, bytes, sizeof(bytes), 0);
  if (count <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(count));
  return true;
}

std::string HttpClient::TakeLine() {
  size_t end;
  while ((end = buffer_.find("\r\n")) == std::string::npos) {
    if (!Fill()) return "";
  }
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 2);
  return line;
}

std::string HttpClient::TakeBytes(size_t count) {
  while (buffer_.size() < count && Fill()) {
  }
  std::string bytes = buffer_.substr(0, count);
  buffer_.erase(0, count);
  return bytes;
}

HttpResponse HttpClient::ReadHead() {
  HttpResponse response;
  const std::string status = TakeLine();
  response.status = status.size() > 9 ? std::atoi(status.c_str() + 9) : 0;
  chunked_ = false;
  content_length_ = 0;
  for (std::string line = TakeLine(); !line.empty(); line = TakeLine()) {
    const size_t colon = line.find(':');
    HttpHeader header = {
        line.substr(0, colon),
        std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)))};
    if (absl::EqualsIgnoreCase(header.name, "transfer-encoding")) {
      chunked_ = true;
    } else if (absl::EqualsIgnoreCase(header.name, "content-length")) {
      content_length_ = static_cast<size_t>(std::atoll(header.value.c_str()));
    }
    response.headers.push_back(std::move(header));
  }
  return response;
}

std::optional<std::string> HttpClient::NextChunk() {
  const std::string size = TakeLine();
  const size_t num_bytes = std::strtoul(size.c_str(), nullptr, 16);
  std::string bytes = TakeBytes(num_bytes);
  TakeLine();
  if (bytes.empty()) return std::nullopt;
  return bytes;
}

HttpResponse HttpClient::Send(const std::string& method,
                              const std::string& path, const std::string& body,
                              const std::vector<HttpHeader>& headers) {
  std::string head =
      absl::StrCat(method, " ", path, " HTTP/1.1\r\nhost: test\r\n");
  for (const HttpHeader& header : headers) {
    absl::StrAppend(&head, header.name, ": ", header.value, "\r\n");
  }
  if (method == "POST") {
    absl::StrAppend(&head, "content-length: ", body.size(), "\r\n");
  }
  Write(absl::StrCat(head, "\r\n", body));
  HttpResponse response = ReadHead();
  if (chunked_) {
    while (auto chunk = NextChunk()) response.body += *chunk;
  } else if (method != "HEAD") {
    response.body = TakeBytes(content_length_);
  }
  return response;
}

HttpResponse HttpClient::Post(const std::string& path,
                              const nlohmann::json& body,
                              std::vector<HttpHeader> headers) {
  headers.push_back({"content-type", "application/json"});
  return Send("POST", path, body.dump(), headers);
}

HttpResponse HttpClient::Begin(const std::string& path,
                               const nlohmann::json& body) {
  const std::string text = body.dump();
  Write(absl::StrCat("POST ", path,
                     " HTTP/1.1\r\nhost: test\r\ncontent-type: "
                     "application/json\r\ncontent-length: ",
                     text.size(), "\r\n\r\n", text));
  return ReadHead();
}

std::optional<std::string> HttpClient::NextEvent() {
  size_t end;
  while ((end = events_.find("\n\n")) == std::string::npos) {
    const auto chunk = NextChunk();
    if (!chunk) return std::nullopt;
    events_ += *chunk;
  }
  std::string event = events_.substr(0, end);
  events_.erase(0, end + 2);
  CHECK(absl::StartsWith(event, "data: "));
  return event.substr(6);
}

std::string HeaderOf(const HttpResponse& response, const std::string& name) {
  for (const HttpHeader& header : response.headers) {
    if (absl::EqualsIgnoreCase(header.name, name)) return header.value;
  }
  return "";
}

std::vector<std::string> EventsOf(const std::string& body) {
  std::vector<std::string> events;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    CHECK(end != std::string::npos && body.compare(at, 6, "data: ") == 0);
    events.push_back(body.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return events;
}

}  // namespace troupe
