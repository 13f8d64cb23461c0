// The connection over a stream of Boost.Asio: a TCP socket, or TLS on one.
// Included by http_server.cc alone.
#ifndef TROUPE_COMMON_HTTP_HTTP_SESSION_H_
#define TROUPE_COMMON_HTTP_HTTP_SESSION_H_

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/ssl.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/write.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/http.hpp"
#include "common/http/http_connection.h"

namespace troupe {

namespace asio = boost::asio;
namespace beast = boost::beast;
using Tcp = asio::ip::tcp;
using TlsStream = asio::ssl::stream<Tcp::socket>;

// Reads a request, hands it over, sends its response, and so on. All of it
// happens on the strand that the stream's executor is.
//
// While a request is being answered one read is in flight, too: its end tells
// that the client has gone (half-closed connections are taken for closed
// ones). What it brings is the beginning of the next request; then no more is
// read until the response has ended.
template <typename Stream>
class HttpSession final
    : public HttpConnection,
      public std::enable_shared_from_this<HttpSession<Stream>> {
 public:
  // tls: of a TlsStream, kept as long as the session.
  HttpSession(HttpConnections& connections, Stream stream,
              std::shared_ptr<asio::ssl::context> tls)
      : connections_(connections),
        tls_(std::move(tls)),
        stream_(std::move(stream)),
        timer_(stream_.get_executor()),
        buffer_(connections.options().max_header_bytes + kReadAhead) {
    boost::system::error_code ignored;
    const auto endpoint = Socket().remote_endpoint(ignored);
    if (!ignored) {
      peer_ =
          absl::StrCat(endpoint.address().to_string(), ":", endpoint.port());
    }
    admitted_ = connections_.Add(this);
  }
  ~HttpSession() override { connections_.Remove(this); }

  void Start() {
    OnStrand([](HttpSession& self) { self.Begin(); });
  }

  void Watch(std::function<void()> gone) override {
    OnStrand([gone = std::move(gone)](HttpSession& self) mutable {
      if (self.state_ == State::kClosed) {
        gone();
      } else {
        self.gone_ = std::move(gone);
      }
    });
  }

  void Respond(HttpResponse response) override {
    OnStrand([response = std::move(response)](HttpSession& self) mutable {
      const bool has_body = response.status != 204 && response.status != 304;
      std::string bytes = SerializeHead(
          response, has_body
                        ? absl::StrCat("content-length: ", response.body.size(),
                                       "\r\n", self.ConnectionLine())
                        : self.ConnectionLine());
      if (has_body && !self.head_only_) bytes += response.body;
      self.ended_ = true;
      self.Send(std::move(bytes), nullptr);
    });
  }

  void BeginStream(HttpResponse head) override {
    OnStrand([head = std::move(head)](HttpSession& self) {
      // HTTP/1.0 knows no chunks: there the end is the connection's.
      if (!self.chunked_) self.keep_alive_ = false;
      self.head_ = SerializeHead(
          head,
          absl::StrCat(self.chunked_ ? "transfer-encoding: chunked\r\n" : "",
                       self.ConnectionLine()));
    });
  }

  void Write(std::string piece, std::function<void(bool)> written) override {
    OnStrand([piece = std::move(piece),
              written = std::move(written)](HttpSession& self) mutable {
      std::string bytes = std::exchange(self.head_, std::string());
      bytes += self.chunked_ ? SerializeChunk(piece) : piece;
      self.Send(std::move(bytes), std::move(written));
    });
  }

  void EndStream() override {
    OnStrand([](HttpSession& self) {
      std::string bytes = std::exchange(self.head_, std::string());
      if (self.chunked_) bytes += "0\r\n\r\n";
      self.ended_ = true;
      self.Send(std::move(bytes), nullptr);
    });
  }

  void Drain() override { OnStrandIfAlive(&HttpSession::CloseIfIdle); }
  void Close() override { OnStrandIfAlive(&HttpSession::CloseNow); }

 private:
  using Error = boost::system::error_code;
  using Parser = beast::http::request_parser<beast::http::string_body>;
  enum class State { kIdle, kReading, kAnswering, kLingering, kClosed };
  struct Piece {
    std::string bytes;
    std::function<void(bool)> written;
  };

  // Of the next request, while one is being answered.
  static constexpr size_t kReadAhead = 16 << 10;

  // The caller owns a part of the session.
  void OnStrand(std::function<void(HttpSession&)> work) {
    asio::post(stream_.get_executor(),
               [self = this->shared_from_this(), work = std::move(work)] {
                 work(*self);
               });
  }
  // The caller does not: the session may be going.
  void OnStrandIfAlive(void (HttpSession::*work)()) {
    asio::post(stream_.get_executor(), [weak = this->weak_from_this(), work] {
      if (const auto self = weak.lock()) (self.get()->*work)();
    });
  }
  template <typename Method>
  auto Bound(Method method) {
    return [self = this->shared_from_this(), method](auto&&... arguments) {
      (self.get()->*method)(std::forward<decltype(arguments)>(arguments)...);
    };
  }

  Tcp::socket& Socket() {
    if constexpr (std::is_same_v<Stream, TlsStream>) {
      return stream_.next_layer();
    } else {
      return stream_;
    }
  }

  void Begin() {
    Error ignored;
    Socket().set_option(Tcp::no_delay(true), ignored);
    if constexpr (std::is_same_v<Stream, TlsStream>) {
      if (!admitted_) return CloseNow();
      SetTimer(connections_.options().header_timeout, &HttpSession::CloseNow);
      stream_.async_handshake(asio::ssl::stream_base::server,
                              Bound(&HttpSession::OnHandshake));
    } else {
      AwaitRequest();
    }
  }

  void OnHandshake(Error error) {
    if (error) return CloseNow();
    AwaitRequest();
  }

  void AwaitRequest() {
    if (state_ == State::kClosed) return;
    if (!admitted_) {
      state_ = State::kAnswering;
      return Refuse(503, "too many connections");
    }
    state_ = State::kIdle;
    if (buffer_.size() > 0) return ReadRequest();
    if (connections_.draining && served_any_) return CloseNow();
    SetTimer(connections_.options().idle_timeout, &HttpSession::CloseNow);
    ReadSome();
  }

  void ReadSome() {
    if (std::exchange(reading_some_, true)) return;
    stream_.async_read_some(buffer_.prepare(kReadAhead),
                            Bound(&HttpSession::OnSomeRead));
  }

  void OnSomeRead(Error error, size_t num_bytes) {
    reading_some_ = false;
    buffer_.commit(num_bytes);
    if (state_ == State::kClosed) return;
    if (error) return CloseNow();
    if (state_ == State::kIdle) ReadRequest();
    if (state_ == State::kLingering) ReadToTheEnd();
  }

  void ReadRequest() {
    state_ = State::kReading;
    reading_request_ = true;
    parser_.emplace();
    parser_->header_limit(
        static_cast<uint32_t>(connections_.options().max_header_bytes));
    parser_->body_limit(connections_.options().max_body_bytes);
    SetTimer(connections_.options().header_timeout, &HttpSession::OnLate);
    beast::http::async_read_header(stream_, buffer_, *parser_,
                                   Bound(&HttpSession::OnHeader));
  }

  void OnHeader(Error error, size_t) {
    reading_request_ = false;
    if (state_ != State::kReading) return;
    if (error) return OnBadRequest(error);
    const auto& head = parser_->get();
    keep_alive_ = head.keep_alive();
    chunked_ = head.version() >= 11;
    const auto length = parser_->content_length();
    if (length && *length > connections_.options().max_body_bytes) {
      return OnBadRequest(beast::http::error::body_limit);
    }
    SetTimer(connections_.options().body_timeout, &HttpSession::OnLate);
    if (beast::iequals(head[beast::http::field::expect], "100-continue") &&
        !parser_->is_done()) {
      pieces_.push_back({"HTTP/1.1 100 Continue\r\n\r\n", nullptr});
      asio::async_write(stream_, asio::buffer(pieces_.front().bytes),
                        Bound(&HttpSession::OnContinued));
      return;
    }
    ReadBody();
  }

  void OnContinued(Error error, size_t) {
    pieces_.clear();
    if (state_ != State::kReading) return;
    if (error) return CloseNow();
    ReadBody();
  }

  void ReadBody() {
    reading_request_ = true;
    beast::http::async_read(stream_, buffer_, *parser_,
                            Bound(&HttpSession::OnRequest));
  }

  void OnRequest(Error error, size_t) {
    reading_request_ = false;
    if (state_ != State::kReading) return;
    if (error) return OnBadRequest(error);
    auto message = parser_->release();
    parser_.reset();
    HttpRequest request;
    request.method = std::string(message.method_string());
    const std::string target(message.target());
    const size_t query = target.find('?');
    request.path = target.substr(0, query);
    if (query != std::string::npos) request.query = target.substr(query + 1);
    for (const auto& field : message) {
      request.headers.push_back(
          {std::string(field.name_string()), std::string(field.value())});
    }
    request.body = std::move(message.body());
    request.peer = peer_;
    head_only_ = request.method == "HEAD";
    state_ = State::kAnswering;
    served_any_ = true;
    timer_.cancel();
    if (target.empty() || target[0] != '/') {
      return Refuse(400, "the target of a request is a path");
    }
    if (buffer_.size() == 0) ReadSome();
    connections_.handler()(std::make_shared<HttpExchange>(
        this->shared_from_this(), std::move(request)));
  }

  void OnBadRequest(Error error) {
    using Http = beast::http::error;
    state_ = State::kAnswering;
    if (error == Http::body_limit) {
      Refuse(413,
             absl::StrCat("the body has more than ",
                          connections_.options().max_body_bytes, " bytes"));
    } else if (error == Http::header_limit || error == Http::buffer_overflow) {
      Refuse(431,
             absl::StrCat("the header has more than ",
                          connections_.options().max_header_bytes, " bytes"));
    } else if (error.category() ==
                   beast::http::make_error_code(Http::bad_method).category() &&
               error != Http::end_of_stream && error != Http::partial_message) {
      Refuse(400, absl::StrCat("this is no HTTP/1.1: ", error.message()));
    } else {
      CloseNow();
    }
  }

  void OnLate() {
    if (state_ != State::kReading) return;
    state_ = State::kAnswering;
    Error ignored;
    Socket().cancel(ignored);  // of the read
    Refuse(408, "the request took too long to arrive");
  }

  // Of what did not become an exchange; the connection ends with it.
  void Refuse(int status, const std::string& message) {
    keep_alive_ = false;
    HttpResponse response = connections_.MakeError(status, message);
    std::string bytes = SerializeHead(
        response, absl::StrCat("content-length: ", response.body.size(), "\r\n",
                               ConnectionLine()));
    ended_ = true;
    Send(bytes + response.body, nullptr);
  }

  std::string ConnectionLine() {
    if (connections_.draining) keep_alive_ = false;
    if (!keep_alive_) return "connection: close\r\n";
    return chunked_ ? "" : "connection: keep-alive\r\n";
  }

  void Send(std::string bytes, std::function<void(bool)> written) {
    if (state_ == State::kClosed) {
      if (written) written(false);
      return;
    }
    pieces_.push_back({std::move(bytes), std::move(written)});
    if (pieces_.size() == 1) SendNext();
  }

  void SendNext() {
    SetTimer(connections_.options().write_timeout, &HttpSession::CloseNow);
    asio::async_write(stream_, asio::buffer(pieces_.front().bytes),
                      Bound(&HttpSession::OnSent));
  }

  void OnSent(Error error, size_t) {
    Piece piece = std::move(pieces_.front());
    pieces_.pop_front();
    if (error) CloseNow();
    if (state_ == State::kClosed) {
      if (piece.written) piece.written(false);
      for (Piece& rest : std::exchange(pieces_, {})) {
        if (rest.written) rest.written(false);
      }
      return;
    }
    timer_.cancel();
    if (piece.written) piece.written(true);
    if (!pieces_.empty()) return SendNext();
    if (!ended_) return;
    ended_ = false;
    gone_ = nullptr;
    if (keep_alive_) return AwaitRequest();
    // What the client still sends is read and forgotten for a moment: closing
    // now might take the response away from it (RFC 9112, section 9.6).
    state_ = State::kLingering;
    Error ignored;
    Socket().shutdown(Tcp::socket::shutdown_send, ignored);
    SetTimer(kLinger, &HttpSession::CloseNow);
    if (!reading_request_) ReadToTheEnd();
  }

  void ReadToTheEnd() {
    buffer_.clear();
    ReadSome();
  }

  void SetTimer(milliseconds duration, void (HttpSession::*late)()) {
    timer_.expires_after(duration);
    timer_.async_wait([weak = this->weak_from_this(), late](Error error) {
      const auto self = weak.lock();
      if (!error && self != nullptr &&
          self->timer_.expiry() <= asio::steady_timer::clock_type::now()) {
        (self.get()->*late)();
      }
    });
  }

  void CloseIfIdle() {
    if (state_ == State::kIdle && buffer_.size() == 0) CloseNow();
  }

  void CloseNow() {
    if (std::exchange(state_, State::kClosed) == State::kClosed) return;
    timer_.cancel();
    Error ignored;
    Socket().shutdown(Tcp::socket::shutdown_both, ignored);
    Socket().close(ignored);
    if (const auto gone = std::exchange(gone_, nullptr)) gone();
  }

  static constexpr milliseconds kLinger{500};

  HttpConnections& connections_;
  const std::shared_ptr<asio::ssl::context> tls_;
  Stream stream_;
  std::string peer_;
  bool admitted_ = false;

  // Of the strand.
  asio::steady_timer timer_;
  beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  State state_ = State::kIdle;
  bool reading_some_ = false;     // ReadSome is in flight
  bool reading_request_ = false;  // or the parser
  bool served_any_ = false;
  bool keep_alive_ = true;
  bool chunked_ = true;
  bool head_only_ = false;
  bool ended_ = false;        // the last piece of the response is among pieces_
  std::string head_;          // not sent yet
  std::deque<Piece> pieces_;  // the first is being sent
  std::function<void()> gone_;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_HTTP_SESSION_H_
