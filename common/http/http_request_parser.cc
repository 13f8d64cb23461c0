#include "common/http/http_request_parser.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "boost/asio/buffer.hpp"
#include "boost/beast/http/error.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/string_body.hpp"

#ifdef __GNUC__
// Of an empty boost::optional, with the sanitizers' code around it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace troupe {
namespace {

namespace http = boost::beast::http;
using Fields = http::request<http::string_body>;

// Of chunk sizes, their extensions and trailers, apart from what the data
// itself may need: eight bytes for each.
constexpr size_t kMaxChunkOverheadBytes = 64 << 10;

absl::string_view View(boost::beast::string_view text) {
  return {text.data(), text.size()};
}

size_t Count(const Fields& fields, http::field name) {
  const auto range = fields.equal_range(name);
  return static_cast<size_t>(std::distance(range.first, range.second));
}

}  // namespace

struct HttpRequestParser::Grammar {
  http::request_parser<http::string_body> parser;
};

HttpRequestParser::HttpRequestParser(const Limits& limits) : limits_(limits) {}
HttpRequestParser::~HttpRequestParser() = default;

void HttpRequestParser::Append(absl::string_view bytes) {
  input_.append(bytes.data(), bytes.size());
}

size_t HttpRequestParser::body_bytes() const {
  return grammar_ == nullptr ? 0 : grammar_->parser.get().body().size();
}

bool HttpRequestParser::begun() {
  if (grammar_ != nullptr) return true;
  const absl::string_view rest =
      absl::string_view(input_).substr(offset_, std::string::npos);
  if (!skipped_line_) {
    if (rest == "\r") return false;
    if (absl::StartsWith(rest, "\r\n")) {
      skipped_line_ = true;
      Consume(2);
    }
  }
  return buffered() > 0;
}

HttpRequestParser::Next HttpRequestParser::Advance() {
  if (error_status_ != 0) return Next::kError;
  if (!begun()) return Next::kNeedMore;
  if (grammar_ == nullptr) {
    grammar_ = std::make_unique<Grammar>();
    is_head_ = false;
    keep_alive_ = http11_ = true;
    grammar_->parser.header_limit(static_cast<uint32_t>(limits_.header_bytes));
    grammar_->parser.body_limit(limits_.body_bytes);
  }
  if (!header_done_) {
    const Next next = ParseHeader();
    if (!header_done_ || next == Next::kError) return next;
  }
  return ParseBody();
}

HttpRequestParser::Next HttpRequestParser::ParseHeader() {
  auto& parser = grammar_->parser;
  boost::system::error_code error;
  const size_t room =
      std::min(buffered(), limits_.header_bytes - header_bytes_);
  const size_t used =
      parser.put(boost::asio::buffer(input_.data() + offset_, room), error);
  Consume(used);
  header_bytes_ += used;
  const Fields& fields = parser.get();
  const auto num_lines =
      static_cast<size_t>(std::distance(fields.begin(), fields.end()));
  if (num_lines > limits_.header_lines) {
    return Fail(431, absl::StrCat("the header has more than ",
                                  limits_.header_lines, " lines"));
  }
  if (error == http::error::header_limit) return FailHeaderSize();
  if (error == http::error::need_more) {
    if (header_bytes_ + buffered() >= limits_.header_bytes) {
      return FailHeaderSize();
    }
    return Next::kNeedMore;
  }
  if (error == http::error::body_limit) return FailBodySize();
  if (error) {
    return Fail(400, absl::StrCat("this is no HTTP/1.1: ", error.message()));
  }
  request_ = HttpRequest();
  request_.method = std::string(fields.method_string());
  for (const auto& field : fields) {
    request_.headers.push_back(
        {std::string(field.name_string()), std::string(field.value())});
  }
  is_head_ = fields.method() == http::verb::head;
  keep_alive_ = fields.keep_alive();
  http11_ = fields.version() >= 11;
  if (!CheckFraming() || !ReadTarget(View(fields.target()))) {
    return Next::kError;
  }
  header_done_ = true;
  parser.eager(true);
  return Next::kNeedMore;
}

