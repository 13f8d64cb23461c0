// What a client can do wrong over HTTP, and the status and the named field
// that it gets.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/http_client.h"
#include "tests/gateway/gateway_fixture.h"

namespace troupe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr char kCompletions[] = "/v1/completions";
constexpr char kChat[] = "/v1/chat/completions";

struct Case {
  const char* name;
  std::string path;
  std::string body;
  int status;
  const char* param;    // nullptr: null
  const char* message;  // a part of it
};

std::string Nested(size_t depth) {
  return absl::StrCat("{\"prompt\":", std::string(depth, '['),
                      std::string(depth, ']'), "}");
}

std::string With(const std::string& field) {
  return absl::StrCat("{\"prompt\":\"a\",\"max_tokens\":4,", field, "}");
}

std::string Message(const std::string& message) {
  return absl::StrCat("{\"messages\":[", message, "]}");
}

std::string ChatWith(const std::string& field) {
  return absl::StrCat("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],",
                      field, "}");
}

std::vector<Case> Cases() {
  return {
      // Not JSON, or not what belongs there.
      {"Empty", kCompletions, "", 400, nullptr, "invalid JSON"},
      {"NoJson", kCompletions, "prompt=a", 400, nullptr, "invalid JSON"},
      {"CutJson", kCompletions, "{\"prompt\":\"a\"", 400, nullptr,
       "invalid JSON"},
      {"Behind", kCompletions, "{\"prompt\":\"a\"} x", 400, nullptr,
       "invalid JSON"},
      {"Array", kCompletions, "[]", 400, nullptr, "an array"},
      {"Number", kCompletions, "7", 400, nullptr, "a number"},
      {"Null", kChat, "null", 400, nullptr, "null"},
      {"TooDeep", kCompletions, Nested(100), 400, nullptr, "nested"},
      {"MuchTooDeep", kCompletions, Nested(100000), 400, nullptr, "nested"},
      {"Duplicate", kCompletions, "{\"prompt\":\"a\",\"prompt\":\"b\"}", 400,
       nullptr, "duplicate"},
      {"HugeNumber", kCompletions, With("\"seed\":1e999"), 400, nullptr,
       "number"},
      {"BadUtf8", kCompletions, "{\"prompt\":\"\xff\"}", 400, nullptr, "UTF-8"},
      {"LoneSurrogate", kCompletions, "{\"prompt\":\"\\ud800\"}", 400, nullptr,
       "JSON"},
      // Prompts.
      {"NoPrompt", kCompletions, "{}", 400, "prompt", "missing"},
      {"NullPrompt", kCompletions, "{\"prompt\":null}", 400, "prompt",
       "missing"},
      {"NumberPrompt", kCompletions, "{\"prompt\":3}", 400, "prompt", "string"},
      {"ObjectPrompt", kCompletions, "{\"prompt\":{}}", 400, "prompt",
       "string"},
      {"NoPrompts", kCompletions, "{\"prompt\":[]}", 400, "prompt", "array"},
      {"EmptyIds", kCompletions, "{\"prompt\":[[]]}", 400, "prompt", "empty"},
      {"MixedPrompt", kCompletions, "{\"prompt\":[\"a\",[true]]}", 400,
       "prompt", "position 0"},
      {"BooleanPrompt", kCompletions, "{\"prompt\":[true]}", 400, "prompt",
       "a boolean"},
      {"NegativeId", kCompletions, "{\"prompt\":[1,-1]}", 400, "prompt",
       "position 1"},
      {"FractionId", kCompletions, "{\"prompt\":[1.5]}", 400, "prompt",
       "position 0"},
      {"HugeId", kCompletions, "{\"prompt\":[4294967296]}", 400, "prompt",
       "position 0"},
      {"UnknownId", kCompletions, "{\"prompt\":[300]}", 400, "prompt", "300"},
      {"ManyPrompts", kCompletions,
       absl::StrCat(
           "{\"prompt\":", json(std::vector<std::string>(65, "a")).dump(), "}"),
       400, "prompt", "65 prompts"},
      {"ManyChoices", kCompletions,
       absl::StrCat("{\"n\":16,\"prompt\":",
                    json(std::vector<std::string>(9, "a")).dump(), "}"),
       400, "prompt", "128 choices"},
      {"LongPrompt", kCompletions,
       absl::StrCat("{\"prompt\":\"", std::string(100, 'a'), "\"}"), 400,
       "prompt", "context"},
      // Numbers.
      {"NegativeTokens", kCompletions, "{\"prompt\":\"a\",\"max_tokens\":-1}",
       400, "max_tokens", "-1"},
      {"ZeroTokens", kCompletions, "{\"prompt\":\"a\",\"max_tokens\":0}", 400,
       "max_tokens", "echo"},
      {"FractionTokens", kCompletions, "{\"prompt\":\"a\",\"max_tokens\":1.5}",
       400, "max_tokens", "1.5"},
      {"TextTokens", kCompletions, "{\"prompt\":\"a\",\"max_tokens\":\"5\"}",
       400, "max_tokens", "a string"},
      {"HugeTokens", kCompletions,
       "{\"prompt\":\"a\",\"max_tokens\":99999999999999999999}", 400,
       "max_tokens", "allowed"},
      {"TooManyTokens", kCompletions, "{\"prompt\":\"a\",\"max_tokens\":64}",
       400, "prompt", "context"},
      {"Cold", kCompletions, With("\"temperature\":-0.1"), 400, "temperature",
       "-0.1"},
      {"Hot", kCompletions, With("\"temperature\":101"), 400, "temperature",
       "101"},
      {"TextTemperature", kCompletions, With("\"temperature\":\"hot\""), 400,
       "temperature", "a string"},
      {"TopPZero", kCompletions, With("\"top_p\":0"), 400, "top_p", "0"},
      {"TopPTwo", kCompletions, With("\"top_p\":2"), 400, "top_p", "2"},
      {"TopKMinusTwo", kCompletions, With("\"top_k\":-2"), 400, "top_k", "-2"},
      {"MinP", kCompletions, With("\"min_p\":1.5"), 400, "min_p", "1.5"},
      {"Presence", kCompletions, With("\"presence_penalty\":3"), 400,
       "presence_penalty", "3"},
      {"Frequency", kCompletions, With("\"frequency_penalty\":-3"), 400,
       "frequency_penalty", "-3"},
      {"Repetition", kCompletions, With("\"repetition_penalty\":0"), 400,
       "repetition_penalty", "0"},
      {"ZeroChoices", kCompletions, With("\"n\":0"), 400, "n", "0"},
      {"HugeChoices", kCompletions, With("\"n\":1000000"), 400, "n", "16"},
      {"BestOf", kCompletions, With("\"best_of\":3"), 400, "best_of", "3"},
      {"FractionSeed", kCompletions, With("\"seed\":0.5"), 400, "seed", "0.5"},
      {"ManyLogprobs", kCompletions, With("\"logprobs\":21"), 400,
       "top_logprobs", "21"},
      {"NegativeLogprobs", kCompletions, With("\"logprobs\":-1"), 400,
       "logprobs", "-1"},
      {"BooleanLogprobs", kCompletions, With("\"logprobs\":true"), 400,
       "logprobs", "a boolean"},
      {"MinTokens", kCompletions, With("\"min_tokens\":5"), 400, "min_tokens",
       "max_tokens"},
      // Biases and stops.
      {"BiasArray", kCompletions, With("\"logit_bias\":[1]"), 400, "logit_bias",
       "an array"},
      {"BiasKey", kCompletions, With("\"logit_bias\":{\"x\":1}"), 400,
       "logit_bias", "token ids"},
      {"BiasValue", kCompletions, With("\"logit_bias\":{\"1\":\"x\"}"), 400,
       "logit_bias", "numbers"},
      {"BiasRange", kCompletions, With("\"logit_bias\":{\"1\":101}"), 400,
       "logit_bias", "101"},
      {"BiasId", kCompletions, With("\"logit_bias\":{\"300\":1}"), 400,
       "logit_bias", "300"},
      {"StopNumber", kCompletions, With("\"stop\":3"), 400, "stop", "string"},
      {"StopNumbers", kCompletions, With("\"stop\":[3]"), 400, "stop",
       "string"},
      {"StopEmpty", kCompletions, With("\"stop\":[\"\"]"), 400, "stop",
       "empty"},
      {"StopLong", kCompletions,
       With(absl::StrCat("\"stop\":\"", std::string(257, 'x'), "\"")), 400,
       "stop", "257"},
      {"StopMany", kCompletions,
       With(absl::StrCat("\"stop\":",
                         json(std::vector<std::string>(17, "x")).dump())),
       400, "stop", "17"},
      {"StopIds", kCompletions, With("\"stop_token_ids\":\"x\""), 400,
       "stop_token_ids", "array"},
      // Switches.
      {"StreamText", kCompletions, With("\"stream\":\"yes\""), 400, "stream",
       "a string"},
      {"OptionsAlone", kCompletions,
       With("\"stream_options\":{\"include_usage\":true}"), 400,
       "stream_options", "stream is false"},
      {"OptionsText", kCompletions,
       With("\"stream\":true,\"stream_options\":\"x\""), 400, "stream_options",
       "a string"},
      {"OptionsField", kCompletions,
       With("\"stream\":true,\"stream_options\":{\"include_usage\":1}"), 400,
       "stream_options.include_usage", "a number"},
      {"Suffix", kCompletions, With("\"suffix\":\"x\""), 400, "suffix",
       "not supported"},
      {"EchoNumber", kCompletions, With("\"echo\":1"), 400, "echo", "a number"},
      {"Model", kCompletions, With("\"model\":\"other\""), 404, "model",
       "other"},
      {"ModelNumber", kCompletions, With("\"model\":4"), 400, "model",
       "a number"},
      {"Extension", kCompletions, With("\"troupe\":\"x\""), 400, "troupe",
       "a string"},
      {"Fallback", kCompletions, With("\"troupe\":{\"fallback\":\"best\"}"),
       400, "troupe.fallback", "exact"},
      {"FallbackOrder", kCompletions,
       With("\"troupe\":{\"fallback\":[\"drop\",\"wait\"]}"), 400,
       "troupe.fallback", "order"},
      // Chats.
      {"NoMessages", kChat, "{}", 400, "messages", "missing"},
      {"EmptyMessages", kChat, "{\"messages\":[]}", 400, "messages", "array"},
      {"MessageText", kChat, Message("\"hello\""), 400, "messages[0]",
       "object"},
      {"NoRole", kChat, Message("{\"content\":\"a\"}"), 400, "messages[0].role",
       "string"},
      {"RoleNumber", kChat, Message("{\"role\":1,\"content\":\"a\"}"), 400,
       "messages[0].role", "string"},
      {"ContentNumber", kChat, Message("{\"role\":\"user\",\"content\":5}"),
       400, "messages[0].content", "string"},
      {"Image", kChat,
       Message("{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}"),
       400, "messages[0].content[0]", "type text"},
      {"Tools", kChat, ChatWith("\"tools\":[{\"type\":\"function\"}]"), 400,
       "tools", "not supported"},
      {"JsonMode", kChat,
       ChatWith("\"response_format\":{\"type\":\"json_object\"}"), 400,
       "response_format", "not supported"},
      {"TopLogprobs", kChat, ChatWith("\"top_logprobs\":3"), 400,
       "top_logprobs", "logprobs is false"},
      {"TemplateVariable", kChat,
       ChatWith("\"chat_template_kwargs\":{\"messages\":[]}"), 400,
       "chat_template_kwargs.messages", "may set"},
      // The other routes.
      {"Embeddings", "/v1/embeddings", "{\"input\":\"a\"}", 400, nullptr,
       "embeddings"},
      {"NoText", "/tokenize", "{}", 400, "prompt", "missing"},
      {"NoTokens", "/detokenize", "{\"tokens\":\"a\"}", 400, "tokens", "array"},
      {"NoSuchToken", "/detokenize", "{\"tokens\":[299999]}", 400, nullptr,
       "299999"},
      {"NoRoute", "/v1/other", "{}", 404, nullptr, "/v1/other"},
      {"NoRouteAtAll", "/../etc/passwd", "{}", 404, nullptr, "there is no"},
  };
}

