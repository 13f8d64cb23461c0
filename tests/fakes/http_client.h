// An HTTP client that blocks, for tests: one connection, one request at a
// time, HTTP/1.1 without TLS.
#ifndef TROUPE_TESTS_FAKES_HTTP_CLIENT_H_
#define TROUPE_TESTS_FAKES_HTTP_CLIENT_H_

#include <optional>
#include <string>
#include <vector>

#include "common/http/http_message.h"
#include "nlohmann/json.hpp"

namespace troupe {

class HttpClient {
 public:
  // address: "127.0.0.1:port".
  explicit HttpClient(const std::string& address);
  ~HttpClient();

  // A whole request and a whole response; its body without chunks.
  HttpResponse Send(const std::string& method, const std::string& path,
                    const std::string& body = "",
                    const std::vector<HttpHeader>& headers = {});
  HttpResponse Get(const std::string& path) { return Send("GET", path); }
  HttpResponse Post(const std::string& path, const nlohmann::json& body,
                    std::vector<HttpHeader> headers = {});

  // A stream by pieces: the request and the head of its response, then one
  // "data: " line after the other without its prefix; nothing at the end.
  HttpResponse Begin(const std::string& path, const nlohmann::json& body);
  std::optional<std::string> NextEvent();

  // The connection is cut; Shutdown while another thread waits for it.
  void Close();
  void Shutdown();

 private:
  void Write(const std::string& bytes);
  bool Fill();  // false at the end of the connection
  std::string TakeLine();
  std::string TakeBytes(size_t count);
  HttpResponse ReadHead();
  std::optional<std::string> NextChunk();

  int fd_ = -1;
  std::string buffer_;
  std::string events_;  // of chunks, not yet taken
  bool chunked_ = false;
  size_t content_length_ = 0;
};

// The value of a header of a response; empty when there is none.
std::string HeaderOf(const HttpResponse& response, const std::string& name);
// All events of a body; each begins with "data: " and ends with two newlines.
std::vector<std::string> EventsOf(const std::string& body);

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_HTTP_CLIENT_H_
