// The OpenAI API of a whole gateway, in front of routers whose answers the
// test decides.
#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/inference.grpc.pb.h"
#include "tests/fakes/fake_router/fake_tokenizer.h"
#include "tests/fakes/http_client.h"
#include "tests/gateway/gateway_fixture.h"

namespace troupe {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class OpenAiApiTest : public GatewayTest {
 protected:
  void Start(GatewayOptions options = {}) {
    if (routers_.empty()) AddRouter(Reciting(kStory));
    options.http.listen = {"127.0.0.1:0"};
    StartGateway(options);
    http_ = std::make_unique<HttpClient>(Address());
  }
  std::string Address() const { return gateway_->http_addresses()[0]; }

  static json Completion(json more = json::object()) {
    json body = {{"model", "fake"},
                 {"prompt", "abc"},
                 {"temperature", 0},
                 {"max_tokens", 40}};
    body.update(more);
    return body;
  }
  json PostOk(const std::string& path, const json& body) {
    const HttpResponse response = http_->Post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    return json::parse(response.body);
  }
  // The events of a stream, the closing [DONE] checked and left out.
  std::vector<json> Stream(const std::string& path, const json& body) {
    const HttpResponse response = http_->Post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(HeaderOf(response, "content-type"),
              "text/event-stream; charset=utf-8");
    EXPECT_EQ(HeaderOf(response, "cache-control"), "no-cache");
    std::vector<std::string> texts = EventsOf(response.body);
    EXPECT_EQ(texts.back(), "[DONE]");
    texts.pop_back();
    std::vector<json> events;
    for (const std::string& text : texts) events.push_back(json::parse(text));
    return events;
  }

  std::unique_ptr<HttpClient> http_;
};

TEST_F(OpenAiApiTest, ACompletionInOnePiece) {
  Start();
  const json whole = PostOk("/v1/completions", Completion());
  EXPECT_EQ(whole["object"], "text_completion");
  EXPECT_EQ(whole["model"], "fake");
  EXPECT_THAT(whole["id"].get<std::string>(), StartsWith("cmpl-"));
  ASSERT_EQ(whole["choices"].size(), 1u);
  const json& choice = whole["choices"][0];
  EXPECT_EQ(choice["text"], kStory);
  EXPECT_EQ(choice["index"], 0);
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_TRUE(choice["logprobs"].is_null());
  const json& usage = whole["usage"];
  const int completion_tokens = usage["completion_tokens"];
  EXPECT_EQ(completion_tokens, static_cast<int>(sizeof(kStory)));  // and </s>
  EXPECT_EQ(usage["total_tokens"],
            usage["prompt_tokens"].get<int>() + completion_tokens);
  EXPECT_EQ(usage["troupe"]["moved_streams"], 0);
}

TEST_F(OpenAiApiTest, AStreamHasOneEventPerToken) {
  Start();
  const std::vector<json> events =
      Stream("/v1/completions", Completion({{"stream", true}}));
  ASSERT_EQ(events.size(), sizeof(kStory));
  std::string text;
  for (const json& event : events) {
    EXPECT_EQ(event["object"], "text_completion");
    EXPECT_EQ(event["id"], events[0]["id"]);
    EXPECT_FALSE(event.contains("usage"));
    text += event["choices"][0]["text"].get<std::string>();
    EXPECT_EQ(event["choices"][0]["finish_reason"].is_null(),
              &event != &events.back());
  }
  EXPECT_EQ(text, kStory);
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "stop");
}

TEST_F(OpenAiApiTest, UsageOfAStreamWhenAskedFor) {
  Start();
  std::vector<json> events =
      Stream("/v1/completions",
             Completion({{"stream", true},
                         {"stream_options", {{"include_usage", true}}}}));
  ASSERT_EQ(events.size(), sizeof(kStory) + 1);
  EXPECT_TRUE(events.back()["choices"].empty());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], sizeof(kStory));
  EXPECT_FALSE(events[0].contains("usage"));

  events = Stream("/v1/completions",
                  Completion({{"stream", true},
                              {"stream_options",
                               {{"include_usage", true},
                                {"continuous_usage_stats", true}}}}));
  EXPECT_EQ(events[2]["usage"]["completion_tokens"], 3);
}

