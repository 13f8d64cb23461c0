// TLS between real processes, with certificates from `troupe certs`.
#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/child_process.h"
#include "tests/fakes/temp_dir.h"
#include "tests/fakes/troupe_run.h"

namespace troupe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kModel[] = TROUPE_SOURCE_DIR "/tests/goldens/mixtral_window";
using Words = std::vector<std::string>;

Words Join(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// A service as a child, whose log is read while it runs.
class Service {
 public:
  Service(const std::string& binary, const Words& flags)
      : process_(Join({absl::StrCat(TROUPE_BINARY_DIR, "/troupe-", binary),
                       kModel, "--die-with-parent"},
                      flags),
                 dir_.File("log")) {}

  // The address behind the text in the line of that number that has it.
  std::string Address(const std::string& text, size_t number) const {
    const SteadyTime limit =
        std::chrono::steady_clock::now() + std::chrono::seconds(60);
    do {
      const std::string log = process_.Log();
      size_t at = 0;
      for (size_t i = 0; i <= number && at != std::string::npos; ++i) {
        at = log.find(text, at);
        if (at != std::string::npos) at += text.size();
      }
      if (at != std::string::npos && log.find('\n', at) != std::string::npos) {
        return log.substr(at, log.find_first_of(" \n", at) - at);
      }
      std::this_thread::sleep_for(milliseconds(5));  // a log tells nobody
    } while (std::chrono::steady_clock::now() < limit);
    ADD_FAILURE() << "no \"" << text << "\" in:\n" << process_.Log();
    return "";
  }
  std::string Log() const { return process_.Log(); }
  // Its exit status, when it has ended by itself.
  int Wait() { return process_.Wait(); }

 private:
  const TempDir dir_;
  ChildProcess process_;
};

class SecurityTest : public testing::Test {
 protected:
  SecurityTest() {
    setenv("XDG_RUNTIME_DIR", dir_.path().c_str(), 1);
    TroupeRun init({"certs", "init", certs_, "--cluster", "demo"});
    EXPECT_EQ(init.Wait(), 0) << init.errors();
  }

  Words Flags(const std::string& role) const {
    return {"--tls-cert", certs_ + "/" + role + ".pem",
            "--tls-key",  certs_ + "/" + role + ".key",
            "--tls-ca",   certs_ + "/ca.pem"};
  }

  // `troupe serve` over TCP; the gateway's address goes to address_.
  std::unique_ptr<TroupeRun> Serve(const Words& flags) {
    auto cluster = std::make_unique<TroupeRun>(
        Join({"serve", kModel, "--listen", "127.0.0.1:0", "--http", "none",
              "--transport", "tcp", "--experts", "2", "--threads", "1"},
             flags));
    const std::string line = cluster->AwaitLine("ready: gateway on ");
    const size_t at = line.find("gateway on ") + 11;
    address_ = line.substr(at, line.find(',') - at);
    return cluster;
  }

  Words Generate(const Words& flags) const {
    return Join({"generate", "Once", "--address", address_, "--seed", "7",
                 "--temperature", "0.8", "--max-tokens", "24", "-q"},
                flags);
  }

  const TempDir dir_;
  const std::string certs_ = dir_.File("certs");
  std::string address_;
};

TEST_F(SecurityTest, CertsMakesASetAndNeverOverwritesOne) {
  for (const char* role :
       {"ca", "gateway", "router", "expert", "admin", "client"}) {
    struct stat info = {};
    ASSERT_EQ(stat((certs_ + "/" + role + ".key").c_str(), &info), 0) << role;
    EXPECT_EQ(info.st_mode & 0777, 0600u) << role;
    EXPECT_TRUE(std::filesystem::exists(certs_ + "/" + role + ".pem"));
  }
  const std::string before = ReadFile(certs_ + "/ca.key");
  TroupeRun again({"certs", "init", certs_, "--cluster", "demo"});
  EXPECT_EQ(again.Wait(), 1);
  EXPECT_THAT(again.errors(), HasSubstr("nothing is overwritten"));
  EXPECT_EQ(ReadFile(certs_ + "/ca.key"), before);
  TroupeRun bad({"certs", "init", dir_.File("other"), "--cluster", "A B"});
  EXPECT_EQ(bad.Wait(), 1);
  EXPECT_THAT(bad.errors(), HasSubstr("--cluster is \"A B\""));
  EXPECT_FALSE(std::filesystem::exists(dir_.File("other")));

  TroupeRun show({"certs", "show", certs_});
  EXPECT_EQ(show.Wait(), 0);
  EXPECT_THAT(
      show.output(),
      AllOf(HasSubstr("expert.pem\n  subject  CN=expert,O=troupe\n  names    "
                      "spiffe://demo/troupe/expert, localhost, 127.0.0.1, ::1"),
            HasSubstr("(CA)"), HasSubstr("365.0 days left"),
            HasSubstr("3650.0 days left")));
  TroupeRun none({"certs", "show", certs_ + "/ca.key"});
  EXPECT_EQ(none.Wait(), 1);
  EXPECT_THAT(none.errors(), HasSubstr("has no certificate in PEM form"));
}

TEST_F(SecurityTest, AClusterWithCertificatesAnswersTheSame) {
  std::string plain_text;
  {
    const auto plain = Serve({});
    TroupeRun generate(Generate({}));
    EXPECT_EQ(generate.Wait(), 0) << generate.errors();
    plain_text = generate.output();
    EXPECT_GT(plain_text.size(), 10u);
    // TLS to a plain port.
    TroupeRun tls(Generate(Flags("client")));
    EXPECT_EQ(tls.Wait(), 1);
    EXPECT_THAT(tls.errors(), HasSubstr("speaks no TLS"));
    plain->Signal(SIGTERM);
    EXPECT_EQ(plain->Wait(), 0);
  }
  const auto cluster = Serve({"--certs", certs_});
  for (const Words& flags : {Flags("client"), Flags("admin"),
                             Words{"--tls-ca", certs_ + "/ca.pem"}}) {
    TroupeRun generate(Generate(flags));
    EXPECT_EQ(generate.Wait(), 0) << generate.errors();
    EXPECT_EQ(generate.output(), plain_text);
  }
  // Plain text to a TLS port.
  TroupeRun plain(Generate({}));
  EXPECT_EQ(plain.Wait(), 1);
  EXPECT_THAT(plain.errors(), HasSubstr("Does it want TLS (--tls-ca)"));
  // A role that is no client's.
  TroupeRun expert(Generate(Flags("expert")));
  EXPECT_EQ(expert.Wait(), 1);
  EXPECT_THAT(expert.errors(), HasSubstr("another certificate"));
  // What is for admins: statistics, and the experts' admin calls.
  TroupeRun stats(Join({"stats", "--address", address_}, Flags("client")));
  EXPECT_EQ(stats.Wait(), 1);
  EXPECT_THAT(stats.errors(), HasSubstr("GetStats is not for the role client"));
  TroupeRun admin(Join({"stats", "--address", address_}, Flags("admin")));
  EXPECT_EQ(admin.Wait(), 0) << admin.errors();
  EXPECT_THAT(admin.output(),
              AllOf(HasSubstr("expert-1"), Not(HasSubstr("does not answer"))));
  TroupeRun list(
      Join({"experts", "list", "--address", address_}, Flags("admin")));
  EXPECT_EQ(list.Wait(), 0) << list.errors();
  EXPECT_THAT(list.output(), HasSubstr("checkpoint"));
  cluster->Signal(SIGTERM);
  EXPECT_EQ(cluster->Wait(), 0) << cluster->errors();
  EXPECT_THAT(cluster->errors(),
              HasSubstr("a client was refused: its certificate is "
                        "spiffe://demo/troupe/expert"));
}

TEST_F(SecurityTest,
       ClientsWithoutACertificateAreRefusedWhereTheyAreToHaveOne) {
  const auto cluster = Serve({"--certs", certs_, "--require-client-certs"});
  TroupeRun nobody(Generate({"--tls-ca", certs_ + "/ca.pem"}));
  EXPECT_EQ(nobody.Wait(), 1);
  TroupeRun client(Generate(Flags("client")));
  EXPECT_EQ(client.Wait(), 0) << client.errors();
}

TEST_F(SecurityTest, RotationUnderLoadFailsNoRequest) {
  const auto cluster = Serve({"--certs", certs_});
  TroupeRun bench(Join({"bench", "--address", address_, "--duration", "8",
                        "--concurrency", "4", "--max-tokens", "16", "--json"},
                       Flags("client")));
  // The set is renewed again and again, connections are new meanwhile.
  for (int i = 0; i < 6; ++i) {
    TroupeRun renew({"certs", "renew", certs_});
    EXPECT_EQ(renew.Wait(), 0) << renew.errors();
    cluster->AwaitLine("expert-0: certificate files read again");
    TroupeRun generate(Generate(Flags("client")));
    EXPECT_EQ(generate.Wait(), 0) << generate.errors();
  }
  EXPECT_EQ(bench.Wait(), 0) << bench.errors();
  EXPECT_THAT(bench.output(), HasSubstr("\"failures\": 0"));
  cluster->Signal(SIGTERM);
  EXPECT_EQ(cluster->Wait(), 0);
  EXPECT_THAT(cluster->errors(), HasSubstr("certificate files read again"));
}

TEST_F(SecurityTest, AnExpertProcessHasAPortForAdminsAlone) {
  Service expert("expert", Join({"--threads", "1", "--listen", "127.0.0.1:0",
                                 "--admin-listen", "127.0.0.1:0"},
                                Flags("expert")));
  const std::string main = expert.Address("ready on ", 0);
  const std::string admin = expert.Address("ready on ", 1);
  const auto list = [&](const std::string& address, const std::string& role) {
    return TroupeRun(
               Join({"experts", "list", "--experts", address}, Flags(role)))
        .Wait();
  };
  EXPECT_EQ(list(admin, "admin"), 0);
  EXPECT_EQ(list(admin, "expert"), 1);
  EXPECT_EQ(list(admin, "router"), 1);
  EXPECT_THAT(expert.Log(),
              AllOf(HasSubstr("its certificate is spiffe://demo/troupe/expert; "
                              "allowed here: admin of cluster demo")));
  // Where routers call there are no admin calls, for nobody.
  EXPECT_EQ(list(main, "router"), 1);
  EXPECT_EQ(list(main, "admin"), 1);
  // The control: without that port, an admin calls where routers do.
  Service shared("expert", Join({"--threads", "1", "--listen", "127.0.0.1:0"},
                                Flags("expert")));
  const std::string address = shared.Address("ready on ", 0);
  EXPECT_EQ(list(address, "admin"), 0);
  EXPECT_EQ(list(address, "router"), 1);
}

TEST_F(SecurityTest, AGatewayHasAPortForAdminsAlone) {
  Service gateway("gateway",
                  Join({"--routers", "127.0.0.1:1", "--listen", "127.0.0.1:0",
                        "--admin-listen", "127.0.0.1:0"},
                       Flags("gateway")));
  const std::string main = gateway.Address("listening on ", 0);
  const std::string admin = gateway.Address("listening on ", 1);
  const auto stats = [&](const std::string& address, const std::string& role) {
    return TroupeRun(Join({"stats", "--address", address}, Flags(role))).Wait();
  };
  EXPECT_EQ(stats(admin, "admin"), 0);
  EXPECT_EQ(stats(admin, "expert"), 1);
  EXPECT_THAT(gateway.Log(),
              HasSubstr("its certificate is spiffe://demo/troupe/expert; "
                        "allowed here: admin of cluster demo"));
  EXPECT_EQ(stats(admin, "client"), 1);
  EXPECT_EQ(stats(admin, "router"), 1);
  EXPECT_EQ(stats(main, "admin"), 1);
}

TEST_F(SecurityTest, PlainTextBeforeOtherMachinesMustBeAskedFor) {
  const struct {
    const char* binary;
    Words flags;
  } kServices[] = {
      {"expert", {"--threads", "1"}},
      {"router", {"--threads", "1", "--experts", "unix:/nowhere"}},
      {"gateway", {"--routers", "unix:/nowhere"}},
  };
  for (const auto& service : kServices) {
    SCOPED_TRACE(service.binary);
    const Words flags = Join(service.flags, {"--listen", "0.0.0.0:0"});
    Service refused(service.binary, flags);
    EXPECT_EQ(refused.Wait(), 1);
    EXPECT_THAT(
        refused.Log(),
        AllOf(HasSubstr("listen address 0.0.0.0:0: other machines reach "
                        "it, and there is no TLS. Give --tls-cert"),
              HasSubstr("--allow-plaintext")));
    Service allowed(service.binary, Join(flags, {"--allow-plaintext"}));
    allowed.Address(" on 0.0.0.0:", 0);
    Service with_tls(service.binary, Join(flags, Flags(service.binary)));
    with_tls.Address(" on 0.0.0.0:", 0);
  }
}

TEST_F(SecurityTest, FlagsThatDoNotFitAreErrorsAtTheStart) {
  const auto error = [&](const std::string& binary, const Words& flags) {
    Service service(binary, flags);
    EXPECT_EQ(service.Wait(), 1);
    return service.Log();
  };
  EXPECT_THAT(error("expert", {"--tls-ca", certs_ + "/ca.pem"}),
              HasSubstr("--tls-cert is missing"));
  EXPECT_THAT(error("expert", Flags("router")),
              HasSubstr("router.pem: is spiffe://demo/troupe/router; wanted is "
                        "one of the role expert"));
  EXPECT_THAT(error("expert", {"--admin-listen", "127.0.0.1:0"}),
              HasSubstr("--admin-listen: without TLS nothing tells"));
  const Words routers = {"--routers", "unix:/nowhere"};
  EXPECT_THAT(error("gateway", Join(routers, {"--require-client-certs"})),
              HasSubstr("--require-client-certs: needs a certificate"));
  EXPECT_THAT(error("gateway", Join(routers, {"--public-tls-cert", "/x"})),
              HasSubstr("--public-tls-cert and --public-tls-key go together"));
  TroupeRun client({"stats", "--address", "127.0.0.1:1", "--tls-cert",
                    certs_ + "/admin.pem", "--tls-key", certs_ + "/admin.key"});
  EXPECT_EQ(client.Wait(), 2);
  EXPECT_THAT(client.errors(), HasSubstr("--tls-ca is missing"));
}

}  // namespace
}  // namespace troupe
