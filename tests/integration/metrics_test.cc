// What real processes export: it moves with requests, agrees with their
// statistics, and says when a process drains.
#include <signal.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/fakes/exposition.h"
#include "tests/fakes/gateway_process.h"
#include "tests/fakes/http_client.h"
#include "tests/fakes/process_cluster.h"

namespace troupe {
namespace {

constexpr char kModel[] = TROUPE_SOURCE_DIR "/models/demo";
// Of models/demo/config.json.
constexpr double kLayers = 6;
constexpr double kCopiesPerToken = kLayers * 2;
constexpr double kNumExperts = 8;

// Polls the log for "WHAT on ADDRESS".
std::string AddressOf(const ChildProcess& process, const std::string& what) {
  const std::string words = what + " on ";
  while (true) {
    const std::string log = process.Log();
    const size_t at = log.find(words);
    const size_t end = log.find('\n', at);
    if (at != std::string::npos && end != std::string::npos) {
      return log.substr(at + words.size(), end - at - words.size());
    }
    std::this_thread::sleep_for(milliseconds(5));
  }
}

HttpResponse Get(const std::string& address, const std::string& path) {
  return HttpClient(address).Get(path);
}

Exposition Scrape(const std::string& address) {
  const HttpResponse answer = Get(address, "/metrics");
  EXPECT_EQ(answer.status, 200);
  absl::StatusOr<Exposition> parsed = ParseExposition(answer.body);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *std::move(parsed) : Exposition();
}

v1::GenerateRequest Request(uint32_t max_tokens, uint32_t choices) {
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  request.set_max_tokens(max_tokens);
  request.set_n(choices);
  request.set_ignore_eos(true);
  request.set_seed(7);
  return request;
}

class MetricsTest : public testing::Test {
 protected:
  MetricsTest()
      : cluster_({.model_dir = kModel,
                  .expert_ranges = {"0-3", "4-7"},
                  .router_flags = {"--ops-listen", "127.0.0.1:0"},
                  .expert_flags = {"--ops-listen", "127.0.0.1:0"}}),
        gateway_(kModel, {cluster_.router_address(0)},
                 {"--ops-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                  "--vllm-metrics"}) {
    gateway_.AwaitReadyRouters(1);
    gateway_ops_ = AddressOf(gateway_.process(), "ops");
    router_ops_ = AddressOf(cluster_.router(0), "ops");
    for (size_t i = 0; i < 2; ++i) {
      expert_ops_.push_back(AddressOf(cluster_.expert(i), "ops"));
    }
  }

  grpc::Status Run(const v1::GenerateRequest& request) {
    return Generate(gateway_.stub(), request, 60000, [](size_t) {}).status;
  }

  ProcessCluster cluster_;
  GatewayProcess gateway_;
  std::string gateway_ops_;
  std::string router_ops_;
  std::vector<std::string> expert_ops_;
};

TEST_F(MetricsTest, MoveWithRequestsAndAgreeWithTheStatistics) {
  const Exposition before = Scrape(gateway_ops_);
  EXPECT_EQ(ValueOf(before, "troupe_gateway_requests_total",
                    {{"outcome", "ok"}, {"code", "OK"}}),
            0);
  EXPECT_EQ(ValueOf(before, "troupe_gateway_ready"), 1);
  constexpr int kRequests = 3;
  constexpr int kTokens = 8;
  for (int i = 0; i < kRequests; ++i) {
    EXPECT_TRUE(Run(Request(kTokens, /*choices=*/2)).ok());
  }
  v1::GenerateRequest wrong = Request(kTokens, 1);
  wrong.mutable_sampling()->set_temperature(-1);
  EXPECT_EQ(Run(wrong).error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  const Exposition gateway = Scrape(gateway_ops_);
  const v1::GatewayStats stats = gateway_.Stats();
  constexpr double kGenerated = kRequests * 2 * kTokens;
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_requests_total",
                    {{"outcome", "ok"}, {"code", "OK"}}),
            kRequests);
  EXPECT_EQ(stats.requests_ok(), static_cast<uint64_t>(kRequests));
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_requests_total",
                    {{"outcome", "failed"}, {"code", "INVALID_ARGUMENT"}}),
            1);
  EXPECT_EQ(SumOf(gateway, "troupe_gateway_requests_total"),
            static_cast<double>(stats.requests()));
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_refusals_total",
                    {{"reason", "invalid"}}),
            1);
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_choices_total",
                    {{"finished_reason", "length"}}),
            2 * kRequests);
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_generation_tokens_total"),
            kGenerated);
  EXPECT_EQ(stats.completion_tokens(), static_cast<uint64_t>(kGenerated));
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_prompt_tokens_total"),
            static_cast<double>(stats.prompt_tokens()));
  EXPECT_EQ(
      ValueOf(gateway, "troupe_gateway_time_to_first_token_seconds_count"),
      kRequests);
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_inter_token_seconds_count"),
            kGenerated - 2 * kRequests);
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_request_seconds_count"),
            kRequests);
  EXPECT_GT(ValueOf(gateway, "troupe_gateway_request_seconds_sum"),
            ValueOf(gateway, "troupe_gateway_time_to_first_token_seconds_sum"));
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_queue_seconds_count"),
            2 * kRequests);
  EXPECT_EQ(ValueOf(gateway, "troupe_gateway_generating_requests"), 0);
  EXPECT_EQ(ValueOf(gateway, "vllm:generation_tokens_total",
                    {{"model_name", "demo"}}),
            kGenerated);
  EXPECT_EQ(
      ValueOf(gateway, "vllm:num_requests_running", {{"model_name", "demo"}}),
      0);

  const Exposition router = Scrape(router_ops_);
  const v1::RouterStats of_router = cluster_.Stats();
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, uint64_t>>{
           {"prefill_tokens_total", of_router.prefill_tokens()},
           {"decode_tokens_total", of_router.decode_tokens()},
           {"steps_total", of_router.steps()},
           {"step_seconds_count", of_router.steps()},
           {"step_tokens_sum",
            of_router.prefill_tokens() + of_router.decode_tokens()},
           {"queue_seconds_count", 2 * kRequests},
           {"hop_seconds_count", of_router.hops()},
           {"expert_wait_seconds_count", of_router.hops()},
           {"prefix_cache_hits_total", of_router.prefix_hit_tokens()},
           {"computed_tokens_total", of_router.copies().computed_tokens()},
           {"kv_blocks", of_router.kv_blocks_total()},
       }) {
    EXPECT_EQ(ValueOf(router, absl::StrCat("troupe_router_", name)),
              static_cast<double>(value))
        << name;
    EXPECT_GT(value, 0u) << name;
  }
  EXPECT_NEAR(ValueOf(router, "troupe_router_hop_seconds_sum"),
              of_router.hop_seconds(), 1e-9);
  const double copies = SumOf(router, "troupe_router_copies_total");
  EXPECT_EQ(copies,
            kCopiesPerToken *
                static_cast<double>(of_router.copies().computed_tokens()));
  EXPECT_EQ(SumOf(router, "troupe_router_layer_copies_total"), copies);
  EXPECT_EQ(SumOf(router, "troupe_router_expert_tokens_total"), copies);
  EXPECT_EQ(
      ValueOf(router, "troupe_router_expert_processes", {{"state", "ready"}}),
      2);
  for (int layer = 0; layer < kLayers; ++layer) {
    const double imbalance =
        ValueOf(router, "troupe_router_layer_imbalance_ratio",
                {{"layer", absl::StrCat(layer)}});
    EXPECT_GE(imbalance, 1);
    EXPECT_LE(imbalance, kNumExperts);
  }

  double rows = 0;
  double messages = 0;
  for (const std::string& address : expert_ops_) {
    const Exposition expert = Scrape(address);
    rows += ValueOf(expert, "troupe_expert_rows_total");
    messages += ValueOf(expert, "troupe_expert_messages_total");
    EXPECT_EQ(ValueOf(expert, "troupe_expert_service_seconds_count"),
              ValueOf(expert, "troupe_expert_batches_total"));
    EXPECT_EQ(ValueOf(expert, "troupe_expert_batch_rows_sum"),
              ValueOf(expert, "troupe_expert_rows_total"));
    EXPECT_EQ(SumOf(expert, "troupe_expert_experts"),
              kLayers * kNumExperts / 2);
    EXPECT_EQ(ValueOf(expert, "troupe_expert_ready"), 1);
  }
  EXPECT_EQ(rows, copies);  // every expert has one replica: nothing is hedged
  EXPECT_EQ(messages, ValueOf(router, "troupe_router_hop_messages_total"));
}