TEST_F(OpenAiApiTest, PromptsAndChoices) {
  Start();
  const json whole = PostOk(
      "/v1/completions",
      Completion({{"prompt", {"abc", "defg"}}, {"n", 2}, {"best_of", 2}}));
  ASSERT_EQ(whole["choices"].size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(whole["choices"][i]["index"], i);
    EXPECT_EQ(whole["choices"][i]["text"], kStory);
  }
  EXPECT_EQ(whole["usage"]["completion_tokens"], 4 * sizeof(kStory));
  const auto requests = routers_[0]->requests();
  ASSERT_EQ(requests.size(), 4u);

  const json by_ids =
      PostOk("/v1/completions", Completion({{"prompt", {{5, 6, 7}, {8, 9}}}}));
  EXPECT_EQ(by_ids["choices"].size(), 2u);
  EXPECT_EQ(by_ids["usage"]["prompt_tokens"], 5);
}

TEST_F(OpenAiApiTest, LogprobsWithEchoAsEvaluationHarnessesAskForThem) {
  AddRouter(Reciting("xyz"));
  Start();
  const json whole =
      PostOk("/v1/completions", Completion({{"prompt", {97, 98, 99}},
                                            {"max_tokens", 1},
                                            {"logprobs", 1},
                                            {"echo", true},
                                            {"seed", 1234}}));
  const json& logprobs = whole["choices"][0]["logprobs"];
  EXPECT_EQ(whole["choices"][0]["text"], "abcx");
  EXPECT_EQ(logprobs["tokens"], json({"a", "b", "c", "x"}));
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_EQ(logprobs["token_logprobs"][1], -0.375);
  EXPECT_EQ(logprobs["top_logprobs"][1], json({{"b", -0.375}}));
  EXPECT_EQ(logprobs["text_offset"], json({0, 1, 2, 3}));

  // The prompt alone.
  const json prompt =
      PostOk("/v1/completions", Completion({{"prompt", {97, 98, 99}},
                                            {"max_tokens", 0},
                                            {"logprobs", 0},
                                            {"echo", true}}));
  EXPECT_EQ(prompt["choices"][0]["text"], "abc");
  EXPECT_EQ(prompt["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(prompt["choices"][0]["logprobs"]["tokens"].size(), 3u);
  EXPECT_EQ(prompt["usage"]["completion_tokens"], 0);
}

TEST_F(OpenAiApiTest, FieldsReachTheRouter) {
  Start();
  PostOk("/v1/completions", Completion({{"temperature", 0.5},
                                        {"top_p", 0.9},
                                        {"top_k", -1},
                                        {"min_p", 0.1},
                                        {"presence_penalty", 0.25},
                                        {"frequency_penalty", -0.25},
                                        {"repetition_penalty", 1.5},
                                        {"logit_bias", {{"7", -100}}},
                                        {"seed", -3},
                                        {"stop", nullptr},
                                        {"logprobs", nullptr},
                                        {"user", "someone"},
                                        {"unknown_field", {1, 2}},
                                        {"troupe", {{"fallback", "fast"}}}}));
  PostOk("/v1/completions",
         json{{"prompt", "a"}, {"max_completion_tokens", 3}});
  const auto requests = routers_[0]->requests();
  ASSERT_EQ(requests.size(), 2u);
  const v1::SamplingParams& sampling = requests[0].sampling();
  EXPECT_EQ(sampling.temperature(), 0.5f);
  EXPECT_EQ(sampling.top_p(), 0.9f);
  EXPECT_EQ(sampling.top_k(), 0u);
  EXPECT_EQ(sampling.min_p(), 0.1f);
  EXPECT_EQ(sampling.presence_penalty(), 0.25f);
  EXPECT_EQ(sampling.frequency_penalty(), -0.25f);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5f);
  EXPECT_EQ(sampling.logit_bias().at(7), -100.0f);
  EXPECT_EQ(
      requests[0].fallback().chain_size() > 0 ||
          requests[0].fallback().preset() == v1::FallbackPolicy::PRESET_FAST,
      true);
  // Defaults of the API, and those of the checkpoint.
  EXPECT_EQ(requests[1].max_tokens(), 16u);
  EXPECT_EQ(requests[1].sampling().temperature(), 1.0f);
  EXPECT_EQ(requests[1].sampling().repetition_penalty(), 1.25f);
}

TEST_F(OpenAiApiTest, AnErrorBeforeTheStreamIsAStatus) {
  AddRouter(Failing(grpc::Status(grpc::StatusCode::INTERNAL, "it broke")));
  Start();
  const HttpResponse response =
      http_->Post("/v1/completions", Completion({{"stream", true}}));
  EXPECT_EQ(response.status, 500);
  EXPECT_EQ(HeaderOf(response, "x-should-retry"), "false");
  const json error = json::parse(response.body)["error"];
  EXPECT_EQ(error["type"], "server_error");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("it broke"));
}

