#include "common/http/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/algorithm/container.h"
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

absl::StatusOr<std::vector<Tcp::endpoint>> Resolve(asio::io_context& io,
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
  std::vector<Tcp::endpoint> endpoints;
  for (const auto& entry : resolver.resolve(host, std::to_string(port),
                                            Tcp::resolver::passive, error)) {
    if (!absl::c_linear_search(endpoints, entry.endpoint())) {
      endpoints.push_back(entry.endpoint());
    }
  }
  if (error || endpoints.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\": ", error.message()));
  }
  return endpoints;
}

// A process that runs out of descriptors can neither refuse a connection nor
// open a file: of those that it may have, five eighths are for connections, and
// up to one is for connections that are being refused.
HttpServerOptions WithinLimits(HttpServerOptions options) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return options;
  const size_t room = limit.rlim_cur / 8 * 5;
  if (options.max_connections > room) {
    spdlog::warn(
        "at most {} HTTP connections, not {}: the limit of open files is {}",
        room, options.max_connections, limit.rlim_cur);
    options.max_connections = room;
  }
  return options;
}

}  // namespace

HttpExchange::HttpExchange(std::shared_ptr<HttpConnection> connection,
                           HttpRequest request)
    : connection_(std::move(connection)), request_(std::move(request)) {}

HttpExchange::~HttpExchange() {
  absl::MutexLock lock(&mu_);
  if (phase_ != Phase::kEnded) connection_->Abandon();
}

void HttpExchange::WatchClient(std::function<void()> gone) {
  absl::MutexLock lock(&mu_);
  if (phase_ == Phase::kFresh) connection_->Watch(std::move(gone));
}

void HttpExchange::Respond(HttpResponse response) {
  absl::MutexLock lock(&mu_);
  if (phase_ != Phase::kFresh) return;
  phase_ = Phase::kEnded;
  connection_->Respond(std::move(response));
}

void HttpExchange::BeginStream(HttpResponse head) {
  absl::MutexLock lock(&mu_);
  if (phase_ != Phase::kFresh) return;
  phase_ = Phase::kStreaming;
  connection_->BeginStream(std::move(head));
}

void HttpExchange::Write(std::string piece,
                         std::function<void(bool ok)> written) {
  absl::MutexLock lock(&mu_);
  if (phase_ == Phase::kStreaming) {
    connection_->Write(std::move(piece), std::move(written));
  } else if (written) {
    connection_->Post([written = std::move(written)] { written(false); });
  }
}

void HttpExchange::EndStream() {
  absl::MutexLock lock(&mu_);
  if (phase_ != Phase::kStreaming) return;
  phase_ = Phase::kEnded;
  connection_->EndStream();
}

// Listens, accepts, and owns the threads.
struct HttpServer::State {
  State(const HttpServerOptions& options, Handler handler)
      : connections(
            std::make_shared<HttpConnections>(options, std::move(handler))),
        work(asio::make_work_guard(io())) {}

  asio::io_context& io() { return connections->io_context; }

  // On each address that the name has.
  absl::Status Listen(const std::string& address) {
    ABSL_ASSIGN_OR_RETURN(std::vector<Tcp::endpoint> endpoints,
                          Resolve(io(), address));
    uint16_t port = 0;
    for (Tcp::endpoint endpoint : endpoints) {
      if (port != 0) endpoint.port(port);
      auto acceptor = std::make_unique<Tcp::acceptor>(asio::make_strand(io()));
      const boost::system::error_code error = Open(*acceptor, endpoint);
      // A name of both families on a host that has one of them.
      if (error == asio::error::address_family_not_supported ||
          (error == boost::system::errc::address_not_available &&
           endpoints.size() > 1)) {
        continue;
      }
      if (error) {
        return absl::UnavailableError(
            absl::StrCat("cannot listen on ", address, ": ", error.message()));
      }
      port = acceptor->local_endpoint().port();
      acceptors.push_back(std::move(acceptor));
    }
    if (port == 0) {
      return absl::UnavailableError(absl::StrCat(
          "cannot listen on ", address, ": this host has no such address"));
    }
    addresses.push_back(
        absl::StrCat(address.substr(0, address.rfind(':')), ":", port));
    return absl::OkStatus();
  }