TEST_F(MetricsTest, ThePublicHttpPortHasTheSame) {
  ASSERT_TRUE(Run(Request(4, 1)).ok());
  const Exposition ops = Scrape(gateway_ops_);
  const Exposition http = Scrape(AddressOf(gateway_.process(), "http"));
  EXPECT_EQ(ops.size(), http.size());
  for (const auto& [name, family] : ops) {
    ASSERT_EQ(http.count(name), 1u) << name;
    EXPECT_EQ(http.at(name).samples.size(), family.samples.size()) << name;
  }
  EXPECT_EQ(ValueOf(http, "troupe_gateway_generation_tokens_total"), 4);
}

TEST_F(MetricsTest, VllmsGaugesFollowTheRouters) {
  const std::map<std::string, std::string> labels = {{"model_name", "demo"}};
  grpc::ClientContext context;
  const v1::GenerateRequest request = Request(400, /*choices=*/8);
  const auto stream = gateway_.stub().Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(stream->Read(&response));
  // The gateway learns it when it next asks its router how it is.
  Exposition gateway;
  do {
    gateway = Scrape(gateway_ops_);
  } while (SumOf(gateway, "vllm:kv_cache_usage_perc") == 0);
  EXPECT_LE(ValueOf(gateway, "vllm:kv_cache_usage_perc", labels), 1);
  EXPECT_EQ(ValueOf(gateway, "vllm:num_requests_running", labels), 1);
  EXPECT_EQ(ValueOf(gateway, "vllm:num_requests_waiting", labels), 0);
  EXPECT_EQ(SumOf(gateway, "vllm:cache_config_info",
                  {{"num_gpu_blocks",
                    absl::StrCat(cluster_.Stats().kv_blocks_total())}}),
            1);
  context.TryCancel();
  while (stream->Read(&response)) {
  }
  stream->Finish();
}

