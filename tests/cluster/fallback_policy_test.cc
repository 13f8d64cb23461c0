#include "cluster/fallback_policy.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

TEST(FallbackPolicyTest, TextAndProtoSayTheSame) {
  for (int bits = 1; bits < 16; ++bits) {
    const FallbackPolicy policy = {(bits & 1) != 0, (bits & 2) != 0,
                                   (bits & 4) != 0, (bits & 8) != 0};
    const auto parsed = ParseFallback(Name(policy));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, policy) << Name(policy);
    const auto read = FromProto(ToProto(policy), FallbackPolicy());
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, policy) << Name(policy);
  }
}

TEST(FallbackPolicyTest, Presets) {
  EXPECT_EQ(Name(*ParseFallback("exact")), "exact");
  EXPECT_EQ(Name(*ParseFallback("replica,wait")), "exact");
  EXPECT_EQ(Name(*ParseFallback("replica,wait,next_best")), "balanced");
  EXPECT_EQ(Name(*ParseFallback("replica,next_best,drop")), "fast");
  EXPECT_EQ(Name(*ParseFallback("wait,drop")), "wait,drop");
  EXPECT_TRUE(ParseFallback("exact")->is_exact());
  EXPECT_TRUE(ParseFallback("wait")->is_exact());
  EXPECT_FALSE(ParseFallback("balanced")->is_exact());
  EXPECT_FALSE(ParseFallback("drop")->is_exact());
}

TEST(FallbackPolicyTest, NothingChosenIsTheDefault) {
  EXPECT_EQ(*FromProto(v1::FallbackPolicy(), FallbackPolicy::Fast()),
            FallbackPolicy::Fast());
}

TEST(FallbackPolicyTest, WrongChainsAreNamed) {
  for (const std::string text : {"", "quick", "replica,", "drop,next_best",
                                 "wait,wait", "replica, wait", "exact,drop"}) {
    const auto policy = ParseFallback(text);
    EXPECT_EQ(policy.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
    EXPECT_THAT(std::string(policy.status().message()), HasSubstr("fallback"));
  }
  v1::FallbackPolicy proto;
  proto.add_chain(v1::FallbackPolicy::STEP_DROP);
  proto.add_chain(v1::FallbackPolicy::STEP_WAIT);
  EXPECT_THAT(std::string(FromProto(proto, {}).status().message()),
              HasSubstr("\"wait\" is out of order"));
  proto.clear_chain();
  proto.add_chain(static_cast<v1::FallbackPolicy::Step>(77));
  EXPECT_THAT(std::string(FromProto(proto, {}).status().message()),
              HasSubstr("step 1 is none of"));
  proto.set_chain(0, v1::FallbackPolicy::STEP_DROP);
  proto.set_preset(v1::FallbackPolicy::PRESET_FAST);
  EXPECT_THAT(std::string(FromProto(proto, {}).status().message()),
              HasSubstr("not both"));
  proto.clear_chain();
  proto.set_preset(static_cast<v1::FallbackPolicy::Preset>(9));
  EXPECT_THAT(std::string(FromProto(proto, {}).status().message()),
              HasSubstr("fallback.preset: 9"));
}

}  // namespace
}  // namespace troupe
