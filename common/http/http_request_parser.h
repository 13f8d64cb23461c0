// The bytes of a connection become requests, within bounds.
#ifndef TROUPE_COMMON_HTTP_HTTP_REQUEST_PARSER_H_
#define TROUPE_COMMON_HTTP_HTTP_REQUEST_PARSER_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "common/http/http_message.h"

namespace troupe {

// Reads one request after the other. The grammar is Boost.Beast's; what is
// refused on top of it are the shapes over which two readers of the same bytes
// may disagree (RFC 9112, sections 3.2, 6.1 and 6.3), trailers, and everything
// that would make memory or work grow beyond the limits. Does no I/O; which
// requests come out does not depend on how the bytes are split. Not
// thread-safe.
class HttpRequestParser {
 public:
  struct Limits {
    size_t header_bytes = 16 << 10;
    size_t header_lines = 100;
    size_t body_bytes = 2 << 20;
  };
  enum class Next {
    kNeedMore,  // Append, then Advance
    kContinue,  // the same, and the client waits for "100 Continue"
    kRequest,   // Take
    kError,     // for good: error_status, error_message
  };

  explicit HttpRequestParser(const Limits& limits);
  ~HttpRequestParser();

  void Append(absl::string_view bytes);
  Next Advance();
  // Then Advance goes on with the next request. Without `peer`.
  HttpRequest Take();

  // Bytes that have been appended and not been parsed yet.
  size_t buffered() const { return input_.size() - offset_; }
  // Of the request that is being read. `begun`: a byte of it has come, save
  // for the empty line that some clients send behind a body.
  bool begun();
  bool header_done() const { return header_done_; }
  size_t body_bytes() const;

  // Of the last request that has begun; until its header is done: no HEAD
  // of HTTP/1.1 that keeps the connection.
  bool is_head() const { return is_head_; }
  bool keep_alive() const { return keep_alive_; }
  bool http11() const { return http11_; }

  // What the client is told: 400, 413, 417, 431 or 501, and why.
  int error_status() const { return error_status_; }
  const std::string& error_message() const { return error_message_; }

 private:
  struct Grammar;

  Next ParseHeader();
  Next ParseBody();
  // False after Fail.
  bool CheckFraming();
  bool ReadTarget(absl::string_view target);
  Next Fail(int status, std::string message);
  Next FailHeaderSize();
  Next FailBodySize();
  void Consume(size_t num_bytes);

  const Limits limits_;
  std::string input_;
  size_t offset_ = 0;  // of input_, parsed so far

  // None between two requests.
  std::unique_ptr<Grammar> grammar_;
  HttpRequest request_;
  bool skipped_line_ = false;
  bool header_done_ = false;
  bool keep_alive_ = true;
  bool http11_ = true;
  bool is_head_ = false;
  bool expects_continue_ = false;
  size_t header_bytes_ = 0;
  size_t body_wire_bytes_ = 0;  // of the body and its framing

  int error_status_ = 0;
  std::string error_message_;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_HTTP_REQUEST_PARSER_H_
