// Listeners and channels with certificates of every kind, over real
// connections on loopback. The certificates come from the code of
// `troupe certs`.
#include "common/rpc/credentials.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "common/rpc/openssl_ptr.h"
#include "common/rpc/rpc_channel.h"
#include "common/rpc/rpc_server.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "protos/admin.grpc.pb.h"
#include "protos/expert.grpc.pb.h"
#include "protos/health.grpc.pb.h"
#include "spdlog/sinks/ringbuffer_sink.h"
#include "spdlog/spdlog.h"
#include "tests/fakes/temp_dir.h"
#include "tools/cli/certificate_authority.h"
#include "tools/cli/certs.h"

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
namespace health = grpc::health::v1;

constexpr char kCluster[] = "blue";

// The process's log, from a test's start on. The logger is never replaced:
// gRPC's threads may use it at any time.
class LogCapture {
 public:
  LogCapture() : start_(absl::StrCat("start of log ", ++num_captures)) {
    Sink();
    spdlog::info("{}", start_);
  }
  std::string Lines() const {
    std::string lines;
    for (const std::string& line : Sink().last_formatted()) {
      if (line.find(start_) != std::string::npos) lines.clear();
      lines += line;
    }
    return lines;
  }
  // Until there is such a line.
  bool Await(const std::string& part) const {
    for (int i = 0; i < 2000; ++i) {
      if (Lines().find(part) != std::string::npos) return true;
      std::this_thread::sleep_for(milliseconds(5));
    }
    return false;
  }

 private:
  static spdlog::sinks::ringbuffer_sink_mt& Sink() {
    static const auto sink = [] {
      auto made = std::make_shared<spdlog::sinks::ringbuffer_sink_mt>(10000);
      spdlog::set_default_logger(
          std::make_shared<spdlog::logger>("test", made));
      return made;
    }();
    return *sink;
  }
  static inline int num_captures = 0;
  const std::string start_;
};

class CredentialsTest : public testing::Test {
 protected:
  // A set of certificates of its own.
  std::string Set(const std::string& name,
                  const std::string& cluster = kCluster) {
    CertsOptions options;
    options.dir = dir_.File(name);
    options.cluster = cluster;
    EXPECT_EQ(InitCerts(options), absl::OkStatus());
    return options.dir;
  }

  static CertificateAuthority Authority(const std::string& set) {
    return *CertificateAuthority::Load(
        {ReadFile(set + "/ca.pem"), ReadFile(set + "/ca.key")});
  }

  // A certificate that `troupe certs` would not make, in files of its own.
  TlsOptions Files(const std::string& set, const std::string& name,
                   const CertificateRequest& request) {
    const CertificateAndKey pair = *Authority(set).Issue(request);
    WriteFile(dir_.File(name + ".pem"), pair.certificate_pem);
    WriteFile(dir_.File(name + ".key"), pair.key_pem);
    TlsOptions options;
    options.cert_file = dir_.File(name + ".pem");
    options.key_file = dir_.File(name + ".key");
    options.ca_file = set + "/ca.pem";
    return options;
  }
  static CertificateRequest Request(const std::vector<std::string>& uris) {
    CertificateRequest request;
    request.common_name = "test";
    request.uris = uris;
    request.not_before =
        std::chrono::system_clock::now() - std::chrono::hours(48);
    request.not_after =
        std::chrono::system_clock::now() + std::chrono::hours(48);
    return request;
  }

  static std::shared_ptr<const Tls> Load(TlsOptions options) {
    options.reload_interval = milliseconds(50);
    auto created = Tls::Create(options);
    EXPECT_TRUE(created.ok()) << created.status();
    return created.ok() ? *created : nullptr;
  }
  static std::shared_ptr<const Tls> Load(const std::string& set, TlsRole role) {
    return Load(CertsOf(set, role));
  }

  // What an expert process lets in.
  static TlsAccess ExpertAccess() {
    TlsAccess access;
    access.methods[TlsRole::kRouter] = {"/troupe.v1.Expert/"};
    access.methods[TlsRole::kGateway] = {"/troupe.v1.Expert/GetStats"};
    access.methods[TlsRole::kAdmin] = {"/troupe.v1.ExpertAdmin/"};
    return access;
  }

