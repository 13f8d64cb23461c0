// The connection over a stream of Boost.Asio: a TCP socket, or TLS on one.
// Included by http_server.cc alone.
#ifndef TROUPE_COMMON_HTTP_HTTP_SESSION_H_
#define TROUPE_COMMON_HTTP_HTTP_SESSION_H_

#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/ssl.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/write.hpp"
#include "common/http/http_connection.h"
#include "common/http/http_request_parser.h"

namespace troupe {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using TlsStream = asio::ssl::stream<Tcp::socket>;

// Reads a request, hands it over, sends its response, and so on. All of it
// happens on the strand that the stream's executor is. Owns itself from Start
// until it is closed; exchanges are owners, too.
//
// There is at most one read in flight, and nearly always one: while a request
// is being answered its end tells that the client has gone. What it brings then
// is kept for the next request; a client that sends kReadAhead in that time is
// not read from, and its going not seen, until the response has ended.
template <typename Stream>
class HttpSession final
    : public HttpConnection,
      public std::enable_shared_from_this<HttpSession<Stream>> {
 public:
  // tls: of a TlsStream, kept as long as the session.
  HttpSession(std::shared_ptr<HttpConnections> connections, Stream stream,
              std::shared_ptr<asio::ssl::context> tls)
      : connections_(std::move(connections)),
        tls_(std::move(tls)),
        stream_(std::move(stream)),
        timer_(stream_.get_executor()),
        parser_({options().max_header_bytes, options().max_header_lines,
                 options().max_body_bytes}) {}

  void Start() {
    self_ = this->shared_from_this();
    admission_ = connections_->Add(this);
    OnStrand([](HttpSession& self) { self.Begin(); });
  }

  void Watch(std::function<void()> gone) override {
    OnStrand([gone = std::move(gone)](HttpSession& self) mutable {
      if (self.state_ == State::kClosed || self.peer_done_) return gone();
      self.gone_ = std::move(gone);
    });
  }

  void Respond(HttpResponse response) override {
    OnStrand([response = std::move(response)](HttpSession& self) {
      self.SendResponse(response);
    });
  }

  void BeginStream(HttpResponse head) override {
    OnStrand([head = std::move(head)](HttpSession& self) {
      self.PrepareStream(head);
    });
  }

  void Write(std::string piece, std::function<void(bool)> written) override {
    OnStrand([piece = std::move(piece),
              written = std::move(written)](HttpSession& self) mutable {
      std::string bytes = std::exchange(self.head_, std::string());
      if (self.body_ == Body::kChunked && !piece.empty()) {
        bytes += SerializeChunk(piece);
      } else if (self.body_ == Body::kToTheEnd) {
        bytes += piece;
      }
      self.Send(std::move(bytes), std::move(written));
    });
  }

  void EndStream() override {
    OnStrand([](HttpSession& self) {
      std::string bytes = std::exchange(self.head_, std::string());
      if (self.body_ == Body::kChunked) bytes += "0\r\n\r\n";
      self.ended_ = true;
      self.Send(std::move(bytes), nullptr);
    });
  }

  void Abandon() override {
    OnStrand([](HttpSession& self) {
      if (self.in_stream_ && self.head_.empty()) return self.CloseNow();
      self.SendResponse(self.connections_->MakeError(
          500, "the request was given up without a response"));
    });
  }

  void Post(std::function<void()> work) override {
    OnStrand([work = std::move(work)](HttpSession&) { work(); });
  }

  void Drain() override { OnStrandIfAlive(&HttpSession::CloseIfIdle); }
  void Close() override { OnStrandIfAlive(&HttpSession::CloseNow); }

 private:
  using Error = boost::system::error_code;
  using Admission = HttpConnections::Admission;
  using Phase = HttpConnections::Phase;
  enum class State { kIdle, kReading, kAnswering, kLingering, kClosed };
  enum class Body { kNone, kChunked, kToTheEnd };
  struct Piece {
    std::string bytes;
    std::function<void(bool)> written;
  };

  static constexpr bool kIsTls = std::is_same_v<Stream, TlsStream>;
  // Of one read: of a connection that waits, which should cost little, and
  // within a request.
  static constexpr size_t kIdleRead = 1 << 10;
  static constexpr size_t kBusyRead = 16 << 10;
  static constexpr size_t kReadAhead = 16 << 10;
  // What must go out within write_timeout.
  static constexpr size_t kBlock = 64 << 10;
  // How long a client has to take the last response and close.
  static constexpr milliseconds kLinger{2000};

  const HttpServerOptions& options() const { return connections_->options(); }

  Tcp::socket& Socket() {
    if constexpr (kIsTls) {
      return stream_.next_layer();
    } else {
      return stream_;
    }
  }

  // The caller owns a part of the session.
  template <typename Work>
  void OnStrand(Work work) {
    connections_->Post(stream_.get_executor(),
                       [self = this->shared_from_this(),
                        work = std::move(work)]() mutable { work(*self); });
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

  // --- The beginning.

  void Begin() {
    if (state_ == State::kClosed) return;
    if (connections_->phase() == Phase::kClosing) return CloseNow();
    SetSocketOptions();
    if (admission_ == Admission::kDrop) {
      if constexpr (!kIsTls) LastWords(503, kTooMany);
      return CloseNow();
    }
    if constexpr (kIsTls) {
      SetTimer(options().header_timeout, &HttpSession::CloseNow);
      stream_.async_handshake(asio::ssl::stream_base::server,
                              Bound(&HttpSession::OnHandshake));
    } else {
      AwaitRequest();
    }
  }

  void SetSocketOptions() {
    Error ignored;
    const auto endpoint = Socket().remote_endpoint(ignored);
    if (!ignored) {
      peer_ =
          absl::StrCat(endpoint.address().to_string(), ":", endpoint.port());
    }
    Socket().set_option(Tcp::no_delay(true), ignored);
    Socket().set_option(asio::socket_base::keep_alive(true), ignored);
    const auto set = [this](int name, int value) {
      setsockopt(Socket().native_handle(), IPPROTO_TCP, name, &value,
                 sizeof(value));
    };
    // A host that has vanished is noticed in write_timeout when something is
    // to be sent, else after about a minute.
    set(TCP_USER_TIMEOUT, static_cast<int>(options().write_timeout.count()));
    set(TCP_KEEPIDLE, 30);
    set(TCP_KEEPINTVL, 10);
    // Else the kernel takes megabytes for a client that does not read, and
    // write_timeout begins only after that.
    set(TCP_NOTSENT_LOWAT, static_cast<int>(kBlock));
  }

  void OnHandshake(Error error) {
    if (state_ == State::kClosed) return;
    if (!error) return AwaitRequest();
    if (error.category() == asio::error::get_ssl_category() &&
        ERR_GET_REASON(static_cast<unsigned long>(error.value())) ==
            SSL_R_HTTP_REQUEST) {
      LastWords(400, "plain HTTP was sent to a port of HTTPS");
      return LingerOnSocket();
    }
    CloseNow();
  }

  // --- Reading.

  void AwaitRequest() {
    if (state_ == State::kClosed) return;
    if (admission_ == Admission::kRefuse) return Refuse(503, kTooMany);
    state_ = State::kIdle;
    if (parser_.begun()) return BeginRequest();
    const Phase phase = connections_->phase();
    if (phase >= Phase::kLeaving ||
        (phase == Phase::kDraining && served_any_)) {
      return CloseNow();
    }
    SetTimer(options().idle_timeout, &HttpSession::CloseNow);
    ReadSome(kIdleRead);
  }

  void ReadSome(size_t num_bytes) {
    if (reading_some_) return;
    if (peer_done_) {
      if (state_ != State::kAnswering) CloseNow();
      return;
    }
    reading_some_ = true;
    if (input_.size() != num_bytes) input_ = std::vector<char>(num_bytes);
    stream_.async_read_some(asio::buffer(input_),
                            Bound(&HttpSession::OnSomeRead));
  }

  void OnSomeRead(Error error, size_t num_bytes) {
    reading_some_ = false;
    if (state_ == State::kClosed) return;
    if (state_ == State::kLingering) {
      if (error) return CloseNow();
      if (!ending_tls_) Forget();
      return;
    }
    if (error == asio::error::eof && state_ == State::kAnswering) {
      peer_done_ = true;
      if (const auto gone = std::exchange(gone_, nullptr)) gone();
      return;
    }
    if (error) return CloseNow();
    parser_.Append({input_.data(), num_bytes});
    switch (state_) {
      case State::kIdle:
        if (!parser_.begun()) return ReadSome(kIdleRead);
        return BeginRequest();
      case State::kReading:
        return Parse();
      default:
        return ReadAhead();
    }
  }

  void ReadAhead() {
    if (parser_.buffered() < kReadAhead) ReadSome(kIdleRead);
  }

  void BeginRequest() {
    state_ = State::kReading;
    in_body_ = false;
    SetTimer(options().header_timeout, &HttpSession::OnLate);
    Parse();
  }

  void Parse() {
    using Next = HttpRequestParser::Next;
    const Next next = parser_.Advance();
    if (next == Next::kError) {
      return Refuse(parser_.error_status(), parser_.error_message());
    }
    if (next == Next::kRequest) return Answer();
    if (parser_.header_done() && !std::exchange(in_body_, true)) {
      SetTimer(options().body_timeout, &HttpSession::OnLate);
    }
    if (!ReserveBody(parser_.body_bytes())) {
      return Refuse(503, "too many bodies are being received");
    }
    if (next == Next::kNeedMore) return ReadSome(kBusyRead);
    continuing_ = true;
    static constexpr char kContinueLine[] = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(stream_,
                      asio::buffer(kContinueLine, sizeof(kContinueLine) - 1),
                      Bound(&HttpSession::OnContinued));
  }

  void OnContinued(Error error, size_t) {
    continuing_ = false;
    if (state_ == State::kClosed) return;
    if (error) return CloseNow();
    ReadSome(kBusyRead);
  }

  void OnLate() {
    if (continuing_) return CloseNow();  // it takes not even that
    Refuse(408, "the request took too long to arrive");
  }

  bool ReserveBody(size_t num_bytes) {
    if (num_bytes > body_bytes_ &&
        !connections_->ReserveBodyBytes(num_bytes - body_bytes_)) {
      return false;
    }
    if (num_bytes < body_bytes_) {
      connections_->ReleaseBodyBytes(body_bytes_ - num_bytes);
    }
    body_bytes_ = num_bytes;
    return true;
  }

  // --- Answering.

  void Answer() {
    state_ = State::kAnswering;
    StopTimer();
    ReserveBody(0);
    served_any_ = true;
    keep_alive_ = parser_.keep_alive();
    HttpRequest request = parser_.Take();
    request.peer = peer_;
    ReadAhead();
    connections_->handler()(std::make_shared<HttpExchange>(
        this->shared_from_this(), std::move(request)));
  }

  // What did not become an exchange; the connection ends with it.
  void Refuse(int status, const std::string& message) {
    state_ = State::kAnswering;
    ReserveBody(0);
    keep_alive_ = false;
    SendResponse(connections_->MakeError(status, message));
  }

  // Of a response without content or to HEAD there is only the head.
  bool HasBody(const HttpResponse& response) const {
    return !parser_.is_head() && response.status != 204 &&
           response.status != 304;
  }

  void SendResponse(const HttpResponse& response) {
    if (state_ == State::kClosed) return;
    std::string framing = ConnectionLine();
    if (response.status != 204 && response.status != 304) {
      absl::StrAppend(&framing, "content-length: ", response.body.size(),
                      "\r\n");
    }
    std::string bytes = SerializeHead(response, framing);
    if (HasBody(response)) bytes += response.body;
    head_.clear();
    ended_ = true;
    Send(std::move(bytes), nullptr);
  }

  void PrepareStream(const HttpResponse& head) {
    if (state_ == State::kClosed) return;
    in_stream_ = true;
    // HTTP/1.0 knows no chunks: there the end is the connection's.
    const bool chunked = parser_.http11();
    if (!chunked) keep_alive_ = false;
    std::string framing = ConnectionLine();
    if (!HasBody(head)) {
      body_ = Body::kNone;
    } else if (chunked) {
      body_ = Body::kChunked;
      framing += "transfer-encoding: chunked\r\n";
    } else {
      body_ = Body::kToTheEnd;
    }
    head_ = SerializeHead(head, framing);
  }

  std::string ConnectionLine() {
    if (connections_->phase() >= Phase::kDraining) keep_alive_ = false;
    if (!keep_alive_) return "connection: close\r\n";
    return parser_.http11() ? "" : "connection: keep-alive\r\n";
  }

  void Send(std::string bytes, std::function<void(bool)> written) {
    if (state_ == State::kClosed) {
      if (written) written(false);
      return;
    }
    pieces_.push_back({std::move(bytes), std::move(written)});
    if (pieces_.size() == 1) SendBlock();
  }

  void SendBlock() {
    SetTimer(options().write_timeout, &HttpSession::CloseNow);
    const std::string& bytes = pieces_.front().bytes;
    asio::async_write(stream_,
                      asio::buffer(bytes.data() + num_sent_,
                                   std::min(kBlock, bytes.size() - num_sent_)),
                      Bound(&HttpSession::OnSent));
  }

  void OnSent(Error error, size_t num_bytes) {
    if (error) CloseNow();
    if (state_ == State::kClosed) {
      for (Piece& piece : std::exchange(pieces_, {})) {
        if (piece.written) piece.written(false);
      }
      return;
    }
    num_sent_ += num_bytes;
    if (num_sent_ < pieces_.front().bytes.size()) return SendBlock();
    StopTimer();
    num_sent_ = 0;
    const auto written = std::move(pieces_.front().written);
    pieces_.erase(pieces_.begin());
    if (written) written(true);
    if (!pieces_.empty()) return SendBlock();
    if (ended_) EndResponse();
  }

  void EndResponse() {
    ended_ = false;
    in_stream_ = false;
    gone_ = nullptr;
    if (keep_alive_) return AwaitRequest();
    if constexpr (kIsTls) {
      state_ = State::kLingering;
      ending_tls_ = true;
      SetTimer(kLinger, &HttpSession::CloseNow);
      stream_.async_shutdown(Bound(&HttpSession::OnTlsShutdown));
    } else {
      LingerOnSocket();
    }
  }

  // --- The end.

  // Whether the client has answered with its own end does not matter.
  void OnTlsShutdown(Error) {
    ending_tls_ = false;
    if (state_ != State::kClosed) LingerOnSocket();
  }

  // What the client still sends is read and forgotten for a moment: closing
  // now might take the response away from it (RFC 9112, section 9.6).
  void LingerOnSocket() {
    if (peer_done_) return CloseNow();
    state_ = State::kLingering;
    Error ignored;
    Socket().shutdown(Tcp::socket::shutdown_send, ignored);
    SetTimer(kLinger, &HttpSession::CloseNow);
    forgotten_ = std::vector<char>(kBusyRead);
    if (!reading_some_) Forget();
  }

  void Forget() {
    Socket().async_read_some(asio::buffer(forgotten_),
                             Bound(&HttpSession::OnForgotten));
  }

  void OnForgotten(Error error, size_t) {
    if (state_ == State::kClosed) return;
    if (error) return CloseNow();
    Forget();
  }

  // Says it at once or not at all, and without TLS.
  void LastWords(int status, const std::string& message) {
    const HttpResponse response = connections_->MakeError(status, message);
    Error ignored;
    Socket().non_blocking(true, ignored);
    // Unread bytes would turn the close into a reset.
    char unread[1024];
    Socket().read_some(asio::buffer(unread), ignored);
    Socket().write_some(
        asio::buffer(SerializeHead(response,
                                   absl::StrCat("connection: close\r\n"
                                                "content-length: ",
                                                response.body.size(), "\r\n")) +
                     response.body),
        ignored);
  }

  void SetTimer(milliseconds duration, void (HttpSession::*late)()) {
    timer_.expires_after(duration);
    // It may have expired, and its handler wait already, when it is set anew.
    timer_.async_wait([weak = this->weak_from_this(), late,
                       epoch = ++timer_epoch_](Error error) {
      const auto self = weak.lock();
      if (!error && self != nullptr && epoch == self->timer_epoch_) {
        (self.get()->*late)();
      }
    });
  }

  void StopTimer() {
    ++timer_epoch_;
    timer_.cancel();
  }

  void CloseIfIdle() {
    if (state_ == State::kIdle && !parser_.begun()) CloseNow();
  }

  void CloseNow() {
    if (std::exchange(state_, State::kClosed) == State::kClosed) return;
    StopTimer();
    ReserveBody(0);
    Error ignored;
    Socket().shutdown(Tcp::socket::shutdown_both, ignored);
    Socket().close(ignored);
    if (const auto gone = std::exchange(gone_, nullptr)) gone();
    connections_->Remove(this);
    self_.reset();  // the caller has one more
  }

  static constexpr char kTooMany[] = "too many connections";

  const std::shared_ptr<HttpConnections> connections_;
  const std::shared_ptr<asio::ssl::context> tls_;
  Stream stream_;
  Admission admission_ = Admission::kAdmit;
  std::shared_ptr<HttpSession> self_;

  // Of the strand.
  std::string peer_;
  asio::steady_timer timer_;
  uint64_t timer_epoch_ = 0;
  State state_ = State::kIdle;

  HttpRequestParser parser_;
  std::vector<char> input_;    // of the read in flight
  bool reading_some_ = false;  // there is one
  bool in_body_ = false;
  bool continuing_ = false;  // "100 Continue" is being sent
  bool peer_done_ = false;   // will send no more
  bool ending_tls_ = false;  // the last words of TLS are being exchanged
  bool served_any_ = false;
  size_t body_bytes_ = 0;  // reserved of connections_

  bool keep_alive_ = true;
  bool in_stream_ = false;
  bool ended_ = false;  // the last piece of the response is among pieces_
  Body body_ = Body::kNone;
  std::string head_;           // of a stream, not sent yet
  std::vector<Piece> pieces_;  // the first is being sent
  size_t num_sent_ = 0;        // of it
  std::function<void()> gone_;
  std::vector<char> forgotten_;
};

}  // namespace troupe

#endif  // TROUPE_COMMON_HTTP_HTTP_SESSION_H_