TEST_F(OpenAiApiTest, AnErrorWithinTheStreamIsAnEvent) {
  AddRouter([](const v1::RouterGenerateRequest& request) {
    FakeRouterScript script = Recite(kStory, request);
    script.responses.resize(2);
    script.status = grpc::Status(grpc::StatusCode::INTERNAL, "it broke");
    return script;
  });
  Start();
  const std::vector<json> events =
      Stream("/v1/completions", Completion({{"stream", true}}));
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[2]["error"]["type"], "server_error");
  // The connection is as good as before.
  EXPECT_EQ(http_->Get("/v1/models").status, 200);
}

TEST_F(OpenAiApiTest, OneFailingPromptEndsTheOthers) {
  AddRouter([](const v1::RouterGenerateRequest& request) {
    FakeRouterScript script = Recite(kStory, request);
    script.responses.resize(1);
    script.hang = request.prompt_token_ids_size() > 4;
    if (!script.hang) {
      script.status = grpc::Status(grpc::StatusCode::INTERNAL, "it broke");
    }
    return script;
  });
  Start();
  const HttpResponse response = http_->Post(
      "/v1/completions", Completion({{"prompt", {{1, 2, 3, 4, 5, 6}, {1}}}}));
  EXPECT_EQ(response.status, 500) << response.body;
  routers_[0]->AwaitCancelled(1);
  EXPECT_EQ(Stats().active_requests(), 0u);
}

TEST_F(OpenAiApiTest, AClientThatLeavesCancelsItsSequences) {
  AddRouter(HangingAfter(kStory, 2));
  Start();
  HttpClient leaving(Address());
  EXPECT_EQ(
      leaving.Begin("/v1/completions", Completion({{"stream", true}, {"n", 2}}))
          .status,
      200);
  ASSERT_TRUE(leaving.NextEvent().has_value());
  leaving.Close();
  routers_[0]->AwaitCancelled(2);

  // Without a stream, too.
  HttpClient waiting(Address());
  std::thread request([&] { waiting.Post("/v1/completions", Completion()); });
  routers_[0]->AwaitCalls(3);
  waiting.Shutdown();
  routers_[0]->AwaitCancelled(3);
  request.join();
  EXPECT_EQ(Stats().requests_cancelled(), 2u);
}

TEST_F(OpenAiApiTest, AClientThatDoesNotReadHoldsItsRouterBack) {
  AddRouter([](const v1::RouterGenerateRequest& request) {
    FakeRouterScript script = Recite(kStory, request);
    script.responses.resize(1);
    script.endless = true;
    return script;
  });
  GatewayOptions options;
  options.max_pending_responses = 4;
  options.http.write_timeout = milliseconds(300);
  Start(options);
  HttpClient slow(Address());
  slow.Begin("/v1/completions",
             Completion({{"stream", true}, {"max_tokens", 60}}));
  // It is given up, and its sequence with it.
  routers_[0]->AwaitCancelled(1);
  EXPECT_EQ(http_->Get("/health").status, 200);
}

