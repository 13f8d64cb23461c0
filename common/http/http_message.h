// Requests and responses of HTTP/1.1 as values.
#ifndef TROUPE_COMMON_HTTP_HTTP_MESSAGE_H_
#define TROUPE_COMMON_HTTP_HTTP_MESSAGE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace troupe {

struct HttpHeader {
  std::string name;
  std::string value;
};

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // of the target, up to "?", as it was sent
  std::string query;   // behind "?"
  std::vector<HttpHeader> headers;
  std::string body;
  std::string peer;  // "address:port"

  // The value of the first header of that name, whose case does not matter;
  // empty when there is none.
  absl::string_view Header(absl::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  // Connection, Content-Length, Date and Transfer-Encoding are the server's:
  // what is given here is left out.
  std::vector<HttpHeader> headers;
  std::string body;
};

// "Not Found" for 404; "Unknown" for a number that is not used here.
const char* ReasonPhrase(int status);

// Bytes on the wire. `framing` holds the header lines that say how long the
// body is, each with its end of line. Control characters in values are
// replaced by spaces, so that no value begins a line of its own; a header whose
// name is none is left out.
std::string SerializeHead(const HttpResponse& response,
                          absl::string_view framing);
// One chunk of "transfer-encoding: chunked"; data must not be empty.
std::string SerializeChunk(absl::string_view data);

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_HTTP_MESSAGE_H_
