#include "common/http/http_server.h"

#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/strand.hpp"
#include "common/http/http_session.h"
#include "common/http/tls_context.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace troupe {
namespace {

// Accepting pauses for so long when there are no descriptors.
constexpr milliseconds kAcceptPause{50};

absl::StatusOr<Tcp::endpoint> Resolve(asio::io_context& io,
                                      const std::string& address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is not host:port"));
  }
  std::string host = address.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  boost::system::error_code error;
  Tcp::resolver resolver(io);
  const auto results = resolver.resolve(host, std::to_string(port),
                                        Tcp::resolver::passive, error);
  if (error || results.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\": ", error.message()));
  }
  return results.begin()->endpoint();
}

}  // namespace

HttpExchange::HttpExchange(std::shared_ptr<HttpConnection> connection,
                           HttpRequest request)
    : connection_(std::move(connection)), request_(std::move(request)) {}

HttpExchange::~HttpExchange() {
  if (answered_) return;
  HttpResponse response;
  response.status = 500;
  connection_->Respond(std::move(response));
}

void HttpExchange::WatchClient(std::function<void()> gone) {
  connection_->Watch(std::move(gone));
}

void HttpExchange::Respond(HttpResponse response) {
  answered_ = true;
  connection_->Respond(std::move(response));
}

void HttpExchange::BeginStream(HttpResponse head) {
  answered_ = true;
  connection_->BeginStream(std::move(head));
}

void HttpExchange::Write(std::string piece,
                         std::function<void(bool ok)> written) {
  connection_->Write(std::move(piece), std::move(written));
}

void HttpExchange::EndStream() { connection_->EndStream(); }

struct HttpServer::State {
  State(const HttpServerOptions& options, Handler handler)
      : connections(options, std::move(handler)),
        io(static_cast<int>(options.num_threads)),
        work(asio::make_work_guard(io)) {}

  absl::Status Listen(const std::string& address) {
    ABSL_ASSIGN_OR_RETURN(const Tcp::endpoint endpoint, Resolve(io, address));
    auto acceptor = std::make_unique<Tcp::acceptor>(asio::make_strand(io));
    boost::system::error_code error;
    acceptor->open(endpoint.protocol(), error);
    if (!error) {
      acceptor->set_option(Tcp::acceptor::reuse_address(true), error);
    }
    if (!error) acceptor->bind(endpoint, error);
    if (!error)
      acceptor->listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", address, ": ", error.message()));
    }
    const size_t colon = address.rfind(':');
    addresses.push_back(absl::StrCat(address.substr(0, colon), ":",
                                     acceptor->local_endpoint(error).port()));
    acceptors.push_back(std::move(acceptor));
    return absl::OkStatus();
  }

  void Accept(Tcp::acceptor& acceptor) {
    acceptor.async_accept(
        asio::make_strand(io),
        [this, &acceptor](const boost::system::error_code& error,
                          Tcp::socket socket) {
          if (error == asio::error::operation_aborted || !acceptor.is_open()) {
            return;
          }
          if (!error) {
            Serve(std::move(socket));
          } else if (error != asio::error::connection_aborted) {
            spdlog::warn("cannot accept an HTTP connection: {}",
                         error.message());
            auto pause = std::make_shared<asio::steady_timer>(
                acceptor.get_executor(), kAcceptPause);
            pause->async_wait(
                [this, &acceptor, pause](const boost::system::error_code&) {
                  if (acceptor.is_open()) Accept(acceptor);
                });
            return;
          }
          Accept(acceptor);
        });
  }

  void Serve(Tcp::socket socket) {
    if (tls == nullptr) {
      std::make_shared<HttpSession<Tcp::socket>>(connections, std::move(socket),
                                                 nullptr)
          ->Start();
      return;
    }
    const std::shared_ptr<asio::ssl::context> context = tls->Current();
    std::make_shared<HttpSession<TlsStream>>(
        connections, TlsStream(std::move(socket), *context), context)
        ->Start();
  }

  void Shutdown(milliseconds grace) {
    if (std::exchange(shut_down, true)) return;
    for (auto& acceptor : acceptors) {
      asio::dispatch(acceptor->get_executor(), [&acceptor] {
        boost::system::error_code ignored;
        acceptor->close(ignored);
      });
    }
    connections.draining = true;
    connections.ForEach([](HttpConnection& connection) { connection.Drain(); });
    if (!connections.AwaitNone(absl::FromChrono(grace))) {
      connections.ForEach(
          [](HttpConnection& connection) { connection.Close(); });
      connections.AwaitNone(absl::InfiniteDuration());
    }
    work.reset();
    for (std::thread& thread : threads) thread.join();
  }

  HttpConnections connections;
  asio::io_context io;
  asio::executor_work_guard<asio::io_context::executor_type> work;
  std::unique_ptr<TlsContext> tls;
  std::vector<std::unique_ptr<Tcp::acceptor>> acceptors;
  std::vector<std::string> addresses;
  std::vector<std::thread> threads;
  bool shut_down = false;
};

HttpServer::HttpServer(std::unique_ptr<State> state)
    : state_(std::move(state)) {}

HttpServer::~HttpServer() { Shutdown(milliseconds(0)); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const HttpServerOptions& options, Handler handler) {
  auto state = std::make_unique<State>(options, std::move(handler));
  if (options.tls_cert_file.empty() != options.tls_key_file.empty()) {
    return absl::InvalidArgumentError(
        "TLS needs both a certificate and its key");
  }
  if (!options.tls_cert_file.empty()) {
    ABSL_ASSIGN_OR_RETURN(
        state->tls,
        TlsContext::Create(options.tls_cert_file, options.tls_key_file,
                           options.tls_client_ca_file));
  }
  for (const std::string& address : options.listen) {
    ABSL_RETURN_IF_ERROR(state->Listen(address));
  }
  for (auto& acceptor : state->acceptors) state->Accept(*acceptor);
  for (size_t i = 0; i < options.num_threads; ++i) {
    state->threads.emplace_back([io = &state->io] { io->run(); });
  }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

const std::vector<std::string>& HttpServer::addresses() const {
  return state_->addresses;
}

HttpServer::Stats HttpServer::stats() const {
  return state_->connections.stats();
}

void HttpServer::Drain() {
  state_->connections.draining = true;
  state_->connections.ForEach(
      [](HttpConnection& connection) { connection.Drain(); });
}

void HttpServer::Shutdown(milliseconds grace) { state_->Shutdown(grace); }

}  // namespace troupe