TEST_F(OpenAiApiTest, AFullGatewaySaysWhenToComeAgain) {
  AddRouter(HangingAfter(kStory, 1));
  GatewayOptions options;
  options.max_requests = 1;
  Start(options);
  HttpClient first(Address());
  first.Begin("/v1/completions", Completion({{"stream", true}}));
  const HttpResponse refused = http_->Post("/v1/completions", Completion());
  EXPECT_EQ(refused.status, 429);
  EXPECT_GE(std::stoi(HeaderOf(refused, "retry-after")), 1);
  EXPECT_GE(std::stoi(HeaderOf(refused, "retry-after-ms")), 100);
  EXPECT_EQ(json::parse(refused.body)["error"]["type"], "rate_limit_error");
  EXPECT_EQ(http_->Post("/tokenize", {{"prompt", "x"}}).status, 429);
}

TEST_F(OpenAiApiTest, WithoutARouter) {
  AddRouter(Reciting(kStory));
  GatewayOptions options;
  options.router_wait = milliseconds(100);
  Start(options);
  EXPECT_EQ(http_->Get("/health").status, 200);
  routers_[0]->Kill();
  AwaitHealth(grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(http_->Get("/health").status, 503);
  const HttpResponse response = http_->Post("/v1/completions", Completion());
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(json::parse(response.body)["error"]["type"], "overloaded_error");
  EXPECT_FALSE(HeaderOf(response, "retry-after").empty());
}

TEST_F(OpenAiApiTest, ModelsAndTokens) {
  Start();
  const json models = json::parse(http_->Get("/v1/models").body);
  EXPECT_EQ(models["object"], "list");
  EXPECT_EQ(models["data"][0]["id"], "fake");
  EXPECT_EQ(models["data"][0]["max_model_len"], 64);
  EXPECT_EQ(json::parse(http_->Get("/v1/models/fake").body)["id"], "fake");
  const HttpResponse unknown = http_->Get("/v1/models/other");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(json::parse(unknown.body)["error"]["code"], "model_not_found");

  const json tokens =
      PostOk("/tokenize", {{"prompt", "ab"}, {"add_special_tokens", false}});
  EXPECT_EQ(tokens["tokens"], json({97, 98}));
  EXPECT_EQ(tokens["count"], 2);
  EXPECT_EQ(PostOk("/detokenize", {{"tokens", {97, 98}}})["prompt"], "ab");
  EXPECT_EQ(json::parse(http_->Get("/tokenizer_info").body)["eos_token"],
            "</s>");
  EXPECT_TRUE(json::parse(http_->Get("/version").body)["version"].is_string());
}

// The text that the newest request's prompt stands for.
std::string PromptText(const FakeRouter& router) {
  const v1::RouterGenerateRequest request = router.requests().back();
  std::string text;
  for (const uint32_t token_id : request.prompt_token_ids()) {
    text += FakeTokenizer().TokenBytes(static_cast<int32_t>(token_id));
  }
  return text;
}

TEST_F(OpenAiApiTest, AChat) {
  Start();
  const json messages = {{{"role", "system"}, {"content", "be"}},
                         {{"role", "user"},
                          {"content",
                           {{{"type", "text"}, {"text", "hi"}},
                            {{"type", "text"}, {"text", "!"}}}},
                          {"name", "ann"}}};
  const json whole =
      PostOk("/v1/chat/completions", {{"messages", messages},
                                      {"temperature", 0},
                                      {"max_completion_tokens", 30},
                                      {"max_tokens", 2},
                                      {"tools", json::array()},
                                      {"response_format", {{"type", "text"}}}});
  EXPECT_EQ(PromptText(*routers_[0]), "s:be;u:hi!;a:");
  EXPECT_EQ(routers_[0]->requests()[0].max_tokens(), 30u);
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_THAT(whole["id"].get<std::string>(), StartsWith("chatcmpl-"));
  EXPECT_EQ(whole["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(whole["choices"][0]["message"]["content"], kStory);

  const std::vector<json> events =
      Stream("/v1/chat/completions", {{"messages", messages},
                                      {"stream", true},
                                      {"logprobs", true},
                                      {"top_logprobs", 2},
                                      {"add_generation_prompt", false}});
  EXPECT_EQ(PromptText(*routers_[0]), "s:be;u:hi!;");
  ASSERT_EQ(events.size(), sizeof(kStory));
  EXPECT_EQ(events[0]["object"], "chat.completion.chunk");
  EXPECT_EQ(events[0]["choices"][0]["delta"],
            json({{"role", "assistant"}, {"content", "O"}}));
  EXPECT_EQ(events[1]["choices"][0]["delta"], json({{"content", "n"}}));
  const json& logprob = events[0]["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(logprob["token"], "O");
  EXPECT_EQ(logprob["bytes"], json({'O'}));
  EXPECT_EQ(logprob["top_logprobs"].size(), 2u);
}

TEST_F(OpenAiApiTest, ControlTokensInMessagesAreText) {
  Start();
  const auto prompt = [&](const std::string& content) {
    PostOk("/v1/chat/completions",
           {{"messages", {{{"role", "user"}, {"content", content}}}},
            {"max_tokens", 1}});
    const v1::RouterGenerateRequest newest = routers_[0]->requests().back();
    return newest.prompt_token_ids();
  };
  const auto ids = prompt("a</s>b\xEF\xB7\x90</s>");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), FakeTokenizer::kEos), 0);
  EXPECT_EQ(PromptText(*routers_[0]), "u:a</s>b</s>;a:");
}

TEST_F(OpenAiApiTest, TheOpenInferenceProtocol) {
  Start();
  EXPECT_EQ(json::parse(http_->Get("/v2").body)["name"], "troupe");
  EXPECT_EQ(http_->Get("/v2/health/live").status, 200);
  EXPECT_EQ(http_->Get("/v2/health/ready").status, 200);
  const json model = json::parse(http_->Get("/v2/models/fake").body);
  EXPECT_EQ(model["versions"], json({kTestFingerprint}));
  EXPECT_EQ(model["inputs"][0]["datatype"], "BYTES");
  EXPECT_EQ(http_->Get("/v2/models/fake/ready").status, 200);
  EXPECT_EQ(http_->Get("/v2/models/fake/versions/fingerprint-1/ready").status,
            200);
  EXPECT_EQ(http_->Get("/v2/models/fake/versions/2").status, 404);
  EXPECT_EQ(http_->Get("/v2/models/other").status, 404);
  EXPECT_EQ(http_->Get("/v2x").status, 404);

  const auto stub = inference::GRPCInferenceService::NewStub(channel_);
  {
    grpc::ClientContext context;
    inference::ServerReadyResponse response;
    ASSERT_TRUE(
        stub->ServerReady(&context, inference::ServerReadyRequest(), &response)
            .ok());
    EXPECT_TRUE(response.ready());
  }
  grpc::ClientContext context;
  inference::ModelMetadataRequest request;
  request.set_name("other");
  inference::ModelMetadataResponse response;
  EXPECT_EQ(stub->ModelMetadata(&context, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(OpenAiApiTest, RequestIds) {
  Start();
  const std::vector<HttpHeader> mine = {{"x-request-id", "my-id-1"}};
  HttpResponse response = http_->Post("/v1/completions", Completion(), mine);
  EXPECT_EQ(HeaderOf(response, "x-request-id"), "my-id-1");
  EXPECT_EQ(json::parse(response.body)["id"], "cmpl-my-id-1");
  EXPECT_EQ(routers_[0]->requests()[0].request_id(), "my-id-1");
  // One that may not stand in a log is replaced.
  response =
      http_->Post("/v1/completions", Completion(), {{"x-request-id", "a b"}});
  EXPECT_EQ(HeaderOf(response, "x-request-id").size(), 32u);
  // Errors have one, too.
  response = http_->Post("/v1/completions", {{"prompt", 1}}, mine);
  EXPECT_EQ(HeaderOf(response, "x-request-id"), "my-id-1");
}

TEST_F(OpenAiApiTest, DrainingItFinishesWhatItHas) {
  AddRouter(HangingAfter(kStory, 2));
  Start();
  HttpClient running(Address());
  running.Begin("/v1/completions", Completion({{"stream", true}}));
  ASSERT_TRUE(running.NextEvent().has_value());
  ASSERT_TRUE(running.NextEvent().has_value());
  std::thread drain([&] { gateway_->Drain(milliseconds(3000)); });
  AwaitHealth(grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(HttpClient(Address()).Get("/health").status, 503);
  EXPECT_EQ(HttpClient(Address()).Post("/v1/completions", Completion()).status,
            503);
  running.Close();
  drain.join();
}

}  // namespace
}  // namespace troupe
