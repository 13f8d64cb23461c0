#include "common/http/http_request_parser.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using Next = HttpRequestParser::Next;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr HttpRequestParser::Limits kLimits = {
    .header_bytes = 1024, .header_lines = 20, .body_bytes = 4096};

struct Outcome {
  std::vector<std::string> requests;  // as text
  int error_status = 0;               // 0: more would be needed
};

std::string Text(const HttpRequest& request) {
  std::string text =
      absl::StrCat(request.method, " ", request.path, " ? ", request.query);
  for (const HttpHeader& header : request.headers) {
    absl::StrAppend(&text, "\n", header.name, "=", header.value);
  }
  return absl::StrCat(text, "\n\n", request.body);
}

// Feeds pieces of at most `piece` bytes.
Outcome Parse(const std::string& bytes, size_t piece = std::string::npos) {
  HttpRequestParser parser(kLimits);
  Outcome outcome;
  for (size_t at = 0; at < bytes.size() && outcome.error_status == 0;) {
    const size_t size = std::min(piece, bytes.size() - at);
    parser.Append(absl::string_view(bytes).substr(at, size));
    at += size;
    Next next = parser.Advance();
    for (; next == Next::kRequest; next = parser.Advance()) {
      outcome.requests.push_back(Text(parser.Take()));
    }
    if (next == Next::kError) outcome.error_status = parser.error_status();
  }
  return outcome;
}

// However they are split, the bytes give one request.
HttpRequest ParseOne(const std::string& bytes) {
  const Outcome at_once = Parse(bytes);
  EXPECT_EQ(at_once.requests.size(), 1u) << bytes;
  for (const size_t piece : {1, 2, 3, 7, 64}) {
    EXPECT_EQ(Parse(bytes, piece).requests, at_once.requests) << piece;
  }
  HttpRequestParser parser(kLimits);
  parser.Append(bytes);
  return parser.Advance() == Next::kRequest ? parser.Take() : HttpRequest();
}

TEST(HttpRequestParserTest, Request) {
  const HttpRequest request = ParseOne(
      "POST /v1/completions?a=1&b=/?c HTTP/1.1\r\nHost: h\r\n"
      "X-A: one \r\nx-a:two\r\nContent-Length: 5\r\n\r\nhello");
  EXPECT_EQ(request.method, "POST");
  EXPECT_EQ(request.path, "/v1/completions");
  EXPECT_EQ(request.query, "a=1&b=/?c");
  EXPECT_EQ(request.Header("X-a"), "one");
  EXPECT_EQ(request.Header("host"), "h");
  EXPECT_EQ(request.Header("none"), "");
  EXPECT_EQ(request.body, "hello");
}

TEST(HttpRequestParserTest, ChunksExtensionsAndTrailers) {
  const HttpRequest request = ParseOne(
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"
      "5;a=\"b;c\"\r\nhello\r\n0001\r\n \r\nA\r\n0123456789\r\n"
      "0;last\r\nX-Trailer: 1\r\nHost: other\r\n\r\n");
  EXPECT_EQ(request.body, "hello 0123456789");
  // What comes behind a body cannot change what was decided before it.
  EXPECT_EQ(request.Header("x-trailer"), "");
  EXPECT_EQ(request.Header("host"), "h");
}

TEST(HttpRequestParserTest, Targets) {
  const auto target = [](const std::string& method, const std::string& text) {
    const HttpRequest request = ParseOne(
        absl::StrCat(method, " ", text, " HTTP/1.1\r\nHost: h\r\n\r\n"));
    return absl::StrCat(request.path, " ", request.query);
  };
  EXPECT_EQ(target("GET", "/a/../%2e?x"), "/a/../%2e x");
  EXPECT_EQ(target("GET", "http://h:80/a?b"), "/a b");
  EXPECT_EQ(target("GET", "HTTPS://h"), "/ ");
  EXPECT_EQ(target("GET", "http://h?b"), "/ b");
  EXPECT_EQ(target("OPTIONS", "*"), "* ");
  EXPECT_EQ(target("GET", "//h/a"), "//h/a ");
}

