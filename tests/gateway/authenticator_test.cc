#include "gateway/authenticator.h"

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "gateway/refusal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/manual_clock.h"
#include "tests/gateway/key_file.h"

namespace troupe {
namespace {

using ::testing::HasSubstr;

class AuthenticatorTest : public testing::Test {
 protected:
  void Start(const std::vector<ApiKey>& keys) {
    file_.emplace(keys);
    absl::StatusOr<std::unique_ptr<KeyStore>> store = KeyStore::Open(
        {.path = file_->path(), .interval = milliseconds(0)}, clock_);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    authenticator_.emplace(store_.get(), clock_, [this] { return wall_; });
  }

  absl::StatusOr<KeyLease> Admit(const std::string& authorization,
                                 CallKind kind = CallKind::kGenerate) {
    return authenticator_->Admit(authorization, kind);
  }
  absl::StatusCode CodeOf(const std::string& authorization,
                          CallKind kind = CallKind::kLook) {
    return Admit(authorization, kind).status().code();
  }

  ManualClock clock_;
  absl::Time wall_ = absl::FromUnixSeconds(1800000000);
  std::optional<KeyFile> file_;
  std::unique_ptr<KeyStore> store_;
  std::optional<Authenticator> authenticator_;
};

TEST_F(AuthenticatorTest, AKeyIsDemandedInItsForm) {
  Start({TestKey("a")});
  for (const char* good : {"Bearer trp-a", "bearer trp-a", "BEARER  trp-a",
                           " Bearer trp-a ", "Bearer\ttrp-a"}) {
    EXPECT_EQ(CodeOf(good), absl::StatusCode::kOk) << good;
  }
  for (const char* bad :
       {"", "trp-a", "Bearer", "Bearer ", "Bearertrp-a", "Basic trp-a",
        "Bearer trp-b", "Bearer trp-a trp-a", "Bearer Bearer trp-a", "Bear",
        "Bearer trp-a,trp-b"}) {
    const absl::Status status = Admit(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << bad;
    // What was presented is not repeated.
    EXPECT_FALSE(absl::StrContains(status.message(), "trp-")) << status;
  }
  EXPECT_EQ(CodeOf("Bearer " + std::string(100000, 'x')),
            absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(authenticator_->counters().unauthenticated, 12u);
}

TEST_F(AuthenticatorTest, WithoutAStoreEverybodyIsLetIn) {
  Authenticator open(nullptr, clock_);
  EXPECT_FALSE(open.demands_keys());
  for (const CallKind kind : {CallKind::kGenerate, CallKind::kCompute,
                              CallKind::kLook, CallKind::kAdmin}) {
    absl::StatusOr<KeyLease> lease = open.Admit("", kind);
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_TRUE(lease->Reserve(1 << 30, 1 << 30).ok());
    lease->Charge(1 << 30);
    EXPECT_EQ(lease->ToAdmissionRequest(7).key, "");
    EXPECT_EQ(lease->rate_limits().Read().tokens.limit, 0u);
  }
}

TEST_F(AuthenticatorTest, RolesExpiryAndDisabledKeys) {
  ApiKey expiring = TestKey("expiring");
  expiring.expires = wall_ + absl::Seconds(10);
  ApiKey disabled = TestKey("disabled");
  disabled.disabled = true;
  Start({TestKey("client"), TestKey("admin", {}, KeyRole::kAdmin), expiring,
         disabled});
  EXPECT_EQ(CodeOf("Bearer trp-client", CallKind::kAdmin),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(authenticator_->counters().denied, 1u);
  EXPECT_EQ(CodeOf("Bearer trp-admin", CallKind::kAdmin),
            absl::StatusCode::kOk);
  EXPECT_EQ(CodeOf("Bearer trp-admin", CallKind::kGenerate),
            absl::StatusCode::kOk);
  EXPECT_EQ(CodeOf("Bearer trp-disabled"), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf("Bearer trp-expiring"), absl::StatusCode::kOk);
  wall_ += absl::Seconds(10);
  const absl::Status status = Admit("Bearer trp-expiring").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has expired"));
}

TEST_F(AuthenticatorTest, EachLimitWithTheWaitThatIsTrue) {
  Start({TestKey("rpm", {.requests_per_minute = 30}),
         TestKey("tpm", {.tokens_per_minute = 600}),
         TestKey("one", {.max_concurrent = 1})});
  // Requests: both kinds count, looks do not.
  for (int i = 0; i < 15; ++i) {
    ASSERT_TRUE(Admit("Bearer trp-rpm").ok());
    ASSERT_TRUE(Admit("Bearer trp-rpm", CallKind::kCompute).ok());
    ASSERT_TRUE(Admit("Bearer trp-rpm", CallKind::kLook).ok());
  }
  absl::Status refused = Admit("Bearer trp-rpm").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RefusedLimit(refused), kRequestsPerMinute);
  EXPECT_EQ(RetryDelayOf(refused), 2000);
  clock_.Advance(milliseconds(1999));
  EXPECT_FALSE(Admit("Bearer trp-rpm").ok());
  clock_.Advance(milliseconds(1));
  EXPECT_TRUE(Admit("Bearer trp-rpm").ok());

  // Tokens: what a request announced is kept for it, the rest comes back.
  {
    absl::StatusOr<KeyLease> lease = Admit("Bearer trp-tpm");
    ASSERT_TRUE(lease.ok());
    ASSERT_TRUE(lease->Reserve(100, 400).ok());
    EXPECT_EQ(lease->rate_limits().Read().tokens.remaining, 100u);
    absl::StatusOr<KeyLease> other = Admit("Bearer trp-tpm");
    ASSERT_TRUE(other.ok());
    refused = other->Reserve(150, 0);
    EXPECT_EQ(RefusedLimit(refused), kTokensPerMinute);
    EXPECT_EQ(RetryDelayOf(refused), 5000);
    lease->Charge(150);
  }
  {
    absl::StatusOr<KeyLease> lease = Admit("Bearer trp-tpm");
    EXPECT_EQ(lease->rate_limits().Read().tokens.remaining, 350u);
    EXPECT_EQ(lease->Reserve(601, 0).code(),
              absl::StatusCode::kInvalidArgument);
  }

  // Concurrency, by the lease's life.
  absl::StatusOr<KeyLease> first = Admit("Bearer trp-one");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(RefusedLimit(Admit("Bearer trp-one").status()), kMaxConcurrent);
  EXPECT_TRUE(Admit("Bearer trp-one", CallKind::kCompute).ok());
  KeyLease moved = *std::move(first);
  EXPECT_EQ(RefusedLimit(Admit("Bearer trp-one").status()), kMaxConcurrent);
  moved = KeyLease();
  EXPECT_TRUE(Admit("Bearer trp-one").ok());
  EXPECT_EQ(authenticator_->counters().limited, 4u);
}

TEST_F(AuthenticatorTest, ARevokedKeyIsRefusedFromTheNextRequestOn) {
  Start({TestKey("a"), TestKey("b", {.max_concurrent = 1})});
  absl::StatusOr<KeyLease> running = Admit("Bearer trp-b");
  ASSERT_TRUE(running.ok());
  file_->Set({TestKey("a")});
  store_->Look();
  EXPECT_EQ(CodeOf("Bearer trp-b"), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf("Bearer trp-a"), absl::StatusCode::kOk);
  running->Charge(5);  // goes on, and ends well
  running = KeyLease();
}

TEST_F(AuthenticatorTest, WhatWasUsedStaysUsed) {
  Start({TestKey("a", {.requests_per_minute = 2, .max_concurrent = 1})});
  absl::StatusOr<KeyLease> running = Admit("Bearer trp-a");
  ASSERT_TRUE(running.ok());
  // Another secret and another place in the file: the same key.
  file_->Set({TestKey("new"),
              TestKey("a", {.requests_per_minute = 2, .max_concurrent = 1},
                      KeyRole::kClient, "trp-other")});
  store_->Look();
  EXPECT_EQ(CodeOf("Bearer trp-a"), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(RefusedLimit(Admit("Bearer trp-other").status()), kMaxConcurrent);
  running = KeyLease();
  EXPECT_TRUE(Admit("Bearer trp-other").ok());
  EXPECT_EQ(RefusedLimit(Admit("Bearer trp-other").status()),
            kRequestsPerMinute);
  // A higher limit begins at once; what was used stays.
  file_->Set({TestKey("a", {.requests_per_minute = 120})});
  store_->Look();
  EXPECT_EQ(RetryDelayOf(Admit("Bearer trp-a").status()), 500);
}

TEST_F(AuthenticatorTest, ABrokenOrMissingFileKeepsTheOldKeys) {
  Start({TestKey("a")});
  EXPECT_EQ(store_->stats().changes, 1u);
  file_->SetText("{\"keys\": [{\"name\": \"b\"}]}");
  store_->Look();
  // It may be half written: the next look decides.
  EXPECT_EQ(store_->stats().failures, 0u);
  store_->Look();
  EXPECT_EQ(store_->stats().failures, 1u);
  EXPECT_THAT(store_->stats().last_error, HasSubstr("keys[0]: sha256"));
  EXPECT_EQ(CodeOf("Bearer trp-a"), absl::StatusCode::kOk);
  std::filesystem::remove(file_->path());
  store_->Look();
  store_->Look();
  EXPECT_EQ(store_->stats().failures, 2u);
  EXPECT_THAT(store_->stats().last_error, HasSubstr("cannot open"));
  EXPECT_EQ(CodeOf("Bearer trp-a"), absl::StatusCode::kOk);
  file_->Set({TestKey("b")});
  store_->Look();
  EXPECT_EQ(store_->stats().last_error, "");
  EXPECT_EQ(store_->stats().changes, 2u);
  EXPECT_EQ(CodeOf("Bearer trp-a"), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(CodeOf("Bearer trp-b"), absl::StatusCode::kOk);
  // Nobody is let in by a list that is empty on purpose.
  file_->Set({});
  store_->Look();
  EXPECT_EQ(CodeOf("Bearer trp-b"), absl::StatusCode::kUnauthenticated);
}

TEST_F(AuthenticatorTest, AGatewayDoesNotStartWithABrokenFile) {
  KeyFile file({});
  file.SetText("{}");
  const auto store = KeyStore::Open({.path = file.path()});
  EXPECT_THAT(std::string(store.status().message()),
              HasSubstr(file.path() + ": keys: is not an array"));
  EXPECT_FALSE(KeyStore::Open({.path = "/no/such/file"}).ok());
}

// The thread of the store sees a change by itself, while others ask.
TEST_F(AuthenticatorTest, ChangesAreSeenWhileRequestsCome) {
  KeyFile file({TestKey("a"), TestKey("b")});
  auto store =
      KeyStore::Open({.path = file.path(), .interval = milliseconds(1)});
  ASSERT_TRUE(store.ok()) << store.status();
  Authenticator authenticator(store->get());
  absl::Notification revoked;
  std::vector<std::thread> askers;
  for (int i = 0; i < 2; ++i) {
    askers.emplace_back([&] {
      while (!revoked.HasBeenNotified()) {
        ASSERT_TRUE(
            authenticator.Admit("Bearer trp-a", CallKind::kGenerate).ok());
      }
    });
  }
  file.Set({TestKey("a", {.max_concurrent = 100})});
  while (authenticator.Admit("Bearer trp-b", CallKind::kLook).ok()) {
  }
  revoked.Notify();
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ((*store)->stats().changes, 2u);
}

}  // namespace
}  // namespace troupe
