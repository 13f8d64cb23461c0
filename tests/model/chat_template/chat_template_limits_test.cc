// Templates and conversations that ask for too much get an error, and soon.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/chat_template/chat_template.h"
#include "model/chat_template/limits.h"

namespace troupe {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// The error of compiling, else of rendering.
std::string ErrorOf(const std::string& source, const Json& extra = nullptr) {
  const absl::StatusOr<ChatTemplate> chat_template =
      ChatTemplate::Compile(source, {});
  const absl::Status status =
      chat_template.ok()
          ? chat_template->Render(Json::array(), true, extra).status()
          : chat_template.status();
  if (status.ok()) return "none";
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

std::string Repeated(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

constexpr char kSteps[] = "more than 4000000 steps";
constexpr char kMemory[] = "more than 67108864 bytes of memory";

TEST(ChatTemplateLimitsTest, Source) {
  EXPECT_EQ(ErrorOf(std::string(jinja::kMaxTemplateBytes, 'x')), "none");
  EXPECT_THAT(ErrorOf(std::string(jinja::kMaxTemplateBytes + 1, 'x')),
              HasSubstr("of at most 1048576"));
}

TEST(ChatTemplateLimitsTest, NestedSource) {
  const auto brackets = [](int depth) {
    return "{{ " + std::string(depth, '(') + "1" + std::string(depth, ')') +
           " }}";
  };
  EXPECT_EQ(ErrorOf(brackets(100)), "none");
  EXPECT_THAT(ErrorOf(brackets(101)), HasSubstr("more than 100 open brackets"));
  EXPECT_THAT(ErrorOf(brackets(500'000)), HasSubstr("open brackets"));
  const auto statements = [](int depth) {
    return Repeated("{% if true %}", depth) + Repeated("{% endif %}", depth);
  };
  EXPECT_EQ(ErrorOf(statements(100)), "none");
  EXPECT_THAT(ErrorOf(statements(101)),
              HasSubstr("more than 100 open statements"));
  EXPECT_THAT(ErrorOf("{% for " + Repeated("(", 99) + "x" + Repeated(")", 99) +
                      " in y %}{% endfor %}"),
              "none");
}

TEST(ChatTemplateLimitsTest, LongExpressions) {
  const std::string kLevels = "an expression of more than 200 levels";
  EXPECT_EQ(ErrorOf("{{ 1" + Repeated(" + 1", 199) + " }}"), "none");
  for (const std::string& source : {
           "{{ 1" + Repeated(" + 1", 200) + " }}",
           "{{ 1" + Repeated(" + 1", 200'000) + " }}",
           "{{ " + Repeated("not ", 200'000) + "1 }}",
           "{{ " + Repeated("- ", 200'000) + "1 }}",
           "{{ " + Repeated("1 if 0 else ", 50'000) + "1 }}",
           "{{ 1" + Repeated(" if 1", 100'000) + " }}",
           "{{ x" + Repeated(".x", 200'000) + " }}",
           "{{ x" + Repeated("[0]", 200'000) + " }}",
           "{{ x" + Repeated("|trim", 100'000) + " }}",
           "{{ x" + Repeated(" or x", 100'000) + " }}",
           "{{ x" + Repeated(" ** 1", 100'000) + " }}",
       }) {
    EXPECT_THAT(ErrorOf(source), HasSubstr(kLevels)) << source.substr(0, 40);
  }
}

TEST(ChatTemplateLimitsTest, LongFlatSourceIsFine) {
  EXPECT_EQ(
      ErrorOf("{% if 0 %}" + Repeated("{% elif 0 %}", 50'000) + "{% endif %}"),
      "none");
  EXPECT_EQ(ErrorOf("{{ 1" + Repeated(" ~ 1", 100'000) + " }}"), "none");
  EXPECT_EQ(ErrorOf("{{ 1" + Repeated(" < 1", 100'000) + " }}"), "none");
}

TEST(ChatTemplateLimitsTest, Steps) {
  EXPECT_THAT(ErrorOf("{% for a in range(3000) %}{% for b in range(3000) %}"
                      "{% endfor %}{% endfor %}"),
              HasSubstr(kSteps));
  EXPECT_THAT(ErrorOf("{% set x = range(99999) | list %}"
                      "{% for a in x %}{% if a in x %}{% endif %}{% endfor %}"),
              HasSubstr(kSteps));
  EXPECT_THAT(ErrorOf("{% set x = 'a' * 4000000 %}{% for a in range(9999) %}"
                      "{% if 'b' in x %}{% endif %}{% endfor %}"),
              HasSubstr(kSteps));
  EXPECT_THAT(ErrorOf("{{ range(99999) | map('string') | unique | list }}"),
              HasSubstr(kSteps));
}

TEST(ChatTemplateLimitsTest, Recursion) {
  EXPECT_THAT(ErrorOf("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
              HasSubstr("more than 600 statements and expressions"));
  EXPECT_THAT(ErrorOf("{% macro f() %}{{ g() }}{% endmacro %}"
                      "{% macro g() %}{% if 1 %}{{ f() }}{% endif %}"
                      "{% endmacro %}{{ f() }}"),
              HasSubstr("more than 600 statements and expressions"));
  EXPECT_THAT(ErrorOf("{% macro f() %}{% call f() %}{% endcall %}"
                      "{{ caller() }}{% endmacro %}"
                      "{% call f() %}{% endcall %}"),
              HasSubstr("more than 600 statements and expressions"));
  EXPECT_EQ(ErrorOf("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{% endif %}"
                    "{% endmacro %}{{ f(100) }}"),
            "none");
}

TEST(ChatTemplateLimitsTest, Memory) {
  const char* const kSources[] = {
      "{{ 'a' * 9000000000000 }}",
      "{{ [1] * 9000000000000 }}",
      "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}"
      "{% set ns.x = ns.x + ns.x %}{% endfor %}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}"
      "{% set ns.x = ns.x + ns.x %}{% endfor %}",
      "{{ ('a' * 100000) | replace('a', 'b' * 100000) | length }}",
      "{{ ('a' * 100000).replace('', 'b' * 100000) | length }}",
      "{{ (['a' * 100000] * 10000) | join | length }}",
      "{{ (['a'] * 10000) | join('b' * 100000) | length }}",
      "{{ ('b' * 100000).join(['a'] * 10000) | length }}",
      "{{ ('%s' * 10000) | format('a') }}",
      "{{ ('\\n' * 100000) | indent(100000, blank=true) | length }}",
      "{{ ('\\n' * 100000) | indent(9000000000000) | length }}",
      "{{ [1, 2] | tojson(indent=9000000000000) }}",
      "{{ ('\\n' * 20000000).splitlines() | length }}",
      "{{ ('a ' * 20000000).split() | length }}",
      "{{ ('a ' * 20000000).rsplit() | length }}",
      "{{ ('a,' * 20000000).split(',') | length }}",
      "{{ ('a,' * 20000000).rsplit(',') | length }}",
      "{{ ('é' * 10000000)[::-1] | length }}",
      "{% for c in 'a' * 20000000 %}{% endfor %}",
      "{{ [1, 2] | tojson(indent='a' * 30000000) | length }}",
      "{{ '{0}{0}{0}{0}{0}{0}{0}{0}'.format('a' * 30000000) | length }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}"
      "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}"
      "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson | length }}",
      "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}"
      "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x ~ '' == '' }}",
      "{% macro f(n) %}{{ 'a' * 100000 }}{{ f(n) if n else '' }}{% endmacro %}"
      "{% for i in range(99999) %}{% set x %}{{ f(0) }}{% endset %}"
      "{% endfor %}",
      "{% for i in range(99999) %}{% macro f() %}{% endmacro %}"
      "{% for j in range(99999) %}{% endfor %}{% endfor %}",
  };
  for (const char* source : kSources) {
    EXPECT_THAT(ErrorOf(source),
                AnyOf(HasSubstr(kMemory), HasSubstr(kSteps),
                      HasSubstr("more than 8388608 bytes of output"),
                      HasSubstr("not enough values")))
        << source;
  }
  EXPECT_THAT(ErrorOf("{{ x | length }}", {{"x", std::string(70 << 20, 'a')}}),
              HasSubstr(kMemory));
}

TEST(ChatTemplateLimitsTest, DeepValues) {
  const std::string deep =
      "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}"
      "{% set ns.x = [ns.x] %}{% endfor %}";
  const std::string kDeep = "lists and dicts more than 100 deep";
  EXPECT_EQ(ErrorOf(deep), "none");
  EXPECT_THAT(ErrorOf(deep + "{{ ns.x }}"), HasSubstr(kDeep));
  EXPECT_THAT(ErrorOf(deep + "{{ ns.x | tojson }}"), HasSubstr(kDeep));
  EXPECT_THAT(ErrorOf(deep + "{{ ns.x == [ns.x[0]] }}"), HasSubstr(kDeep));
  EXPECT_THAT(ErrorOf(deep + "{{ ns.x < [ns.x[0]] }}"), HasSubstr(kDeep));
  // A namespace can hold itself; it is neither printed nor compared deeply.
  EXPECT_THAT(ErrorOf("{% set ns = namespace() %}{% set ns.x = [ns] %}"
                      "{{ ns.x }}"),
              HasSubstr("a namespace cannot be printed"));
  EXPECT_EQ(ErrorOf("{% set ns = namespace() %}{% set ns.x = [ns] %}"
                    "{{ ns.x == [ns] }}"),
            "none");
}

TEST(ChatTemplateLimitsTest, ExponentialComparison) {
  EXPECT_THAT(ErrorOf("{% set ns = namespace(x=[1], y=[1]) %}"
                      "{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}"
                      "{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
                      "{{ ns.x == ns.y }}"),
              HasSubstr(kSteps));
}

TEST(ChatTemplateLimitsTest, Output) {
  const std::string fits = "{{ 'a' * 4194304 }}{{ 'a' * 4194304 }}";
  EXPECT_EQ(ErrorOf(fits), "none");
  EXPECT_THAT(ErrorOf(fits + "b"),
              HasSubstr("more than 8388608 bytes of output"));
}

TEST(ChatTemplateLimitsTest, Range) {
  EXPECT_EQ(ErrorOf("{{ range(100000) | length }}"), "none");
  EXPECT_THAT(ErrorOf("{{ range(100001) | length }}"),
              HasSubstr("a range of more than 100000 items"));
  EXPECT_THAT(ErrorOf("{{ range(-9223372036854775807, 9223372036854775807) }}"),
              HasSubstr("a range of more than 100000 items"));
  EXPECT_EQ(ErrorOf("{{ range(9223372036854775800, 9223372036854775807, 5)"
                    " | length }}"),
            "none");
}

TEST(ChatTemplateLimitsTest, ALongConversationFits) {
  // As templates of the families write it: 4 MiB in one message, or in 4096.
  const std::string source =
      "{% for m in x %}{{ '<|im_start|>' + m.role + '\\n' + m.content | trim "
      "+ '<|im_end|>' + '\\n' }}{% endfor %}";
  const Json one =
      Json::array({{{"role", "user"}, {"content", std::string(4 << 20, 'a')}}});
  Json many = Json::array();
  for (int i = 0; i < 4096; ++i) {
    many.push_back({{"role", "user"}, {"content", std::string(1 << 10, 'a')}});
  }
  EXPECT_EQ(ErrorOf(source, {{"x", one}}), "none");
  EXPECT_EQ(ErrorOf(source, {{"x", many}}), "none");
}

// Searches whose cost is the product of two sizes in a simple implementation.
TEST(ChatTemplateLimitsTest, HostileSearches) {
  const Json extra = {{"text", std::string(2 << 20, 'a')},
                      {"part", std::string(1 << 20, 'a') + "b"},
                      {"run", std::string(1 << 20, 'a')}};
  for (const char* source : {
           "{{ part in text }}",
           "{{ text.find(part) }}",
           "{{ text.rfind(part) }}",
           "{{ text.rfind(run) }}",
           "{{ text.rsplit(run) | length }}",
           "{{ text.split(part) | length }}",
           "{{ text.count(part) }}",
           "{{ text.replace(part, '') | length }}",
           "{{ text.partition(part) | length }}",
           "{{ text.rpartition(run) | length }}",
       }) {
    EXPECT_EQ(ErrorOf(source, extra), "none") << source;
  }
  EXPECT_THAT(ErrorOf("{{ text.strip(part) }}", extra), HasSubstr(kSteps));
}

}  // namespace
}  // namespace troupe
