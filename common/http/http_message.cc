#include "common/http/http_message.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace troupe {
namespace {

bool IsToken(absl::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::StrContains("!#$%&'*+-.^_`|~", c);
  });
}

bool IsOfTheServer(absl::string_view name) {
  for (const absl::string_view own :
       {"connection", "content-length", "date", "transfer-encoding"}) {
    if (absl::EqualsIgnoreCase(name, own)) return true;
  }
  return false;
}

}  // namespace

absl::string_view HttpRequest::Header(absl::string_view name) const {
  for (const HttpHeader& header : headers) {
    if (absl::EqualsIgnoreCase(header.name, name)) return header.value;
  }
  return {};
}

const char* ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 411:
      return "Length Required";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Unknown";
  }
}

std::string SerializeHead(const HttpResponse& response,
                          absl::string_view framing) {
  std::string head =
      absl::StrCat("HTTP/1.1 ", response.status, " ",
                   ReasonPhrase(response.status), "\r\ndate: ",
                   absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(),
                                    absl::UTCTimeZone()),
                   "\r\n");
  for (const HttpHeader& header : response.headers) {
    if (!IsToken(header.name) || IsOfTheServer(header.name)) continue;
    absl::StrAppend(&head, header.name, ": ");
    for (const char c : header.value) {
      head += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
    }
    head += "\r\n";
  }
  absl::StrAppend(&head, framing, "\r\n");
  return head;
}

std::string SerializeChunk(absl::string_view data) {
  return absl::StrCat(absl::Hex(data.size()), "\r\n", data, "\r\n");
}

}  // namespace troupe
