#include <malloc.h>
#include <stdlib.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "common/http/http_server.h"
#include "gmock/gmock.h"
#include "tests/common/http/http_server_fixture.h"
#include "tests/common/http/test_certificates.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

class HttpTlsTest : public HttpServerFixture {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "http_tls_XXXXXX";
    folder_ = mkdtemp(pattern.data());
    authority_.WriteCertificate(File("ca.pem"));
    authority_.Issue("server one", File("server.pem"), File("server.key"));
    options_.tls_cert_file = File("server.pem");
    options_.tls_key_file = File("server.key");
    trusting_.ca_file = File("ca.pem");
  }
  void TearDown() override {
    HttpServerFixture::TearDown();
    std::filesystem::remove_all(folder_);
  }

  std::string File(const std::string& name) const {
    return folder_ + "/" + name;
  }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(File(name)) << text;
  }
  // Of a new connection; empty when the handshake or the request fails.
  std::string ServerName(const TlsTestClientOptions& options) {
    HttpTestClient client = Connect();
    const std::string name = client.StartTls(options);
    if (name.empty() || !client.Send(Get("/"))) return "";
    const auto response = client.Receive();
    return response.has_value() && response->status == 200 ? name : "";
  }
  // As TlsContext does, for what cannot be started.
  absl::Status StartStatus(HttpServerOptions options) {
    options.listen = {"127.0.0.1:0"};
    return HttpServer::Start(options, [](std::shared_ptr<HttpExchange>) {})
        .status();
  }

  std::string folder_;
  const TestAuthority authority_{"test authority"};
  HttpServerOptions options_;
  TlsTestClientOptions trusting_;
};

TEST_F(HttpTlsTest, Requests) {
  Start(options_);
  HttpTestClient client = Connect();
  ASSERT_EQ(client.StartTls(trusting_), "server one");
  ASSERT_TRUE(client.Send(Get("/a") + Post("/b", "body")));
  EXPECT_EQ(client.Receive()->body, "GET /a  ");
  EXPECT_EQ(client.Receive()->body, "POST /b  body");
  // Larger than records and socket buffers, both ways.
  const std::string large(2 << 20, 'x');
  ASSERT_TRUE(client.Send(Post("/l", large)));
  EXPECT_EQ(client.Receive()->body, "POST /l  " + large);
  ASSERT_TRUE(client.Send(Get("/", "Connection: close\r\n")));
  EXPECT_EQ(client.Receive()->status, 200);
  EXPECT_TRUE(client.ReceiveEnd()) << "with the alert that announces it";
}

TEST_F(HttpTlsTest, StreamsAndClientsThatLeave) {
  Start(options_);
  HttpTestClient client = Connect();
  ASSERT_EQ(client.StartTls(trusting_), "server one");
  ASSERT_TRUE(client.Send(Get("/held")));
  auto exchange = NextHeld();
  Signal gone;
  exchange->WatchClient([&gone] { gone.Raise(); });
  exchange->BeginStream({});
  EXPECT_TRUE(WriteAndWait(*exchange, "one"));
  EXPECT_TRUE(WriteAndWait(*exchange, "two"));
  exchange->EndStream();
  EXPECT_EQ(client.Receive()->body, "onetwo");
  ASSERT_TRUE(client.Send(Get("/held")));
  exchange = NextHeld();
  exchange->WatchClient([&gone] { gone.Raise(); });
  EXPECT_EQ(gone.count(), 0);
  client.Close();
  EXPECT_TRUE(gone.Await());
  exchange.reset();
  EXPECT_TRUE(AllClosed());
  EXPECT_EQ(gone.count(), 1);
}

