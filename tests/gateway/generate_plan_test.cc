#include "gateway/generate_plan.h"

#include <cmath>
#include <functional>
#include <limits>

#include "gateway/choice_seed.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_dir.h"
#include "tests/gateway/test_model.h"

namespace troupe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

v1::GenerateRequest Valid() {
  v1::GenerateRequest request;
  request.set_text("hello");
  return request;
}

struct BadField {
  std::string name;
  std::function<void(v1::GenerateRequest&)> spoil;
  std::vector<std::string> message;  // parts: the field and its value
};

class BadFields : public testing::TestWithParam<BadField> {};

TEST_P(BadFields, AreNamedWithTheirValue) {
  const ServedModel model = TestModel();
  v1::GenerateRequest request = Valid();
  ASSERT_TRUE(CheckGenerateRequest(request, model, {}).ok());
  GetParam().spoil(request);
  const absl::Status status =
      CheckGenerateRequest(request, model, {.max_prompt_bytes = 1000});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& part : GetParam().message) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
}

#define SPOIL(statement) [](v1::GenerateRequest& request) { request.statement; }
INSTANTIATE_TEST_SUITE_P(
    Table, BadFields,
    testing::Values(
        BadField{"prompt_missing", SPOIL(clear_text()), {"prompt", "missing"}},
        BadField{"prompt_long",
                 SPOIL(set_text(std::string(1001, 'x'))),
                 {"text", "1001", "1000"}},
        BadField{"prompt_id",
                 [](v1::GenerateRequest& request) {
                   request.mutable_tokens()->add_token_ids(5);
                   request.mutable_tokens()->add_token_ids(300);
                 },
                 {"tokens.token_ids[1]", "300"}},
        BadField{"temperature_negative",
                 SPOIL(mutable_sampling()->set_temperature(-0.5f)),
                 {"sampling.temperature", "-0.5"}},
        BadField{"temperature_large",
                 SPOIL(mutable_sampling()->set_temperature(101)),
                 {"sampling.temperature", "101", "100"}},
        BadField{"temperature_nan",
                 SPOIL(mutable_sampling()->set_temperature(NAN)),
                 {"sampling.temperature", "nan"}},
        BadField{"temperature_inf",
                 SPOIL(mutable_sampling()->set_temperature(INFINITY)),
                 {"sampling.temperature", "inf"}},
        BadField{"top_p",
                 SPOIL(mutable_sampling()->set_top_p(1.5f)),
                 {"sampling.top_p", "1.5"}},
        BadField{"top_p_negative",
                 SPOIL(mutable_sampling()->set_top_p(-0.25f)),
                 {"sampling.top_p", "-0.25"}},
        BadField{"min_p",
                 SPOIL(mutable_sampling()->set_min_p(2)),
                 {"sampling.min_p", "2"}},
        BadField{"repetition",
                 SPOIL(mutable_sampling()->set_repetition_penalty(-1)),
                 {"sampling.repetition_penalty", "-1"}},
        BadField{"presence",
                 SPOIL(mutable_sampling()->set_presence_penalty(2.5f)),
                 {"sampling.presence_penalty", "2.5"}},
        BadField{"frequency",
                 SPOIL(mutable_sampling()->set_frequency_penalty(-3)),
                 {"sampling.frequency_penalty", "-3"}},
        BadField{"bias_key",
                 SPOIL(mutable_sampling()->mutable_logit_bias()->insert(
                     {300, 1.0f})),
                 {"sampling.logit_bias", "300"}},
        BadField{"bias_value",
                 SPOIL(mutable_sampling()->mutable_logit_bias()->insert(
                     {7, 200.0f})),
                 {"sampling.logit_bias[7]", "200"}},
        BadField{"n", SPOIL(set_n(17)), {"n is 17", "16"}},
        BadField{"stop_empty", SPOIL(add_stop("")), {"stop[0]", "empty"}},
        BadField{"stop_long",
                 SPOIL(add_stop(std::string(257, 's'))),
                 {"stop[0]", "257", "256"}},
        BadField{"stop_many",
                 [](v1::GenerateRequest& request) {
                   for (int i = 0; i < 17; ++i) request.add_stop("s");
                 },
                 {"stop", "17", "16"}},
        BadField{"stop_id",
                 SPOIL(add_stop_token_ids(4000)),
                 {"stop_token_ids[0]", "4000"}},
        BadField{"top_logprobs",
                 [](v1::GenerateRequest& request) {
                   request.set_logprobs(true);
                   request.set_top_logprobs(21);
                 },
                 {"top_logprobs is 21", "20"}},
        BadField{"top_logprobs_alone",
                 SPOIL(set_top_logprobs(2)),
                 {"top_logprobs is 2", "logprobs"}},
        BadField{"min_tokens",
                 [](v1::GenerateRequest& request) {
                   request.set_max_tokens(4);
                   request.set_min_tokens(5);
                 },
                 {"min_tokens is 5", "4"}},
        BadField{
            "request_id", SPOIL(set_request_id("two\nlines")), {"request_id"}},
        BadField{"request_id_long",
                 SPOIL(set_request_id(std::string(129, 'i'))),
                 {"request_id", "129"}}),
    [](const testing::TestParamInfo<BadField>& test) {
      return test.param.name;
    });