TEST(HttpRequestParserTest, OneAfterTheOther) {
  const std::string get = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
  const std::string post =
      "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nGET";
  const std::string chunks =
      "PUT /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n0\r\n\r\n";
  // Some clients send an empty line behind a body.
  const std::string all = post + "\r\n" + get + chunks + get + post + chunks;
  const Outcome at_once = Parse(all);
  ASSERT_EQ(at_once.requests.size(), 6u);
  EXPECT_EQ(at_once.error_status, 0);
  for (size_t piece = 1; piece < 80; ++piece) {
    EXPECT_EQ(Parse(all, piece).requests, at_once.requests) << piece;
  }
}

TEST(HttpRequestParserTest, KeepsNothingBetweenRequests) {
  HttpRequestParser parser(kLimits);
  EXPECT_FALSE(parser.begun());
  parser.Append("\r\n");
  EXPECT_FALSE(parser.begun());
  parser.Append("\r");
  EXPECT_TRUE(parser.begun()) << "one empty line is enough";
}

TEST(HttpRequestParserTest, WhatTheConnectionNeeds) {
  const auto head = [](const std::string& text) {
    HttpRequestParser parser(kLimits);
    parser.Append(text);
    EXPECT_EQ(parser.Advance(), Next::kRequest) << text;
    parser.Take();
    return absl::StrCat(parser.keep_alive(), parser.http11(), parser.is_head());
  };
  EXPECT_EQ(head("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), "110");
  EXPECT_EQ(head("HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
            "011");
  EXPECT_EQ(head("GET / HTTP/1.0\r\n\r\n"), "000");
  EXPECT_EQ(head("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), "100");
}

TEST(HttpRequestParserTest, Continue) {
  HttpRequestParser parser(kLimits);
  const std::string head =
      "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
      "Content-Length: 2\r\n\r\n";
  parser.Append(head);
  EXPECT_EQ(parser.Advance(), Next::kContinue);
  EXPECT_EQ(parser.Advance(), Next::kNeedMore) << "said once";
  parser.Append("ab");
  EXPECT_EQ(parser.Advance(), Next::kRequest);
  EXPECT_EQ(parser.Take().body, "ab");
  parser.Append(head + "a");
  EXPECT_EQ(parser.Advance(), Next::kNeedMore) << "it does not wait";
  parser.Append("b");
  EXPECT_EQ(parser.Advance(), Next::kRequest);
}

struct BadCase {
  const char* what;
  int status;
  std::string bytes;
};

std::vector<BadCase> BadCases() {
  const std::string get = "GET / HTTP/1.1\r\nHost: h\r\n";
  const std::string post = "POST / HTTP/1.1\r\nHost: h\r\n";
  const std::string chunked = post + "Transfer-Encoding: chunked\r\n\r\n";
  const auto length = [&](const std::string& value) {
    return post + "Content-Length: " + value + "\r\n\r\n";
  };
  return {
      {"TLS", 400, std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 9)},
      {"HTTP/2", 400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
      {"HTTP/1.2", 400, "GET / HTTP/1.2\r\nHost: h\r\n\r\n"},
      {"HTTP/0.9", 400, "GET /\r\n\r\n"},
      {"lower case", 400, "GET / http/1.1\r\nHost: h\r\n\r\n"},
      {"no method", 400, " / HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"two spaces", 400, "GET  / HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"tab", 400, "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"control in method", 400, "G\x01T / HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"control in target", 400, "GET /\x7f HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"authority", 400, "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"relative target", 400, "GET a HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"other scheme", 400, "GET file:///etc HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"* of GET", 400, "GET * HTTP/1.1\r\nHost: h\r\n\r\n"},
      {"bare LF", 400, "GET / HTTP/1.1\nHost: h\n\n" + std::string(8, 'x')},
      {"two empty lines", 400, "\r\n\r\n" + get + "\r\n"},
      {"no Host", 400, "GET / HTTP/1.1\r\n\r\n"},
      {"two Hosts", 400, get + "Host: i\r\n\r\n"},
      {"NUL in value", 400, get + std::string("A: b\0c\r\n\r\n", 10)},
      {"control in value", 400, get + "A: b\x08\r\n\r\n"},
      {"CR in value", 400, get + "A: b\rc\r\n\r\n"},
      {"NUL in name", 400, get + std::string("A\0: b\r\n\r\n", 9)},
      {"space before colon", 400, get + "A : b\r\n\r\n"},
      {"no colon", 400, get + "A\r\n\r\n"},
      {"empty name", 400, get + ": b\r\n\r\n"},
      {"Connection", 400, get + "Connection: \"\r\n\r\n"},
      {"Expect", 417, post + "Expect: magic\r\n\r\n"},
      {"too many lines", 431,
       get +
           [] {
             std::string lines;
             for (int i = 0; i < 20; ++i) lines += "a:\r\n";
             return lines;
           }() +
           "\r\n"},
      {"header too large", 431,
       get + "A: " + std::string(1024, 'a') + "\r\n\r\n"},
      {"target too large", 431,
       "GET /" + std::string(1024, 'a') + " HTTP/1.1\r\n\r\n"},
      {"method without end", 431, std::string(2000, 'G')},

      {"length and chunks", 400,
       post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc"},
      {"chunks and length", 400,
       post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc"},
      {"two lengths", 400,
       post + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"},
      {"the same length twice", 400,
       post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"},
      {"list of lengths", 400, length("3, 3")},
      {"negative length", 400, length("-1")},
      {"signed length", 400, length("+3")},
      {"hexadecimal length", 400, length("0x3")},
      {"length with text", 400, length("3a")},
      {"empty length", 400, length("")},
      {"length of 65 bits", 400, length("18446744073709551616")},
      {"length of 64 bits", 413, length("18446744073709551615")},
      {"length over the limit", 413, length("4097")},
      {"gzip", 501, post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
      {"identity", 501, post + "Transfer-Encoding: identity\r\n\r\n"},
      {"chunked with text", 501, post + "Transfer-Encoding: xchunked\r\n\r\n"},
      {"chunked twice", 400,
       post +
           "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"},
      {"chunked, then not", 400,
       post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n"},
      {"chunks of HTTP/1.0", 400,
       "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},

      {"negative chunk", 400, chunked + "-1\r\na\r\n"},
      {"signed chunk", 400, chunked + "+1\r\na\r\n"},
      {"0x chunk", 400, chunked + "0x1\r\na\r\n"},
      {"empty chunk size", 400, chunked + "\r\na\r\n"},
      {"chunk of 65 bits", 400, chunked + "10000000000000000\r\na\r\n"},
      {"chunk of 64 bits", 413, chunked + "ffffffffffffffff\r\na\r\n"},
      {"chunk that wraps", 413,
       chunked + "1\r\na\r\nfffffffffffffff0\r\na\r\n"},
      {"chunk over the limit", 413, chunked + "1001\r\na"},
      {"chunks over the limit", 413,
       chunked + "800\r\n" + std::string(0x800, 'a') + "\r\n801\r\n"},
      {"chunk longer than said", 400, chunked + "1\r\nab\r\n0\r\n\r\n"},
      {"chunk line by LF", 400, chunked + "1\na\n0\n\n"},
      {"chunk extension", 400, chunked + "1;=\r\na\r\n"},
      {"endless chunk extension", 400, chunked + "1;" + std::string(2000, 'a')},
      {"endless trailers", 400,
       chunked + "0\r\n" +
           [] {
             std::string lines;
             for (int i = 0; i < 400; ++i) lines += "a: b\r\n";
             return lines;
           }()},
  };
}

TEST(HttpRequestParserTest, RefusesWhatIsWrong) {
  for (const BadCase& bad : BadCases()) {
    SCOPED_TRACE(bad.what);
    const std::string next = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    for (const size_t piece : {std::string::npos, size_t{1}, size_t{5}}) {
      const Outcome outcome = Parse(bad.bytes + next, piece);
      EXPECT_EQ(outcome.error_status, bad.status) << piece;
      EXPECT_THAT(outcome.requests, ElementsAre());
    }
  }
}

TEST(HttpRequestParserTest, MessagesNameTheLimit) {
  HttpRequestParser parser(kLimits);
  parser.Append("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n");
  EXPECT_EQ(parser.Advance(), Next::kError);
  EXPECT_THAT(parser.error_message(), HasSubstr("4096 bytes"));
  EXPECT_EQ(parser.Advance(), Next::kError) << "for good";
}

// What never ends is refused before it is large: the attacks on cpp-httplib
// (CVE-2025-46728, CVE-2025-53628, CVE-2026-45352) and their relatives.
TEST(HttpRequestParserTest, EndlessInputsStayBounded) {
  const std::string chunked =
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::vector<std::pair<std::string, std::string>> attacks = {
      {"GET /", "a"},
      {"GET / HTTP/1.1\r\nHost: h\r\nA: ", "a"},
      {"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n", " folded\r\n"},
      {"GET / HTTP/1.1\r\nHost: h\r\n", "a:\r\n"},
      {chunked, "1\r\na\r\n"},
      {chunked, "100\r\n" + std::string(256, 'a') + "\r\n"},
      {chunked + "1;a", "a"},
      {chunked, "1;" + std::string(900, 'a') + "\r\na\r\n"},
      {chunked + "1", "0"},
      {chunked + "0\r\n", "a: b\r\n"},
      {chunked + "0\r\na: ", "b"},
  };
  for (const auto& [head, rest] : attacks) {
    SCOPED_TRACE(head + rest.substr(0, 20));
    HttpRequestParser parser(kLimits);
    parser.Append(head);
    Next next = parser.Advance();
    size_t num_fed = 0;
    size_t most_buffered = 0;
    for (; next == Next::kNeedMore && num_fed < 1 << 20;
         next = parser.Advance()) {
      parser.Append(rest);
      num_fed += rest.size();
      most_buffered = std::max(most_buffered, parser.buffered());
    }
    EXPECT_EQ(next, Next::kError);
    EXPECT_LE(num_fed, 256u << 10);
    EXPECT_LE(most_buffered, 2048u);
  }
}

// Mutations of good and bad requests: nothing crashes, and what comes out does
// not depend on the split.
TEST(HttpRequestParserTest, MutationsGiveTheSameHoweverSplit) {
  std::vector<std::string> seeds = {
      "GET /a?b HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n",
      "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nGET",
      "PUT /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3;x=\"y\"\r\nabc\r\n0\r\nT: u\r\n\r\n",
      "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
  };
  for (const BadCase& bad : BadCases()) seeds.push_back(bad.bytes);
  const std::string alphabet("\r\n :;,=\"0123456789abcdefx-+*/\0\x80", 32);
  std::mt19937 random(5);
  const auto pick = [&random](size_t size) { return random() % size; };
  size_t num_requests = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes;
    for (size_t i = 0; i <= pick(3); ++i) bytes += seeds[pick(seeds.size())];
    for (size_t i = 0; i < pick(4); ++i) {
      const size_t at = pick(bytes.size());
      switch (pick(3)) {
        case 0:
          bytes[at] = alphabet[pick(alphabet.size())];
          break;
        case 1:
          bytes.insert(at, 1, alphabet[pick(alphabet.size())]);
          break;
        default:
          bytes.erase(at, 1 + pick(8));
      }
      if (bytes.empty()) break;
    }
    const Outcome at_once = Parse(bytes);
    num_requests += at_once.requests.size();
    ASSERT_EQ(Parse(bytes, 1 + pick(40)).requests, at_once.requests) << bytes;
  }
  EXPECT_GT(num_requests, 1000u);
}

}  // namespace
}  // namespace troupe