TEST_F(HttpTlsTest, SlowReaderIsGivenUp) {
  options_.write_timeout = milliseconds(200);
  Start(options_);
  HttpTestClient client = Connect(/*receive_buffer=*/4096);
  ASSERT_EQ(client.StartTls(trusting_), "server one");
  ASSERT_TRUE(client.Send(Get("/held")));
  const auto exchange = NextHeld();
  exchange->BeginStream({});
  size_t num_bytes = 0;
  while (num_bytes < 64 << 20 &&
         WriteAndWait(*exchange, std::string(1000, 'x'))) {
    num_bytes += 1000;
  }
  EXPECT_LE(num_bytes, 512u << 10);
  EXPECT_TRUE(AllClosed());
}

TEST_F(HttpTlsTest, ClientThatDoesNotTrustTheServer) {
  Start(options_);
  TestAuthority("other").WriteCertificate(File("other.pem"));
  EXPECT_EQ(ServerName(trusting_), "server one");
  trusting_.ca_file = File("other.pem");
  EXPECT_EQ(ServerName(trusting_), "");
}

TEST_F(HttpTlsTest, PlainTextAndGarbage) {
  options_.header_timeout = milliseconds(300);
  Start(options_);
  HttpTestClient plain = Connect();
  ASSERT_TRUE(plain.Send(Get("/")));
  const auto response = plain.Receive();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 400);
  EXPECT_THAT(response->body, HasSubstr("HTTPS"));
  HttpTestClient garbage = Connect();
  ASSERT_TRUE(garbage.Send(std::string(1000, '\x01')));
  garbage.ReceiveSome();
  // One that never begins its handshake.
  HttpTestClient silent = Connect();
  EXPECT_TRUE(silent.ReceiveEnd());
  plain.Close();
  garbage.Close();
  EXPECT_TRUE(AllClosed());
  EXPECT_EQ(num_handled(), 0u);
}

TEST_F(HttpTlsTest, Http11ByAlpn) {
  Start(options_);
  trusting_.alpn = "http/1.1";
  EXPECT_EQ(ServerName(trusting_), "server one");
  trusting_.alpn = "h2";
  EXPECT_EQ(ServerName(trusting_), "");
}

TEST_F(HttpTlsTest, CertificatesAreReadAgain) {
  Start(options_);
  HttpTestClient old = Connect();
  ASSERT_EQ(old.StartTls(trusting_), "server one");
  authority_.Issue("server two", File("server.pem"), File("server.key"));
  EXPECT_TRUE(
      Eventually([this] { return ServerName(trusting_) == "server two"; }));
  // An old connection goes on.
  ASSERT_TRUE(old.Send(Get("/")));
  EXPECT_EQ(old.Receive()->status, 200);
  // A certificate whose key is not there yet; a broken one; none.
  authority_.Issue("server three", File("server.pem"), File("elsewhere.key"));
  std::this_thread::sleep_for(milliseconds(1100));  // past the next look
  EXPECT_EQ(ServerName(trusting_), "server two");
  Write("server.pem", "broken");
  std::this_thread::sleep_for(milliseconds(1100));
  EXPECT_EQ(ServerName(trusting_), "server two");
  std::filesystem::remove(File("server.pem"));
  std::this_thread::sleep_for(milliseconds(1100));
  EXPECT_EQ(ServerName(trusting_), "server two");
  authority_.Issue("server four", File("server.pem"), File("server.key"));
  EXPECT_TRUE(
      Eventually([this] { return ServerName(trusting_) == "server four"; }));
}

TEST_F(HttpTlsTest, ClientsNeedACertificate) {
  options_.tls_client_ca_file = File("ca.pem");
  Start(options_);
  EXPECT_EQ(ServerName(trusting_), "");
  const auto with = [this](const std::string& name) {
    TlsTestClientOptions options = trusting_;
    options.cert_file = File(name + ".pem");
    options.key_file = File(name + ".key");
    return options;
  };
  authority_.Issue("client", File("client.pem"), File("client.key"));
  EXPECT_EQ(ServerName(with("client")), "server one");
  TestAuthority("other").Issue("client", File("other.pem"), File("other.key"));
  EXPECT_EQ(ServerName(with("other")), "");
  authority_.Issue("client", File("late.pem"), File("late.key"), -100, -10);
  EXPECT_EQ(ServerName(with("late")), "") << "it has expired";
  EXPECT_EQ(num_handled(), 1u);
}