#undef SPOIL

TEST(CheckGenerateRequestTest, LimitsThemselvesAreAllowed) {
  v1::GenerateRequest request = Valid();
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(100);
  sampling.set_top_p(1);
  sampling.set_min_p(1);
  sampling.set_repetition_penalty(100);
  sampling.set_presence_penalty(2);
  sampling.set_frequency_penalty(-2);
  (*sampling.mutable_logit_bias())[299] = -100;
  request.set_n(16);
  for (int i = 0; i < 16; ++i) request.add_stop(std::string(256, 's'));
  request.add_stop_token_ids(299);
  request.set_logprobs(true);
  request.set_top_logprobs(20);
  request.set_max_tokens(5);
  request.set_min_tokens(5);
  request.set_request_id(std::string(128, 'i'));
  request.set_model("fake");
  EXPECT_EQ(CheckGenerateRequest(request, TestModel(), {}), absl::OkStatus());
}

TEST(CheckGenerateRequestTest, AnotherModelIsNotFound) {
  v1::GenerateRequest request = Valid();
  request.set_model("gpt-7");
  const absl::Status status = CheckGenerateRequest(request, TestModel(), {});
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"gpt-7\""));
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"fake\""));
}

TEST(FitContextTest, ZeroTakesTheRoomThereIs) {
  EXPECT_EQ(*FitContext(10, 0, 64, {}), 54u);
  EXPECT_EQ(*FitContext(63, 0, 64, {}), 1u);
}

TEST(FitContextTest, WhatFitsIsKept) {
  EXPECT_EQ(*FitContext(10, 54, 64, {}), 54u);
  EXPECT_EQ(*FitContext(10, 3, 64, {}), 3u);
}

struct Misfit {
  size_t prompt;
  uint32_t max_tokens;
  std::vector<std::string> numbers;
};

TEST(FitContextTest, ErrorsHaveBothNumbers) {
  const Misfit misfits[] = {{64, 0, {"64", "context is 64"}},
                            {200, 1, {"200", "context is 64"}},
                            {10, 55, {"10", "55", "65", "context is 64"}},
                            {10, 4294967295u, {"4294967305"}},
                            {0, 5, {"0 tokens"}}};
  for (const Misfit& misfit : misfits) {
    const absl::StatusOr<uint32_t> fit =
        FitContext(misfit.prompt, misfit.max_tokens, 64, {});
    ASSERT_EQ(fit.status().code(), absl::StatusCode::kInvalidArgument);
    for (const std::string& number : misfit.numbers) {
      EXPECT_THAT(std::string(fit.status().message()), HasSubstr(number));
    }
  }
}

TEST(FitContextTest, TheGatewaysOwnBound) {
  EXPECT_TRUE(FitContext(20, 0, 64, {.max_prompt_tokens = 20}).ok());
  const absl::Status status =
      FitContext(21, 0, 64, {.max_prompt_tokens = 20}).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("21"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("20"));
}

TEST(EncodePromptTest, OptionsReachTheTokenizer) {
  const FakeTokenizer tokenizer;
  v1::GenerateRequest request;
  request.set_text("a</s>");
  EXPECT_THAT(*EncodePrompt(request, tokenizer),
              ElementsAre(FakeTokenizer::kBos, 'a', '<', '/', 's', '>'));
  request.set_parse_special(true);
  request.set_no_special_tokens(true);
  EXPECT_THAT(*EncodePrompt(request, tokenizer),
              ElementsAre('a', FakeTokenizer::kEos));
  request.mutable_tokens()->add_token_ids(9);
  EXPECT_THAT(*EncodePrompt(request, tokenizer), ElementsAre(9));
}