  static boost::system::error_code Open(Tcp::acceptor& acceptor,
                                        const Tcp::endpoint& endpoint) {
    boost::system::error_code error;
    acceptor.open(endpoint.protocol(), error);
    if (error) return error;
    acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
    if (error) return error;
    acceptor.bind(endpoint, error);
    if (error) return error;
    acceptor.listen(asio::socket_base::max_listen_connections, error);
    return error;
  }

  // failing: so did the last try, which has been logged.
  void Accept(Tcp::acceptor& acceptor, bool failing = false) {
    acceptor.async_accept(
        asio::make_strand(io()),
        [this, &acceptor, failing](const boost::system::error_code& error,
                                   Tcp::socket socket) {
          if (!acceptor.is_open()) return;
          if (!error) Serve(std::move(socket));
          if (!error || error == asio::error::connection_aborted) {
            return Accept(acceptor);
          }
          if (!failing) {
            spdlog::warn("cannot accept HTTP connections for now: {}",
                         error.message());
          }
          auto pause = std::make_shared<asio::steady_timer>(
              acceptor.get_executor(), kAcceptPause);
          pause->async_wait(
              [this, &acceptor, pause](const boost::system::error_code&) {
                if (acceptor.is_open()) Accept(acceptor, true);
              });
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
    absl::MutexLock lock(&shutdown_mu);
    if (std::exchange(shut_down, true)) return;
    for (auto& acceptor : acceptors) {
      asio::dispatch(acceptor->get_executor(), [&acceptor = *acceptor] {
        boost::system::error_code ignored;
        acceptor.close(ignored);
      });
    }
    connections->Enter(HttpConnections::Phase::kLeaving);
    connections->AwaitNone(absl::FromChrono(grace));
    connections->Enter(HttpConnections::Phase::kClosing);
    // Until all are closed, also those that were accepted a moment ago.
    work.reset();
    for (std::thread& thread : threads) thread.join();
    connections->Stop();
  }

  const std::shared_ptr<HttpConnections> connections;
  asio::executor_work_guard<asio::io_context::executor_type> work;
  std::unique_ptr<TlsContext> tls;
  std::vector<std::unique_ptr<Tcp::acceptor>> acceptors;
  std::vector<std::string> addresses;
  std::vector<std::thread> threads;
  absl::Mutex shutdown_mu;
  bool shut_down ABSL_GUARDED_BY(shutdown_mu) = false;
};

HttpServer::HttpServer(std::unique_ptr<State> state)
    : state_(std::move(state)) {}

HttpServer::~HttpServer() { Shutdown(milliseconds(0)); }

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const HttpServerOptions& options, Handler handler) {
  if (options.tls_cert_file.empty() != options.tls_key_file.empty()) {
    return absl::InvalidArgumentError(
        "TLS needs both a certificate and its key");
  }
  if (options.tls_cert_file.empty() && !options.tls_client_ca_file.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "clients' certificates (of ", options.tls_client_ca_file,
        ") can be demanded over TLS alone: there is no certificate for it"));
  }
  auto state =
      std::make_unique<State>(WithinLimits(options), std::move(handler));
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
  for (size_t i = 0; i < std::max<size_t>(options.num_threads, 1); ++i) {
    state->threads.emplace_back([io = &state->io()] { io->run(); });
  }
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

const std::vector<std::string>& HttpServer::addresses() const {
  return state_->addresses;
}

HttpServer::Stats HttpServer::stats() const {
  return state_->connections->stats();
}

void HttpServer::Drain() {
  state_->connections->Enter(HttpConnections::Phase::kDraining);
}

void HttpServer::Shutdown(milliseconds grace) { state_->Shutdown(grace); }

}  // namespace troupe