bool HttpRequestParser::CheckFraming() {
  const Fields& fields = grammar_->parser.get();
  const size_t num_hosts = Count(fields, http::field::host);
  if (num_hosts > 1 || (http11_ && num_hosts == 0)) {
    Fail(400, "a request has one Host");
    return false;
  }
  if (Count(fields, http::field::transfer_encoding) > 0) {
    const absl::string_view value = request_.Header("transfer-encoding");
    if (!http11_) {
      Fail(400, "HTTP/1.0 has no Transfer-Encoding");
      return false;
    }
    if (Count(fields, http::field::transfer_encoding) > 1 ||
        !absl::EqualsIgnoreCase(value, "chunked")) {
      Fail(501, "the only Transfer-Encoding here is chunked");
      return false;
    }
  }
  const absl::string_view length = request_.Header("content-length");
  if (Count(fields, http::field::content_length) > 1 ||
      !std::all_of(length.begin(), length.end(), absl::ascii_isdigit)) {
    Fail(400, "Content-Length is one number");
    return false;
  }
  const absl::string_view expect = request_.Header("expect");
  if (!expect.empty() && http11_) {
    if (!absl::EqualsIgnoreCase(expect, "100-continue")) {
      Fail(417, "the only expectation here is 100-continue");
      return false;
    }
    expects_continue_ = true;
  }
  return true;
}

bool HttpRequestParser::ReadTarget(absl::string_view target) {
  absl::string_view root;
  // "GET http://host/path": what is sent to a proxy (RFC 9112, section 3.2.2).
  for (const absl::string_view scheme : {"http://", "https://"}) {
    if (!absl::StartsWithIgnoreCase(target, scheme)) continue;
    target.remove_prefix(scheme.size());
    target.remove_prefix(std::min(target.find_first_of("/?"), target.size()));
    if (!absl::StartsWith(target, "/")) root = "/";
    break;
  }
  if (root.empty() && !absl::StartsWith(target, "/") &&
      !(target == "*" && request_.method == "OPTIONS")) {
    Fail(400, "the target of a request is a path");
    return false;
  }
  const size_t query = target.find('?');
  request_.path = absl::StrCat(root, target.substr(0, query));
  if (query != absl::string_view::npos) {
    request_.query = std::string(target.substr(query + 1));
  }
  return true;
}

HttpRequestParser::Next HttpRequestParser::ParseBody() {
  auto& parser = grammar_->parser;
  if (parser.is_done()) return Next::kRequest;
  if (buffered() == 0) {
    return std::exchange(expects_continue_, false) ? Next::kContinue
                                                   : Next::kNeedMore;
  }
  expects_continue_ = false;
  while (true) {
    // What is no data, a line or all trailers, is parsed as a whole, and must
    // be within what is offered at once.
    const size_t room = std::min(buffered(), limits_.header_bytes);
    boost::system::error_code error;
    const size_t used =
        parser.put(boost::asio::buffer(input_.data() + offset_, room), error);
    Consume(used);
    body_wire_bytes_ += used;
    if (error == http::error::body_limit) return FailBodySize();
    if (error && error != http::error::need_more) {
      return Fail(400,
                  absl::StrCat("the body is no HTTP/1.1: ", error.message()));
    }
    if (body_wire_bytes_ > kMaxChunkOverheadBytes + 8 * body_bytes() ||
        (used == 0 && room == limits_.header_bytes)) {
      return Fail(400, "the body has more framing than data");
    }
    if (parser.is_done()) return Next::kRequest;
    if (used == 0 || buffered() == 0) return Next::kNeedMore;
  }
}

HttpRequest HttpRequestParser::Take() {
  request_.body = std::move(grammar_->parser.get().body());
  grammar_.reset();
  skipped_line_ = false;
  header_done_ = false;
  expects_continue_ = false;
  header_bytes_ = 0;
  body_wire_bytes_ = 0;
  return std::move(request_);
}

HttpRequestParser::Next HttpRequestParser::Fail(int status,
                                                std::string message) {
  error_status_ = status;
  error_message_ = std::move(message);
  grammar_.reset();
  return Next::kError;
}

HttpRequestParser::Next HttpRequestParser::FailHeaderSize() {
  return Fail(431, absl::StrCat("the header has more than ",
                                limits_.header_bytes, " bytes"));
}

HttpRequestParser::Next HttpRequestParser::FailBodySize() {
  return Fail(413, absl::StrCat("the body has more than ", limits_.body_bytes,
                                " bytes"));
}

void HttpRequestParser::Consume(size_t num_bytes) {
  offset_ += num_bytes;
  if (offset_ < input_.size()) {
    // What is left is moved only when that is less than what was parsed.
    if (offset_ < input_.size() / 2) return;
    input_.erase(0, offset_);
  } else {
    std::string().swap(input_);  // an idle connection holds no memory
  }
  offset_ = 0;
}

}  // namespace troupe