TEST_F(HttpTlsTest, WhatCannotBeUsedIsNamed) {
  HttpServerOptions options = options_;
  options.tls_key_file = "";
  EXPECT_EQ(StartStatus(options).code(), absl::StatusCode::kInvalidArgument);
  options = HttpServerOptions();
  options.tls_client_ca_file = File("ca.pem");
  EXPECT_EQ(StartStatus(options).code(), absl::StatusCode::kInvalidArgument)
      << "else clients would not be asked";
  const auto message = [this](const std::string& cert, const std::string& key,
                              const std::string& ca) {
    HttpServerOptions some;
    some.tls_cert_file = File(cert);
    some.tls_key_file = File(key);
    if (!ca.empty()) some.tls_client_ca_file = File(ca);
    const absl::Status status = StartStatus(some);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  Write("broken.pem", "broken");
  authority_.Issue("other", File("other.pem"), File("other.key"));
  ASSERT_EQ(std::system(absl::StrCat("openssl genrsa -out ", File("rsa.key"),
                                     " 2048 2>/dev/null && openssl ec -in ",
                                     File("server.key"),
                                     " -aes128 -passout pass:x -out ",
                                     File("locked.key"), " 2>/dev/null")
                            .c_str()),
            0);
  EXPECT_THAT(message("none.pem", "server.key", ""), HasSubstr("none.pem"));
  EXPECT_THAT(message("broken.pem", "server.key", ""), HasSubstr("broken.pem"));
  EXPECT_THAT(message("server.pem", "none.key", ""), HasSubstr("none.key"));
  EXPECT_THAT(message("server.pem", "other.key", ""), HasSubstr("other.key"));
  EXPECT_THAT(message("server.pem", "rsa.key", ""), HasSubstr("rsa.key"));
  EXPECT_THAT(message("server.pem", "locked.key", ""), HasSubstr("locked.key"));
  EXPECT_THAT(message("server.pem", "server.key", "broken.pem"),
              HasSubstr("broken.pem"));
}

TEST_F(HttpTlsTest, ShutdownWithinHandshakesAndStreams) {
  options_.num_threads = 2;
  Start(options_);
  std::vector<HttpTestClient> clients;
  std::vector<std::shared_ptr<HttpExchange>> exchanges;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(Connect());
    if (i % 2 == 0) continue;
    ASSERT_EQ(clients.back().StartTls(trusting_), "server one");
    ASSERT_TRUE(clients.back().Send(Get("/held")));
    exchanges.push_back(NextHeld());
    exchanges.back()->BeginStream({});
    EXPECT_TRUE(WriteAndWait(*exchanges.back(), "a"));
  }
  server_.reset();
  for (auto& exchange : exchanges) EXPECT_FALSE(WriteAndWait(*exchange, "b"));
}

// Printed, not judged.
TEST_F(HttpTlsTest, MemoryOfIdleStreams) {
  Start(options_);
  constexpr size_t kCount = 200;
  std::vector<HttpTestClient> clients;
  std::vector<std::shared_ptr<HttpExchange>> exchanges;
  const size_t begin = mallinfo2().uordblks;
  for (size_t i = 0; i < kCount; ++i) {
    clients.push_back(Connect());
    ASSERT_EQ(clients.back().StartTls(trusting_), "server one");
    ASSERT_TRUE(clients.back().Send(Get("/held")));
    exchanges.push_back(NextHeld());
    exchanges.back()->BeginStream({});
    ASSERT_TRUE(WriteAndWait(*exchanges.back(), "data: {}\n\n"));
    clients.back().ForgetTls();
  }
  std::printf("%zu idle TLS streams: %zu bytes each\n", kCount,
              (mallinfo2().uordblks - begin) / kCount);
  server_->Shutdown(milliseconds(0));
}

}  // namespace
}  // namespace troupe
