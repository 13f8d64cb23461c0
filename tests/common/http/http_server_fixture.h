// A server on loopback whose requests a test answers by hand.
#ifndef TROUPE_TESTS_COMMON_HTTP_HTTP_SERVER_FIXTURE_H_
#define TROUPE_TESTS_COMMON_HTTP_HTTP_SERVER_FIXTURE_H_

#include <unistd.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/http/http_server.h"
#include "gtest/gtest.h"
#include "tests/common/http/http_test_client.h"

namespace troupe {

// Polls, for at most ten seconds.
inline bool Eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

class HttpServerFixture : public ::testing::Test {
 protected:
  void Start(HttpServerOptions options = HttpServerOptions()) {
    options.listen = {"127.0.0.1:0"};
    auto server = HttpServer::Start(
        options, [this](std::shared_ptr<HttpExchange> exchange) {
          Handle(std::move(exchange));
        });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  // Held exchanges may go before or after the server.
  void TearDown() override { server_.reset(); }

  std::string address() const { return server_->addresses()[0]; }
  HttpTestClient Connect(int receive_buffer = 0) {
    return HttpTestClient(address(), receive_buffer);
  }
  bool AllClosed() {
    return Eventually([this] { return server_->stats().open == 0; });
  }

  static std::string Get(const std::string& path,
                         const std::string& headers = "") {
    return absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: h\r\n", headers,
                        "\r\n");
  }
  static std::string Post(const std::string& path, const std::string& body) {
    return absl::StrCat("POST ", path,
                        " HTTP/1.1\r\nHost: h\r\nContent-Length: ", body.size(),
                        "\r\n\r\n", body);
  }

  // The next request for "/held...", which the test answers. Null when none
  // comes in ten seconds.
  std::shared_ptr<HttpExchange> NextHeld() {
    absl::MutexLock lock(&mu_);
    const auto any = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return !held_.empty();
    };
    if (!mu_.AwaitWithTimeout(absl::Condition(&any), absl::Seconds(10))) {
      return nullptr;
    }
    std::shared_ptr<HttpExchange> exchange = std::move(held_.front());
    held_.pop_front();
    return exchange;
  }
  size_t num_handled() {
    absl::MutexLock lock(&mu_);
    return num_handled_;
  }

  static HttpResponse Ok(std::string body) {
    HttpResponse response;
    response.body = std::move(body);
    return response;
  }

  std::unique_ptr<HttpServer> server_;

 private:
  // All but "/held..." is answered with what was asked.
  void Handle(std::shared_ptr<HttpExchange> exchange) {
    const HttpRequest& request = exchange->request();
    absl::MutexLock lock(&mu_);
    ++num_handled_;
    if (request.path.rfind("/held", 0) == 0) {
      held_.push_back(std::move(exchange));
    } else {
      exchange->Respond(Ok(absl::StrCat(request.method, " ", request.path, " ",
                                        request.query, " ", request.body)));
    }
  }

  absl::Mutex mu_;
  std::deque<std::shared_ptr<HttpExchange>> held_ ABSL_GUARDED_BY(mu_);
  size_t num_handled_ ABSL_GUARDED_BY(mu_) = 0;
};

// A flag that a callback raises.
class Signal {
 public:
  void Raise() {
    absl::MutexLock lock(&mu_);
    ++count_;
  }
  int count() const {
    absl::MutexLock lock(&mu_);
    return count_;
  }
  bool Await() const {
    const auto raised = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return count_ > 0;
    };
    absl::ReaderMutexLock lock(&mu_);
    return mu_.AwaitWithTimeout(absl::Condition(&raised), absl::Seconds(10));
  }

 private:
  mutable absl::Mutex mu_;
  int count_ ABSL_GUARDED_BY(mu_) = 0;
};

// Of one Write: what `written` said.
inline bool WriteAndWait(HttpExchange& exchange, std::string piece) {
  struct Result {
    Signal done;
    std::atomic<bool> ok{false};
  };
  auto result = std::make_shared<Result>();
  exchange.Write(std::move(piece), [result](bool ok) {
    result->ok = ok;
    result->done.Raise();
  });
  EXPECT_TRUE(result->done.Await());
  return result->ok;
}

}  // namespace troupe

#endif  // TROUPE_TESTS_COMMON_HTTP_HTTP_SERVER_FIXTURE_H_
