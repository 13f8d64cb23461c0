// API keys at the HTTP edge of a whole gateway.
#include <optional>
#include <string>
#include <vector>

#include "gateway/openai/rate_limit_headers.h"
#include "gmock/gmock.h"
#include "tests/fakes/http_client.h"
#include "tests/fakes/manual_clock.h"
#include "tests/gateway/gateway_fixture.h"
#include "tests/gateway/key_file.h"

namespace troupe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class HttpKeysTest : public GatewayTest {
 protected:
  void Start(const std::vector<ApiKey>& keys,
             FakeRouter::Behaviour behaviour = Reciting(kStory)) {
    AddRouter(std::move(behaviour));
    file_.emplace(keys);
    GatewayOptions options;
    options.api_keys = file_->path();
    options.limit_clock = &clock_;
    options.http.listen = {"127.0.0.1:0"};
    StartGateway(options);
  }

  HttpResponse SendAs(const std::string& key, const std::string& method,
                      const std::string& path, const std::string& body = "") {
    std::vector<HttpHeader> headers = {{"content-type", "application/json"}};
    if (!key.empty()) headers.push_back({"authorization", "Bearer " + key});
    return HttpClient(gateway_->http_addresses()[0])
        .Send(method, path, body, headers);
  }
  HttpResponse CompleteAs(const std::string& key, json more = json::object()) {
    json body = {{"model", "fake"}, {"prompt", "abc"}, {"max_tokens", 4}};
    body.update(more);
    return SendAs(key, "POST", "/v1/completions", body.dump());
  }

  ManualClock clock_;
  std::optional<KeyFile> file_;
};

TEST_F(HttpKeysTest, EveryRouteButHealthDemandsAKey) {
  Start({TestKey("a")});
  struct Route {
    const char* method;
    const char* path;
    const char* body;
  };
  for (const Route& route : std::vector<Route>{
           {"POST", "/v1/completions", R"({"prompt": "abc", "max_tokens": 4})"},
           {"POST", "/tokenize", R"({"prompt": "abc"})"},
           {"POST", "/detokenize", R"({"tokens": [97]})"},
           {"GET", "/v1/models", ""},
           {"HEAD", "/v1/models", ""},
           {"GET", "/v1/models/fake", ""},
           {"GET", "/tokenizer_info", ""},
           {"GET", "/version", ""}}) {
    for (const std::string key : {"", "trp-b"}) {
      const HttpResponse response =
          SendAs(key, route.method, route.path, route.body);
      EXPECT_EQ(response.status, 401) << route.path;
      EXPECT_EQ(HeaderOf(response, "www-authenticate"), "Bearer");
      if (std::string(route.method) == "HEAD") continue;
      const json error = json::parse(response.body)["error"];
      EXPECT_EQ(error["type"], "authentication_error");
      EXPECT_EQ(error["code"], "invalid_api_key");
      EXPECT_THAT(response.body, testing::Not(HasSubstr("trp-b")));
    }
    EXPECT_EQ(SendAs("trp-a", route.method, route.path, route.body).status, 200)
        << route.path;
  }
  // Neither are chat, embeddings and bad bodies answered before the key.
  for (const char* path : {"/v1/chat/completions", "/v1/embeddings"}) {
    EXPECT_EQ(SendAs("", "POST", path, "{").status, 401) << path;
  }
  for (const char* path : {"/health", "/ready", "/ping"}) {
    EXPECT_EQ(SendAs("", "GET", path).status, 200) << path;
  }
}

TEST_F(HttpKeysTest, TwoKeysInOneRequestAreRefused) {
  Start({TestKey("a"), TestKey("b")});
  const HttpResponse response = HttpClient(gateway_->http_addresses()[0])
                                    .Send("GET", "/v1/models", "",
                                          {{"authorization", "Bearer trp-a"},
                                           {"Authorization", "Bearer trp-b"}});
  EXPECT_EQ(response.status, 401);
}

TEST_F(HttpKeysTest, LimitsAreToldInHeadersAndTheWaitIsTrue) {
  Start({TestKey("a", {.requests_per_minute = 2, .tokens_per_minute = 6000})});
  HttpResponse response = CompleteAs("trp-a");
  ASSERT_EQ(response.status, 200) << response.body;
  const int used = json::parse(response.body)["usage"]["total_tokens"];
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-limit-requests"), "2");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-remaining-requests"), "1");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-reset-requests"), "30s");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-limit-tokens"), "6000");
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-remaining-tokens"),
            std::to_string(6000 - used));
  EXPECT_EQ(HeaderOf(response, "x-ratelimit-reset-tokens"),
            FormatReset(used * 10));
  ASSERT_EQ(CompleteAs("trp-a").status, 200);
  response = CompleteAs("trp-a");
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(HeaderOf(response, "retry-after"), "30");
  EXPECT_EQ(HeaderOf(response, "retry-after-ms"), "30000");
  EXPECT_EQ(json::parse(response.body)["error"]["type"], "rate_limit_error");
  clock_.Advance(milliseconds(30000));
  EXPECT_EQ(CompleteAs("trp-a").status, 200);
}

// A list of prompts is that many requests, of which all come in or none.
TEST_F(HttpKeysTest, EveryPromptOfAListCounts) {
  Start({TestKey("a", {.requests_per_minute = 5})});
  const json three = {{"prompt", {"abc", "abc", "abc"}}};
  ASSERT_EQ(CompleteAs("trp-a", three).status, 200);
  const size_t before = routers_[0]->requests().size();
  const HttpResponse refused = CompleteAs("trp-a", three);
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(HeaderOf(refused, "retry-after-ms"), "12000");
  EXPECT_EQ(routers_[0]->requests().size(), before);
}

// One place, whichever edge the key comes in by.
TEST_F(HttpKeysTest, BothEdgesCountTogether) {
  Start({TestKey("a", {.max_concurrent = 1})}, HangingAfter(kStory, 1));
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer trp-a");
  const auto reader = stub_->Generate(&context, Prompt(kStory));
  v1::GenerateResponse first;
  ASSERT_TRUE(reader->Read(&first));
  const HttpResponse response = CompleteAs("trp-a");
  EXPECT_EQ(response.status, 429);
  EXPECT_THAT(response.body, HasSubstr("max_concurrent"));
  context.TryCancel();
  while (reader->Read(&first)) {
  }
  reader->Finish();
}

TEST(RateLimitHeadersTest, AResetIsWrittenAsOpenAiDoes) {
  EXPECT_EQ(FormatReset(0), "0s");
  EXPECT_EQ(FormatReset(20), "20ms");
  EXPECT_EQ(FormatReset(999), "999ms");
  EXPECT_EQ(FormatReset(1000), "1s");
  EXPECT_EQ(FormatReset(1500), "1.5s");
  EXPECT_EQ(FormatReset(59999), "59.999s");
  EXPECT_EQ(FormatReset(60000), "1m0s");
  EXPECT_EQ(FormatReset(360000), "6m0s");
  EXPECT_EQ(FormatReset(61020), "1m1.02s");
  EXPECT_EQ(FormatReset(60020), "1m0.02s");
  EXPECT_EQ(FormatReset(3602000), "1h0m2s");
  EXPECT_EQ(FormatReset(-5), "0s");
}

}  // namespace
}  // namespace troupe