TEST(PlanChoiceTest, SeedsStopsAndDefaults) {
  const ServedModel model = TestModel();
  v1::GenerateRequest request = Valid();
  request.add_stop_token_ids(7);
  request.add_stop_token_ids(FakeTokenizer::kEos);
  request.set_n(3);
  request.set_min_tokens(2);
  const v1::RouterGenerateRequest plan =
      PlanChoice(request, model, {1, 2}, 9, 42, "r", 2);
  EXPECT_EQ(plan.request_id(), "r.2");
  EXPECT_THAT(plan.prompt_token_ids(), ElementsAre(1, 2));
  EXPECT_EQ(plan.max_tokens(), 9u);
  EXPECT_EQ(plan.min_tokens(), 2u);
  EXPECT_EQ(plan.sampling().seed(), ChoiceSeed(42, 2));
  EXPECT_EQ(plan.sampling().repetition_penalty(), 1.25f);
  EXPECT_THAT(plan.stop_token_ids(), ElementsAre(7, FakeTokenizer::kEos));

  request.set_ignore_eos(true);
  request.clear_stop_token_ids();
  request.set_n(0);
  request.mutable_sampling()->set_temperature(0.5f);
  request.mutable_sampling()->set_seed(1);
  const v1::RouterGenerateRequest other =
      PlanChoice(request, model, {1, 2}, 9, 42, "r", 0);
  EXPECT_EQ(other.request_id(), "r");
  EXPECT_TRUE(other.stop_token_ids().empty());
  EXPECT_EQ(other.sampling().temperature(), 0.5f);
  EXPECT_EQ(other.sampling().repetition_penalty(), 0.0f);
  EXPECT_EQ(other.sampling().seed(), 42u);
}

TEST(PlanChoiceTest, PromptLogprobsOnlyForEcho) {
  const ServedModel model = TestModel();
  v1::GenerateRequest request = Valid();
  request.set_logprobs(true);
  EXPECT_FALSE(PlanChoice(request, model, {1}, 9, 1, "r", 0).prompt_logprobs());
  request.set_echo(true);
  EXPECT_TRUE(PlanChoice(request, model, {1}, 9, 1, "r", 0).prompt_logprobs());
}

TEST(DefaultSamplingTest, GreedyUnlessTheCheckpointSamples) {
  EXPECT_EQ(DefaultSampling({}).temperature(), 0.0f);
  GenerationDefaults greedy;
  greedy.do_sample = false;
  greedy.temperature = 0.7f;
  EXPECT_EQ(DefaultSampling(greedy).temperature(), 0.0f);
  GenerationDefaults sampled;
  sampled.do_sample = true;
  sampled.top_k = 20;
  EXPECT_EQ(DefaultSampling(sampled).temperature(), 1.0f);
  EXPECT_EQ(DefaultSampling(sampled).top_k(), 20u);
  GenerationDefaults named;
  named.temperature = 0.7f;
  named.top_p = 0.8f;
  EXPECT_EQ(DefaultSampling(named).temperature(), 0.7f);
  EXPECT_EQ(DefaultSampling(named).top_p(), 0.8f);
  GenerationDefaults penalty;
  penalty.repetition_penalty = 1.1f;
  EXPECT_EQ(DefaultSampling(penalty).temperature(), 0.0f);
  EXPECT_EQ(DefaultSampling(penalty).repetition_penalty(), 1.1f);
}

TEST(LoadServedModelTest, AFolderWithoutConfigIsNamed) {
  const TempDir dir;
  const absl::Status status = LoadServedModel(dir.path(), "m").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
}

TEST(LoadServedModelTest, ChatTemplateIsCompiledOrNamed) {
  const TempDir dir;
  std::filesystem::copy(
      std::string(TROUPE_SOURCE_DIR) + "/tests/goldens/olmoe_gqa", dir.path());
  absl::StatusOr<ServedModel> model = LoadServedModel(dir.path(), "m");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_FALSE(model->compiled_chat_template.has_value());
  const auto write = [&](const char* text) {
    std::ofstream(dir.File("chat_template.jinja")) << text;
  };
  write("{{ messages[0].content }}");
  model = LoadServedModel(dir.path(), "m");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->chat_template, "{{ messages[0].content }}");
  ASSERT_TRUE(model->compiled_chat_template.has_value());
  EXPECT_EQ(
      *model->compiled_chat_template->Render(
          nlohmann::json::array({{{"content", "hi"}}}), true, nlohmann::json()),
      "hi");
  write("\n{% include 'other' %}");
  EXPECT_EQ(LoadServedModel(dir.path(), "m").status().message(),
            dir.File("chat_template.jinja") +
                ": line 2: the statement 'include' is not supported");
}

TEST(GeneratePlanTest, FallbackIsCheckedAndPassedOn) {
  const ServedModel model = TestModel();
  v1::GenerateRequest request;
  request.set_text("a");
  EXPECT_FALSE(PlanChoice(request, model, {1}, 1, 1, "id", 0).has_fallback());
  request.mutable_fallback()->add_chain(v1::FallbackPolicy::STEP_DROP);
  EXPECT_TRUE(CheckGenerateRequest(request, model, {}).ok());
  EXPECT_EQ(PlanChoice(request, model, {1}, 1, 1, "id", 0).fallback().chain(0),
            v1::FallbackPolicy::STEP_DROP);
  request.mutable_fallback()->add_chain(v1::FallbackPolicy::STEP_WAIT);
  EXPECT_THAT(std::string(CheckGenerateRequest(request, model, {}).message()),
              HasSubstr("fallback: \"wait\" is out of order"));
}

}  // namespace
}  // namespace troupe
