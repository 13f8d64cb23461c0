// What jinja2 makes of templates in transformers' environment, and what we do.
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "gtest/gtest.h"
#include "model/chat_template/chat_template.h"

namespace troupe {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::time_t kNow = 1767604023;  // 2026-01-05 09:07:03 UTC

Json ReadGolden(const std::string& name) {
  std::ifstream file(std::string(TROUPE_SOURCE_DIR) +
                     "/tests/goldens/chat_templates/" + name + ".json");
  EXPECT_TRUE(file.good()) << name;
  return Json::parse(file);
}

ChatTemplate::Tokens TokensOf(const Json& json) {
  ChatTemplate::Tokens tokens;
  for (const auto& [name, text] : json.items()) {
    tokens[name] = text.get<std::string>();
  }
  return tokens;
}

absl::StatusOr<std::string> Render(const std::string& source,
                                   const ChatTemplate::Tokens& tokens,
                                   const Json& messages, bool open,
                                   const Json& extra) {
  const absl::StatusOr<ChatTemplate> chat_template =
      ChatTemplate::Compile(source, tokens, [] { return kNow; });
  if (!chat_template.ok()) return chat_template.status();
  return chat_template->Render(messages, open, extra);
}

// `golden` has the text, what raise_exception() said, or another failure.
void Check(const absl::StatusOr<std::string>& result, const Json& golden,
           const std::string& what) {
  if (golden.contains("text")) {
    ASSERT_TRUE(result.ok()) << what << "\n" << result.status();
    EXPECT_EQ(*result, golden["text"].get<std::string>()) << what;
    return;
  }
  ASSERT_FALSE(result.ok())
      << what << "\ngives: " << *result << "\nand not " << golden.dump();
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  if (golden.contains("raised")) {
    EXPECT_EQ(result.status().message(), golden["raised"].get<std::string>())
        << what;
  } else {
    EXPECT_NE(result.status().message().find("line "), std::string::npos)
        << what << ": " << result.status();
  }
}

void SetTimeZone() {
  setenv("TZ", "UTC", 1);
  tzset();
}

class ChatTemplateGoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(ChatTemplateGoldenTest, RendersAsJinja2) {
  SetTimeZone();
  const Json inputs = ReadGolden("inputs");
  const Json golden = ReadGolden(GetParam());
  const ChatTemplate::Tokens tokens = TokensOf(inputs["tokens"]);
  const auto source = golden["template"].get<std::string>();
  ASSERT_TRUE(ChatTemplate::Compile(source, tokens).ok())
      << ChatTemplate::Compile(source, tokens).status();
  size_t num_texts = 0;
  for (const Json& test : golden["cases"]) {
    const auto conversation = test["conversation"].get<std::string>();
    const auto extra = test["extra"].get<std::string>();
    Check(Render(source, tokens, inputs["conversations"][conversation],
                 test["add_generation_prompt"].get<bool>(),
                 inputs["extras"][extra]),
          test, conversation + ", " + extra);
    num_texts += test.contains("text") ? 1 : 0;
  }
  EXPECT_GE(num_texts, 5u) << "too few cases that do not fail";
}

INSTANTIATE_TEST_SUITE_P(
    Families, ChatTemplateGoldenTest,
    testing::Values("mistral_alternating", "mistral_tools",
                    "chatml_default_system", "qwen_moe_tools",
                    "qwen3_moe_thinking", "olmoe", "deepseek_thinking",
                    "llama2", "llama3_tools", "phi_moe", "gemma", "granite_moe",
                    "coder_xml_tools", "typescript_tools", "blocks"),
    [](const auto& family) { return std::string(family.param); });

// What jinja2 renders and we refuse, for the reasons in
// docs/chat_templates.md.
const std::set<std::string>& Refused() {
  static const auto& refused = *new std::set<std::string>{
      // Printed as an address or by a name of Python's.
      "{{ d.items }}",
      "{{ d.keys() }}",
      "{{ s.upper }}",
      "{{ l | reverse }}",
      "{{ range(0) }}",
      // Not in the subset.
      "{{ 'abc' | batch(2) }}",
      "{{ d['a', 'b'] }}",
      "{{ '{0.__class__}'.format(s) }}",
      // Python's internals, which jinja2 finds only when they are used.
      "{{ s.__class__ }}",
      "{{ s.format.__self__ }}",
      "{{ range.__globals__ }}",
      "{{ namespace.__init__ }}",
      // Without an end.
      "{#",
  };
  return refused;
}

TEST(ChatTemplateExpressionsTest, AsJinja2) {
  SetTimeZone();
  const Json golden = ReadGolden("expressions");
  size_t num_refused = 0;
  for (const Json& test : golden["cases"]) {
    const auto source = test["template"].get<std::string>();
    const absl::StatusOr<std::string> result =
        Render(source, {}, Json::array(), false, golden["context"]);
    if (Refused().count(source) == 0) {
      Check(result, test, source);
      continue;
    }
    ++num_refused;
    EXPECT_TRUE(test.contains("text")) << source;
    EXPECT_FALSE(result.ok()) << source << " is refused no longer";
  }
  EXPECT_GE(golden["cases"].size(), 600u);
  EXPECT_EQ(num_refused, Refused().size());
}

}  // namespace
}  // namespace troupe