class BadInputsTest : public GatewayTest {};

TEST_F(BadInputsTest, EachGetsItsStatusAndItsField) {
  AddRouter(Reciting(kStory));
  GatewayOptions options;
  options.http.listen = {"127.0.0.1:0"};
  StartGateway(options);
  HttpClient http(gateway_->http_addresses()[0]);
  const std::vector<Case> cases = Cases();
  EXPECT_GE(cases.size(), 60u);
  for (const Case& bad : cases) {
    SCOPED_TRACE(bad.name);
    const HttpResponse response = http.Send(
        "POST", bad.path, bad.body, {{"content-type", "application/json"}});
    EXPECT_EQ(response.status, bad.status) << response.body;
    const json body = json::parse(response.body, nullptr, false);
    ASSERT_TRUE(body.is_object()) << response.body;
    const json& error = body["error"];
    EXPECT_EQ(error["param"],
              bad.param == nullptr ? json(nullptr) : json(bad.param))
        << response.body;
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(bad.message));
    EXPECT_TRUE(error["type"].is_string());
  }
  // Nothing came of them, and the connection is as good as new.
  EXPECT_TRUE(routers_[0]->requests().empty());
  EXPECT_EQ(Stats().active_requests(), 0u);
  EXPECT_EQ(http.Get("/health").status, 200);
}

TEST_F(BadInputsTest, MethodsAndTypes) {
  AddRouter(Reciting(kStory));
  GatewayOptions options;
  options.http.listen = {"127.0.0.1:0"};
  StartGateway(options);
  HttpClient http(gateway_->http_addresses()[0]);
  const HttpResponse wrong = http.Get("/v1/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(HeaderOf(wrong, "allow"), "POST");
  EXPECT_EQ(http.Send("POST", "/health").status, 405);
  EXPECT_EQ(http.Send("DELETE", "/v1/models").status, 405);
  EXPECT_EQ(http.Send("HEAD", "/health").status, 200);
  EXPECT_EQ(http.Send("POST", "/v1/completions", "{}").status, 415);
  EXPECT_EQ(http.Send("POST", "/v1/completions", "{}",
                      {{"content-type", "text/plain"}})
                .status,
            415);
  EXPECT_EQ(http.Send("POST", "/v1/completions", "{\"prompt\":\"a\"}",
                      {{"content-type", "application/json; charset=utf-8"}})
                .status,
            200);
}

}  // namespace
}  // namespace troupe
