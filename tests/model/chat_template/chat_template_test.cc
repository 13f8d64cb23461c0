// What a template may say, and what its errors say.
#include "model/chat_template/chat_template.h"

#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string CompileError(const std::string& source) {
  const absl::StatusOr<ChatTemplate> result = ChatTemplate::Compile(source, {});
  if (result.ok()) return "compiles";
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(result.status().message());
}

absl::StatusOr<std::string> Render(const std::string& source,
                                   const Json& extra = nullptr,
                                   const Json& messages = Json::array()) {
  const absl::StatusOr<ChatTemplate> result = ChatTemplate::Compile(source, {});
  EXPECT_TRUE(result.ok()) << source << ": " << result.status();
  if (!result.ok()) return result.status();
  return result->Render(messages, false, extra);
}

std::string RenderError(const std::string& source,
                        const Json& extra = nullptr) {
  const absl::StatusOr<std::string> result = Render(source, extra);
  if (result.ok()) return "renders " + *result;
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(result.status().message());
}

TEST(ChatTemplateCompileTest, NamesLineAndConstruct) {
  const struct {
    const char* source;
    const char* error;
  } kCases[] = {
      {"a\nb\n{% include 'x' %}",
       "line 3: the statement 'include' is not supported"},
      {"{% block x %}{% endblock %}",
       "line 1: the statement 'block' is not supported"},
      {"{% endif %}", "line 1: the statement 'endif' is not expected here"},
      {"{% if x %}\n{{ x | groupby('a') }}{% endif %}",
       "line 2: the filter 'groupby' is not supported"},
      {"{% if false %}{{ x | groupby('a') }}{% endif %}",
       "line 1: the filter 'groupby' is not supported"},
      {"{{ x is escaped }}", "line 1: the test 'escaped' is not supported"},
      {"{{ cycler(1, 2) }}", "line 1: the function 'cycler' is not supported"},
      {"{{ messages(1) }}", "line 1: the function 'messages' is not supported"},
      {"{{ x.encode() }}", "line 1: the method 'encode' is not supported"},
      {"{{ x[0](1) }}",
       "line 1: only functions, macros and methods by name can be called"},
      {"{{ x | map('nope') }}", "line 1: the filter 'nope' is not supported"},
      {"{{ x | selectattr('a', 'nope') }}",
       "line 1: the test 'nope' is not supported"},
      {"{{ x | replace('a') }}",
       "line 1: 'replace' lacks its argument 2, 'new'"},
      {"{{ x | upper(1) }}", "line 1: 'upper' takes 0 arguments here, not 1"},
      {"{{ x | tojson(indnt=2) }}",
       "line 1: 'tojson' takes no argument 'indnt' here"},
      {"{{ x.strip(1, 2) }}", "line 1: 'strip' takes 1 arguments here, not 2"},
      {"{{ raise_exception() }}",
       "line 1: 'raise_exception' lacks its argument 1, 'message'"},
      {"{{ f(*x) }}", "line 1: * and ** in a call are not supported"},
      {"{% for x in y recursive %}{% endfor %}",
       "line 1: a recursive 'for' is not supported"},
      {"{% macro f() %}{{ varargs }}{% endmacro %}",
       "line 1: the name 'varargs' in a macro is not supported"},
      {"{{ {1: 2} }}", "line 1: dict keys other than texts are not supported"},
      {"{{ x.__class__ }}",
       "line 1: the attribute '__class__' is not supported"},
      {"{% break %}", "line 1: 'break' outside of a loop"},
      {"{% if x %}\n",
       "line 1: the template ends before 'elif' or 'else' or "
       "'endif'"},
      {"\n{{ x", "line 2: a tag without an end"},
      {"{# x", "line 1: a comment without an end"},
      {"{% raw %}", "line 1: the statement 'raw' without an end"},
      {"{{ 'x }}", "line 1: a text without its closing quote"},
      {"{{ (x] }}", "line 1: unexpected ']'"},
      {"{{ x y }}", "line 1: unexpected 'y', wanted '}}'"},
      {"{{ }}", "line 1: unexpected '}}', wanted an expression"},
      {"{{ $ }}", "line 1: the character '$' is not expected here"},
      {"{{ 9223372036854775808 }}",
       "line 1: a bad number, or one beyond 64 bits"},
      {"{{ 1e999 }}", "line 1: a number beyond the range of a double"},
      {"{{ '\\ud800' }}", "line 1: an escape that is no Unicode character"},
      {"{{ '\\x4' }}", "line 1: a text with a bad escape"},
      {"{{ f(a=1, a=2) }}", "line 1: the argument 'a' is repeated"},
  };
  for (const auto& test : kCases) {
    EXPECT_EQ(CompileError(test.source), test.error) << test.source;
  }
}

TEST(ChatTemplateCompileTest, RefusesWhatIsNotUtf8) {
  EXPECT_EQ(CompileError("ab\xff"), "not UTF-8 from byte 2 on");
  EXPECT_FALSE(ChatTemplate::Compile("", {{"bos_token", "\xc0"}}).ok());
}