// docs/metrics.md names all that there is.
TEST_F(MetricsTest, EveryNameIsDocumented) {
  ASSERT_TRUE(Run(Request(4, 1)).ok());
  std::ifstream file(TROUPE_SOURCE_DIR "/docs/metrics.md");
  const std::string docs((std::istreambuf_iterator<char>(file)), {});
  std::vector<std::string> scraped = {gateway_ops_, router_ops_,
                                      expert_ops_[0]};
  for (const std::string& address : scraped) {
    for (const auto& [name, family] : Scrape(address)) {
      std::string text = name;
      for (const char* prefix :
           {"troupe_gateway_", "troupe_router_", "troupe_expert_"}) {
        if (text.rfind(prefix, 0) == 0) text.erase(0, std::strlen(prefix));
      }
      if (text.rfind("discovery_", 0) == 0) text = "_" + text;
      EXPECT_NE(docs.find(text + "`"), std::string::npos) << name;
    }
  }
}

TEST_F(MetricsTest, ReadyTurnsFalseOnSigtermAndAliveStays) {
  const std::vector<std::pair<ChildProcess*, std::string>> processes = {
      {&gateway_.process(), gateway_ops_},
      {&cluster_.router(0), router_ops_},
      {&cluster_.expert(0), expert_ops_[0]}};
  for (const auto& [process, ops] : processes) {
    EXPECT_EQ(Get(ops, "/readyz").status, 200);
  }
  // A stream keeps each of them there until the last look.
  grpc::ClientContext context;
  const v1::GenerateRequest request = Request(400, /*choices=*/16);
  const auto stream = gateway_.stub().Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(stream->Read(&response));
  for (const auto& [process, ops] : processes) {
    process->Kill(SIGTERM);
    HttpResponse ready;
    do {
      ready = Get(ops, "/readyz");
    } while (ready.status == 200);
    EXPECT_EQ(ready.status, 503) << ops;
    EXPECT_EQ(nlohmann::json::parse(ready.body).at("reason"), "draining");
    EXPECT_EQ(Get(ops, "/livez").status, 200) << ops;
    EXPECT_GT(ValueOf(Scrape(ops), "process_open_fds"), 0);
  }
  context.TryCancel();
  while (stream->Read(&response)) {
  }
  stream->Finish();
  for (const auto& [process, ops] : processes) EXPECT_EQ(process->Wait(), 0);
}

TEST(JsonLogTest, EveryLineOfAProcessIsAnObject) {
  ProcessCluster cluster({.model_dir = kModel,
                          .router_flags = {"--log-format", "json"},
                          .expert_flags = {"--log-format", "json"}});
  GatewayProcess gateway(kModel, {cluster.router_address(0)},
                         {"--log-format", "json"});
  gateway.AwaitReadyRouters(1);
  v1::GenerateRequest request = Request(4, 1);
  request.set_request_id("0042");
  ASSERT_TRUE(
      Generate(gateway.stub(), request, 60000, [](size_t) {}).status.ok());
  bool seen = false;
  for (const ChildProcess* process :
       {&gateway.process(), &cluster.router(0), &cluster.expert(0)}) {
    std::istringstream log(process->Log());
    std::string line;
    int num_lines = 0;
    while (std::getline(log, line)) {
      if (line.rfind("listening on ", 0) == 0) continue;  // standard output
      const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
      ASSERT_TRUE(json.is_object()) << line;
      ++num_lines;
      EXPECT_TRUE(json.contains("time") && json.contains("level") &&
                  json.contains("service") && json.contains("message"))
          << line;
      if (!json.contains("fields")) continue;
      const nlohmann::json& fields = json["fields"];
      if (fields.value("request_id", nlohmann::json()) != "0042") continue;
      seen = true;
      EXPECT_EQ(json["service"], "gateway");
      EXPECT_EQ(fields["outcome"], "ok");
      EXPECT_EQ(fields["completion_tokens"], 4);
    }
    EXPECT_GT(num_lines, 0);
  }
  EXPECT_TRUE(seen);
}

}  // namespace
}  // namespace troupe