  // With the services of an expert process, all of whose methods answer
  // UNIMPLEMENTED: a call that gets so far was let in.
  void StartServer(
      std::shared_ptr<grpc::ServerCredentials> credentials,
      std::shared_ptr<grpc::ServerCredentials> admin_credentials = nullptr) {
    RpcServerOptions options;
    options.listen = {"127.0.0.1:0"};
    options.credentials = std::move(credentials);
    if (admin_credentials != nullptr) {
      options.admin_listen = {"127.0.0.1:0"};
      options.admin_credentials = std::move(admin_credentials);
    }
    auto server = RpcServer::Start(options, {&expert_, &admin_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->SetServing(true);
  }
  const std::string& address() const { return server_->addresses()[0]; }

  static grpc::Status Check(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    SetDeadline(context, std::chrono::steady_clock::now() + milliseconds(8000));
    health::HealthCheckResponse response;
    return health::Health::NewStub(channel)->Check(&context, {}, &response);
  }
  // "" when a client with these credentials is let in, else what it is told.
  std::string Connect(std::shared_ptr<grpc::ChannelCredentials> credentials,
                      size_t listener = 0) {
    const grpc::Status status =
        Check(MakeChannel(server_->addresses()[listener], credentials));
    if (status.ok()) return "";
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    return status.error_message();
  }
  std::string Connect(const std::string& set, TlsRole role) {
    return Connect(Load(set, role)->ForChannels(TlsRole::kExpert));
  }

  // gRPC's own credentials, which know nothing of roles: a stranger's program.
  static std::shared_ptr<grpc::ChannelCredentials> Foreign(
      const TlsOptions& files, const std::string& ca_pem) {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = ca_pem;
    if (!files.cert_file.empty()) {
      options.pem_cert_chain = ReadFile(files.cert_file);
      options.pem_private_key = ReadFile(files.key_file);
    }
    return grpc::SslCredentials(options);
  }

  // The certificate that the listener shows to new connections.
  std::string ShownCertificate() const {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in name = {};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    name.sin_port = htons(static_cast<uint16_t>(
        std::stoi(address().substr(address().rfind(':') + 1))));
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
    SSL_CTX* context = SSL_CTX_new(TLS_client_method());
    SSL* ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    const unsigned char alpn[] = "\x02h2";
    SSL_set_alpn_protos(ssl, alpn, 3);
    std::string pem;
    if (SSL_connect(ssl) == 1) {
      X509* certificate = SSL_get1_peer_certificate(ssl);
      const BioPtr bio(BIO_new(BIO_s_mem()));
      PEM_write_bio_X509(bio.get(), certificate);
      pem = BioBytes(bio.get());
      X509_free(certificate);
    }
    SSL_free(ssl);
    SSL_CTX_free(context);
    close(fd);
    return pem;
  }

  const TempDir dir_;
  v1::Expert::Service expert_;
  v1::ExpertAdmin::Service admin_;
  std::unique_ptr<RpcServer> server_;
};

TEST_F(CredentialsTest, TheRightRolesOfTheClusterAreLetIn) {
  const std::string set = Set("set");
  StartServer(Load(set, TlsRole::kExpert)->ForServer(ExpertAccess()));
  EXPECT_EQ(Connect(set, TlsRole::kRouter), "");
  EXPECT_EQ(Connect(set, TlsRole::kGateway), "");
  EXPECT_EQ(Connect(set, TlsRole::kAdmin), "");
}

TEST_F(CredentialsTest, AnotherRoleIsRefusedWithALine) {
  const std::string set = Set("set");
  const LogCapture log;
  StartServer(Load(set, TlsRole::kExpert)->ForServer(ExpertAccess()));
  EXPECT_NE(Connect(set, TlsRole::kExpert), "");
  EXPECT_TRUE(log.Await(
      "a client was refused: its certificate is spiffe://blue/troupe/expert; "
      "allowed here: gateway, router, admin of cluster blue"))
      << log.Lines();
  // The control: where experts are let in, the same certificate is.
  TlsAccess access = ExpertAccess();
  access.methods[TlsRole::kExpert] = {};
  StartServer(Load(set, TlsRole::kExpert)->ForServer(access));
  EXPECT_EQ(Connect(set, TlsRole::kExpert), "");
}

TEST_F(CredentialsTest, AnotherCaIsRefusedByBothSides) {
  const std::string set = Set("set");
  const std::string other = Set("other");  // of the same cluster name
  StartServer(Load(set, TlsRole::kExpert)->ForServer(ExpertAccess()));
  // The client refuses the server.
  EXPECT_NE(Connect(other, TlsRole::kRouter), "");
  // The server refuses a client that trusts it.
  EXPECT_NE(Connect(Foreign(CertsOf(other, TlsRole::kRouter),
                            ReadFile(set + "/ca.pem"))),
            "");
  // The control: with the CA's own certificate that program is let in.
  EXPECT_EQ(Connect(Foreign(CertsOf(set, TlsRole::kRouter),
                            ReadFile(set + "/ca.pem"))),
            "");
}

TEST_F(CredentialsTest, AnotherClusterOfTheSameCaIsRefusedByBothSides) {
  const std::string set = Set("set");
  const LogCapture log;
  const TlsOptions green =
      Files(set, "green", Request({"spiffe://green/troupe/router"}));
  StartServer(Load(set, TlsRole::kExpert)->ForServer(ExpertAccess()));
  EXPECT_THAT(
      Connect(Load(green)->ForChannels(TlsRole::kExpert)),
      HasSubstr("the server was refused: its certificate is "
                "spiffe://blue/troupe/expert; wanted is the role expert of "
                "cluster green"));
  EXPECT_NE(Connect(Foreign(green, ReadFile(set + "/ca.pem"))), "");
  EXPECT_TRUE(
      log.Await("its certificate is spiffe://green/troupe/router; this "
                "is cluster blue"))
      << log.Lines();
}

TEST_F(CredentialsTest, AClientRefusesAServerOfAnotherRole) {
  const std::string set = Set("set");
  TlsAccess access;
  access.methods[TlsRole::kRouter] = {};
  StartServer(Load(set, TlsRole::kGateway)->ForServer(access));
  const auto router = Load(set, TlsRole::kRouter);
  // The name of the host is right, and the CA: it is the role.
  EXPECT_THAT(Connect(router->ForChannels(TlsRole::kExpert)),
              HasSubstr("its certificate is spiffe://blue/troupe/gateway; "
                        "wanted is the role expert of cluster blue"));
  EXPECT_EQ(Connect(router->ForChannels(TlsRole::kGateway)), "");
}

TEST_F(CredentialsTest, WithoutACertificateNobodyIsLetInWhereOneIsDemanded) {
  const std::string set = Set("set");
  TlsOptions ca_alone;
  ca_alone.ca_file = set + "/ca.pem";
  const auto nobody = Load(ca_alone)->ForChannels(TlsRole::kExpert);
  const auto expert = Load(set, TlsRole::kExpert);
  StartServer(expert->ForServer(ExpertAccess()));
  EXPECT_NE(Connect(nobody), "");
  // The control: one that asks, but does not demand.
  TlsAccess access = ExpertAccess();
  access.demand_certificate = false;
  access.others = {"/troupe.v1.Expert/GetStats"};
  StartServer(expert->ForServer(access));
  EXPECT_EQ(Connect(nobody), "");
  // What is shown must be good all the same.
  EXPECT_NE(Connect(set, TlsRole::kExpert), "");
  EXPECT_EQ(Connect(set, TlsRole::kRouter), "");
}

TEST_F(CredentialsTest, AnExpiredCertificateIsRefusedByBothSides) {
  const std::string set = Set("set");
  CertificateRequest request = Request({"spiffe://blue/troupe/router"});
  request.hosts = {"127.0.0.1"};
  const TlsOptions good = Files(set, "good", request);
  request.not_after = std::chrono::system_clock::now() - std::chrono::hours(1);
  const TlsOptions expired = Files(set, "expired", request);
  StartServer(Load(set, TlsRole::kExpert)->ForServer(ExpertAccess()));
  const std::string ca = ReadFile(set + "/ca.pem");
  EXPECT_NE(Connect(Foreign(expired, ca)), "");
  EXPECT_EQ(Connect(Foreign(good, ca)), "");
  // A process does not start with one.
  EXPECT_THAT(std::string(Tls::Create(expired).status().message()),
              AllOf(HasSubstr("expired.pem: expired at "), HasSubstr("Z")));

  // A server with one, which could be none of ours.
  grpc::SslServerCredentialsOptions server_options;
  for (const auto& files : {expired, good}) {
    server_options.pem_key_cert_pairs = {
        {ReadFile(files.key_file), ReadFile(files.cert_file)}};
    StartServer(grpc::SslServerCredentials(server_options));
    const std::string told =
        Connect(Load(set, TlsRole::kGateway)->ForChannels(TlsRole::kRouter));
    if (files.cert_file == good.cert_file) {
      EXPECT_EQ(told, "");
    } else {
      EXPECT_THAT(told, HasSubstr("certificate verify failed"));
    }
  }
}

TEST_F(CredentialsTest, CallsAreForTheirRoles) {
  const std::string set = Set("set");
  const LogCapture log;
  StartServer(Load(set, TlsRole::kExpert)->ForServer(ExpertAccess()));
  const auto status_of = [&](TlsRole role, bool admin_call) {
    const auto channel =
        MakeChannel(address(), Load(set, role)->ForChannels(TlsRole::kExpert));
    grpc::ClientContext context;
    SetDeadline(context, std::chrono::steady_clock::now() + milliseconds(8000));
    if (admin_call) {
      v1::ListExpertsResponse response;
      return v1::ExpertAdmin::NewStub(channel)->ListExperts(&context, {},
                                                            &response);
    }
    v1::ExpertStats stats;
    return v1::Expert::NewStub(channel)->GetStats(&context, {}, &stats);
  };
  // "Unimplemented": it was let through.
  EXPECT_EQ(status_of(TlsRole::kRouter, false).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(status_of(TlsRole::kAdmin, true).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(status_of(TlsRole::kGateway, false).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  const grpc::Status refused = status_of(TlsRole::kRouter, true);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(refused.error_message(),
            "/troupe.v1.ExpertAdmin/ListExperts is not for the role router at "
            "this address");
  EXPECT_THAT(log.Lines(), HasSubstr("a call was refused: /troupe.v1.Exper"));
  EXPECT_EQ(status_of(TlsRole::kAdmin, false).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(CredentialsTest, TheAdminPortIsForAdminsAlone) {
  const std::string set = Set("set");
  const auto expert = Load(set, TlsRole::kExpert);
  TlsAccess main_access = ExpertAccess();
  main_access.methods.erase(TlsRole::kAdmin);
  TlsAccess admin_access;
  admin_access.methods[TlsRole::kAdmin] = {"/troupe.v1.ExpertAdmin/"};
  StartServer(expert->ForServer(main_access), expert->ForServer(admin_access));
  for (const TlsRole role : kAllTlsRoles) {
    SCOPED_TRACE(TlsRoleName(role));
    const auto credentials = Load(set, role)->ForChannels(TlsRole::kExpert);
    const bool is_admin = role == TlsRole::kAdmin;
    EXPECT_EQ(Connect(credentials, 1) == "", is_admin);
    EXPECT_EQ(Connect(credentials, 0) == "",
              role == TlsRole::kRouter || role == TlsRole::kGateway);
  }
}

TEST_F(CredentialsTest, ARotatedCertificateCostsNoStream) {
  const std::string set = Set("set");
  const LogCapture log;
  const auto server_tls = Load(set, TlsRole::kExpert);
  const auto client_tls = Load(set, TlsRole::kRouter);
  StartServer(server_tls->ForServer(ExpertAccess()));
  const auto channel =
      MakeChannel(address(), client_tls->ForChannels(TlsRole::kExpert));
  grpc::ClientContext context;
  const auto stream = health::Health::NewStub(channel)->Watch(&context, {});
  health::HealthCheckResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  const std::string before = ReadFile(set + "/expert.pem");
  EXPECT_EQ(ShownCertificate(), before);

  ASSERT_EQ(RenewCerts(set, 30, {}), absl::OkStatus());
  const std::string after = ReadFile(set + "/expert.pem");
  ASSERT_NE(after, before);
  for (int i = 0; i < 2000 && ShownCertificate() != after; ++i) {
    std::this_thread::sleep_for(milliseconds(5));  // nothing tells of it
  }
  EXPECT_EQ(ShownCertificate(), after);
  // A new connection with the new certificates of both.
  EXPECT_EQ(Connect(client_tls->ForChannels(TlsRole::kExpert)), "");
  EXPECT_THAT(log.Lines(), HasSubstr("certificate files read again"));
  EXPECT_LT(server_tls->SecondsUntilExpiry(), 30.1 * 86400);
  EXPECT_GT(server_tls->SecondsUntilExpiry(), 29.9 * 86400);
  // The stream from before still tells of changes.
  server_->SetServing(false);
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  context.TryCancel();
}

TEST_F(CredentialsTest, ANewCaIsTakenUpByBothSides) {
  const std::string set = Set("set");
  const std::string other = Set("other");
  const auto server_tls = Load(set, TlsRole::kExpert);
  StartServer(server_tls->ForServer(ExpertAccess()));
  EXPECT_NE(Connect(other, TlsRole::kRouter), "");
  // First both CAs are trusted, then certificates of the new one are used.
  WriteFile(set + "/ca.pem",
            ReadFile(set + "/ca.pem") + ReadFile(other + "/ca.pem"));
  WriteFile(other + "/ca.pem", ReadFile(set + "/ca.pem"));
  std::string told = "not asked";
  for (int i = 0; i < 400 && told != ""; ++i) {
    if (i > 0) std::this_thread::sleep_for(milliseconds(20));
    told = Connect(other, TlsRole::kRouter);
  }
  EXPECT_EQ(told, "");
}

TEST_F(CredentialsTest, ABadNewCertificateLeavesTheOldOne) {
  const std::string set = Set("set");
  const LogCapture log;
  const auto server_tls = Load(set, TlsRole::kExpert);
  StartServer(server_tls->ForServer(ExpertAccess()));
  const std::string good = ReadFile(set + "/expert.pem");
  const struct {
    const char* file;
    std::string bytes;
    const char* problem;
  } kCases[] = {
      {"/expert.pem", "garbage", "expert.pem: has no certificate in PEM form"},
      {"/expert.pem", good.substr(0, good.size() / 2),
       "expert.pem: certificate 1 in it cannot be read"},
      {"/expert.pem", "", "expert.pem: has no certificate"},
      {"/expert.pem", ReadFile(set + "/router.pem"),
       "expert.pem: is spiffe://blue/troupe/router; wanted is one of the role "
       "expert"},
      {"/expert.key", ReadFile(set + "/router.key"),
       "expert.key: is the key of another certificate"},
      {"/expert.key", "", "expert.key: has no private key in PEM form"},
      {"/ca.pem", "", "ca.pem: has no certificate in PEM form"},
  };
  for (const auto& bad : kCases) {
    SCOPED_TRACE(bad.problem);
    const std::string before = ReadFile(set + bad.file);
    WriteFile(set + bad.file, bad.bytes);
    EXPECT_TRUE(log.Await(absl::StrCat(
        "new certificate files are not used: ", set, "/", bad.problem)))
        << log.Lines();
    // The client's own files are whole.
    WriteFile(dir_.File("ca.pem"), before);
    TlsOptions client = CertsOf(set, TlsRole::kRouter);
    if (std::string(bad.file) == "/ca.pem") {
      client.ca_file = dir_.File("ca.pem");
    }
    EXPECT_EQ(Connect(Load(client)->ForChannels(TlsRole::kExpert)), "");
    EXPECT_EQ(ShownCertificate(), good);
    WriteFile(set + bad.file, before);
  }
  // No part of a key in any line.
  EXPECT_THAT(log.Lines(), Not(HasSubstr("PRIVATE KEY")));
}

TEST_F(CredentialsTest, FilesThatDoNotFitAreNamed) {
  const std::string set = Set("set");
  const auto error = [](const TlsOptions& options) {
    return std::string(Tls::Create(options).status().message());
  };
  TlsOptions options = CertsOf(set, TlsRole::kExpert);
  options.key_file = set + "/nothing.key";
  EXPECT_THAT(error(options),
              HasSubstr("nothing.key: cannot be read: No such"));
  options = CertsOf(set, TlsRole::kExpert);
  options.key_file = "";
  EXPECT_THAT(error(options), HasSubstr("go together"));
  options = CertsOf(set, TlsRole::kExpert);
  options.key_file = set + "/router.key";
  EXPECT_THAT(error(options),
              HasSubstr("router.key: is the key of another certificate"));
  options = CertsOf(set, TlsRole::kExpert);
  options.roles = {TlsRole::kRouter, TlsRole::kGateway};
  EXPECT_THAT(error(options),
              HasSubstr("expert.pem: is spiffe://blue/troupe/expert; wanted is "
                        "one of the role router or gateway"));
  options = Files(
      set, "two",
      Request({"spiffe://blue/troupe/router", "spiffe://blue/troupe/admin"}));
  EXPECT_THAT(error(options), HasSubstr("several spiffe URIs"));
  options = Files(set, "odd", Request({"spiffe://blue/troupe/root"}));
  EXPECT_THAT(error(options), HasSubstr("not spiffe://CLUSTER/troupe/ROLE"));
  options = Files(set, "none", Request({}));
  options.roles = {TlsRole::kExpert};
  EXPECT_THAT(error(options), HasSubstr("a certificate without a role"));
}

TEST_F(CredentialsTest, PlainTextAndTlsDoNotMix) {
  const std::string set = Set("set");
  StartServer(Load(set, TlsRole::kExpert)->ForServer(ExpertAccess()));
  EXPECT_NE(Connect(nullptr), "");
  StartServer(nullptr);
  EXPECT_THAT(Connect(set, TlsRole::kRouter), HasSubstr("wrong version"));
  EXPECT_EQ(Connect(nullptr), "");
}

TEST_F(CredentialsTest, AGatewayMayHaveTheCertificateOfItsHost) {
  const std::string set = Set("set");
  TlsAccess access;
  access.others = {"/troupe.v1.Expert/"};
  access.demand_certificate = false;
  TlsOptions ca_alone;
  ca_alone.ca_file = set + "/ca.pem";
  const auto client = Load(ca_alone);
  CertificateRequest request = Request({});
  request.hosts = {"127.0.0.1"};
  StartServer(Load(Files(set, "here", request))->ForServer(access));
  EXPECT_EQ(Connect(client->ForChannels(TlsRole::kGateway)), "");
  EXPECT_THAT(Connect(client->ForChannels(TlsRole::kRouter)),
              HasSubstr("names no role; wanted is the role router"));
  request.hosts = {"example.org"};
  StartServer(Load(Files(set, "elsewhere", request))->ForServer(access));
  EXPECT_THAT(Connect(client->ForChannels(TlsRole::kGateway)),
              HasSubstr("names neither a role nor the host"));
}

TEST(ExpiryWarningTest, ComesInTheLastWeek) {
  const WallTime now = std::chrono::system_clock::now();
  const auto days = [](double count) {
    return std::chrono::duration_cast<WallTime::duration>(
        std::chrono::duration<double, std::ratio<86400>>(count));
  };
  EXPECT_EQ(ExpiryWarning("/c.pem", now + days(7.1), now), "");
  EXPECT_EQ(ExpiryWarning("/c.pem", WallTime::max(), now), "");
  EXPECT_THAT(ExpiryWarning("/c.pem", now + days(6.5), now),
              HasSubstr("/c.pem: expires in 6.5 days, at "));
  EXPECT_THAT(ExpiryWarning("/c.pem", now - days(1), now),
              HasSubstr("/c.pem: expired at "));
}

TEST_F(CredentialsTest, TheLastWeekIsWarnedOfAtTheStart) {
  const std::string set = Set("set");
  const LogCapture log;
  Load(set, TlsRole::kExpert);
  EXPECT_THAT(log.Lines(), Not(HasSubstr("expires in")));
  const auto soon = Load(
      Files(set, "soon", Request({"spiffe://blue/troupe/expert"})));  // 48 h
  EXPECT_THAT(log.Lines(), HasSubstr("soon.pem: expires in 2.0 days"));
  EXPECT_NEAR(soon->SecondsUntilExpiry(), 48 * 3600, 60);
}

TEST(TlsIdentityTest, ReadsWhatItWrites) {
  for (const TlsRole role : kAllTlsRoles) {
    const TlsIdentity identity = {"a-b.c_9", role};
    EXPECT_EQ(**FindTlsIdentity({"https://x", TlsUri(identity)}), identity);
  }
  EXPECT_FALSE(FindTlsIdentity({"https://x"})->has_value());
  EXPECT_FALSE(FindTlsIdentity({})->has_value());
  for (const char* uri :
       {"spiffe:///troupe/router", "spiffe://A/troupe/router",
        "spiffe://a/troupe/", "spiffe://a/troupe/router/",
        "spiffe://a/troupe/ROUTER", "spiffe://a%00/troupe/router"}) {
    EXPECT_FALSE(FindTlsIdentity({uri}).ok()) << uri;
  }
  // Another system's are no role here.
  for (const char* uri : {"spiffe://", "spiffe://a", "spiffe://a/ns/router",
                          "spiffe://a/b/troupe/router", "spiffe://a/troupe"}) {
    EXPECT_FALSE(FindTlsIdentity({uri})->has_value()) << uri;
  }
  EXPECT_FALSE(
      FindTlsIdentity({"spiffe://a/ns/x", "spiffe://a/troupe/router"}).ok());
  EXPECT_FALSE(IsClusterName(""));
  EXPECT_FALSE(IsClusterName(std::string(64, 'a')));
  EXPECT_TRUE(IsClusterName(std::string(63, 'a')));
}

}  // namespace
}  // namespace troupe