TEST(ChatTemplateRenderTest, ErrorsNameTheLine) {
  EXPECT_EQ(RenderError("\n\n{{ x.y }}"),
            "chat template, line 3: 'x' is undefined");
  EXPECT_EQ(RenderError("{{ 1 / n }}", {{"n", 0}}),
            "chat template, line 1: division by zero");
  EXPECT_EQ(RenderError("\n{{ x.y.z }}", {{"x", Json::object()}}),
            "chat template, line 2: a dict has no 'y'");
  EXPECT_EQ(RenderError("{{ 'a' + n }}", {{"n", 0}}),
            "chat template, line 1: unsupported operand types for +: str and "
            "int");
  EXPECT_THAT(RenderError("{% set x = [] %}{{ x.append(1) }}"),
              HasSubstr("immutable sandbox"));
}

TEST(ChatTemplateRenderTest, RaisedTextIsTheWholeMessage) {
  EXPECT_EQ(RenderError("{{ raise_exception('only ' ~ 1) }}"), "only 1");
}

TEST(ChatTemplateRenderTest, VariablesOfOutside) {
  const auto chat_template = ChatTemplate::Compile(
      "{{ bos_token }}{{ messages[0].a }}{{ add_generation_prompt }}"
      "{{ tools is none }}{{ documents is none }}{{ x }}",
      {{"bos_token", "<s>"}});
  ASSERT_TRUE(chat_template.ok());
  const Json messages = Json::parse(R"([{"a": 1}])");
  EXPECT_EQ(*chat_template->Render(messages, true, Json()), "<s>1TrueTrueTrue");
  EXPECT_EQ(*chat_template->Render(
                messages, false,
                Json({{"x", 2}, {"tools", Json::array()}, {"bos_token", "B"}})),
            "B1FalseFalseTrue2");
}

TEST(ChatTemplateRenderTest, RefusesBadArguments) {
  const auto chat_template = ChatTemplate::Compile("x", {});
  ASSERT_TRUE(chat_template.ok());
  const auto error = [&](const Json& messages, const Json& extra) {
    return std::string(
        chat_template->Render(messages, false, extra).status().message());
  };
  EXPECT_EQ(error(Json::object(), nullptr), "messages is not an array");
  EXPECT_EQ(error(Json::array(), 5), "the further variables are not an object");
  EXPECT_EQ(error(Json::array(), {{"messages", 5}}),
            "messages cannot be a further variable");
  EXPECT_EQ(error(Json::array({18446744073709551615u}), nullptr),
            "messages: an integer beyond 64 bits");
  EXPECT_EQ(error(Json::array({"\xff"}), nullptr),
            "messages: a text that is not UTF-8");
  EXPECT_EQ(error(Json::array({Json::binary({1})}), nullptr),
            "messages: a value that is not JSON");
  Json deep = 1;
  for (int i = 0; i < 65; ++i) deep = Json::array({deep});
  EXPECT_EQ(error(deep, nullptr),
            "messages: lists and objects more than 64 deep");
}

TEST(ChatTemplateRenderTest, OrderedJsonKeepsTheOrderOfKeys) {
  const auto chat_template =
      ChatTemplate::Compile("{{ messages[0] | tojson }}", {});
  ASSERT_TRUE(chat_template.ok());
  const char kText[] = R"([{"z": 1, "a": 2}])";
  EXPECT_EQ(*chat_template->Render(nlohmann::ordered_json::parse(kText), false,
                                   nlohmann::ordered_json()),
            R"({"z": 1, "a": 2})");
  EXPECT_EQ(*chat_template->Render(Json::parse(kText), false, Json()),
            R"({"a": 2, "z": 1})");
}

TEST(ChatTemplateRenderTest, LargeDictsFindEveryKey) {
  Json large;
  for (int i = 0; i < 1000; ++i) large["k" + std::to_string(i)] = i;
  EXPECT_EQ(*Render("{% set ns = namespace(n=0) %}{% for k in d %}"
                    "{% set ns.n = ns.n + d[k] %}{% endfor %}{{ ns.n }}"
                    "{{ d.k1000 is defined }}",
                    {{"d", large}}),
            "499500False");
}

TEST(ChatTemplateRenderTest, OneTemplateManyThreads) {
  const auto chat_template = ChatTemplate::Compile(
      "{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
      "{% for m in messages %}{{ f(m) | upper | replace('1', 'é') }}"
      "{% endfor %}",
      {});
  ASSERT_TRUE(chat_template.ok());
  std::vector<std::thread> threads;
  std::vector<std::string> results(4);
  for (std::string& result : results) {
    threads.emplace_back([&result, copy = *chat_template] {
      for (int i = 0; i < 100; ++i) {
        result = *copy.Render(Json::array({3, 2, 11}), true, Json());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& result : results) {
    EXPECT_EQ(result, "32é2éééé098765432é");
  }
}

}  // namespace
}  // namespace troupe
