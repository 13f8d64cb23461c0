#include "common/ops/ops_server.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/exposition.h"
#include "tests/fakes/http_client.h"

namespace troupe {
namespace {

using testing::HasSubstr;

std::unique_ptr<OpsServer> StartOps() {
  auto ops = OpsServer::Start("127.0.0.1:0", "router", "r0");
  EXPECT_TRUE(ops.ok()) << ops.status();
  return *std::move(ops);
}

HttpResponse Get(const OpsServer& ops, const std::string& path) {
  return HttpClient(ops.address()).Get(path);
}

std::string ReasonOf(const HttpResponse& answer) {
  const nlohmann::json body = nlohmann::json::parse(answer.body);
  EXPECT_EQ(body.at("ready").get<bool>(), answer.status == 200);
  return body.value("reason", "");
}

OpsServer::Sources Ready() {
  OpsServer::Sources sources;
  sources.ready = [] { return absl::OkStatus(); };
  sources.add_metrics = [](MetricFamilies& families) {
    families.Gauge("of_the_source", "Is.").Add(7);
  };
  return sources;
}

TEST(OpsServerTest, StartsNotReadyAndAlive) {
  const auto ops = StartOps();
  EXPECT_EQ(Get(*ops, "/livez").status, 200);
  const HttpResponse ready = Get(*ops, "/readyz");
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ReasonOf(ready), "starting");
  EXPECT_EQ(HeaderOf(ready, "content-type"), "application/json");
}

TEST(OpsServerTest, AsksItsSourcesWhileTheyAreAttached) {
  const auto ops = StartOps();
  absl::Status state = absl::UnavailableError("expert 3 has \"no\" replica");
  {
    OpsServer::Sources sources = Ready();
    sources.ready = [&state] { return state; };
    const auto attachment = ops->Attach(std::move(sources));
    const HttpResponse missing = Get(*ops, "/readyz");
    EXPECT_EQ(missing.status, 503);
    EXPECT_EQ(ReasonOf(missing), "expert 3 has \"no\" replica");
    state = absl::OkStatus();
    EXPECT_EQ(Get(*ops, "/readyz").status, 200);
    EXPECT_THAT(Get(*ops, "/metrics").body, HasSubstr("of_the_source 7\n"));
  }
  EXPECT_EQ(Get(*ops, "/readyz").status, 503);
  EXPECT_EQ(Get(*ops, "/metrics").body.find("of_the_source"),
            std::string::npos);
}

TEST(OpsServerTest, IsNotReadyWhileDrainingAndAliveAllTheSame) {
  const auto ops = StartOps();
  const auto attachment = ops->Attach(Ready());
  EXPECT_EQ(Get(*ops, "/readyz").status, 200);
  ops->StartDraining();
  const HttpResponse ready = Get(*ops, "/readyz");
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ReasonOf(ready), "draining");
  EXPECT_EQ(Get(*ops, "/livez").status, 200);
}

TEST(OpsServerTest, MetricsAreThoseOfTheProcessAndOfTheSource) {
  const auto ops = StartOps();
  const HttpResponse before = Get(*ops, "/metrics");
  EXPECT_EQ(before.status, 200);
  EXPECT_EQ(HeaderOf(before, "content-type"),
            "text/plain; version=0.0.4; charset=utf-8");
  const auto attachment = ops->Attach(Ready());
  for (const std::string& body : {before.body, Get(*ops, "/metrics").body}) {
    const absl::StatusOr<Exposition> parsed = ParseExposition(body);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(SumOf(*parsed, "troupe_build_info",
                    {{"service", "router"}, {"name", "r0"}}),
              1);
  }
}

TEST(OpsServerTest, NothingElseIsThere) {
  const auto ops = StartOps();
  EXPECT_EQ(Get(*ops, "/").status, 404);
  const HttpResponse posted =
      HttpClient(ops->address()).Send("POST", "/metrics");
  EXPECT_EQ(posted.status, 405);
  EXPECT_EQ(HeaderOf(posted, "allow"), "GET, HEAD");
}

TEST(OpsServerTest, IsOffWithoutAnAddress) {
  const auto ops = OpsServer::Start("", "router", "r0");
  ASSERT_TRUE(ops.ok());
  EXPECT_EQ((*ops)->address(), "");
  const auto attachment = (*ops)->Attach(Ready());
  (*ops)->StartDraining();
}

TEST(OpsServerTest, ErrorsNameTheFlagAndTheAddress) {
  const auto wrong = OpsServer::Start("nowhere", "router", "r0");
  EXPECT_THAT(std::string(wrong.status().message()),
              testing::AllOf(HasSubstr("ops-listen"), HasSubstr("nowhere")));
  const auto ops = StartOps();
  const auto taken = OpsServer::Start(ops->address(), "router", "r0");
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr(ops->address()));
}

}  // namespace
}  // namespace troupe
