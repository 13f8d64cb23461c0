#include "gateway/authenticator.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace troupe {
namespace {

// The key in "Bearer KEY"; the scheme in any case (RFC 7235). Empty: there is
// none.
absl::string_view BearerKey(absl::string_view authorization) {
  constexpr absl::string_view kScheme = "Bearer";
  authorization = absl::StripAsciiWhitespace(authorization);
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) return "";
  authorization.remove_prefix(kScheme.size());
  const absl::string_view key =
      absl::StripLeadingAsciiWhitespace(authorization);
  return key.size() < authorization.size() ? key : "";
}

}  // namespace

KeyLease::~KeyLease() {
  if (holds_place_) limiter_->Leave(entered_, reserved_, clock_->Now());
}

void KeyLease::Swap(KeyLease& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(role_, other.role_);
  std::swap(priority_, other.priority_);
  std::swap(limiter_, other.limiter_);
  std::swap(clock_, other.clock_);
  std::swap(entered_, other.entered_);
  std::swap(reserved_, other.reserved_);
  std::swap(holds_place_, other.holds_place_);
}

AdmissionRequest KeyLease::ToAdmissionRequest(uint64_t prompt_tokens) const {
  return {.key = name_, .priority = priority_, .prompt_tokens = prompt_tokens};
}

absl::Status KeyLease::Reserve(uint64_t prompt_tokens,
                               uint64_t max_completion_tokens) {
  if (!holds_place_) return absl::OkStatus();
  return limiter_->Reserve(prompt_tokens, max_completion_tokens, clock_->Now(),
                           &reserved_);
}

void KeyLease::Charge(uint64_t num_tokens) {
  if (!holds_place_) return;
  const uint64_t announced = std::min(num_tokens, reserved_);
  reserved_ -= announced;
  if (num_tokens > announced) {
    limiter_->Charge(num_tokens - announced, clock_->Now());
  }
}

absl::StatusOr<KeyStore::Found> Authenticator::Identify(
    absl::string_view authorization) {
  const absl::string_view presented = BearerKey(authorization);
  if (presented.empty()) {
    return absl::UnauthenticatedError(
        "an API key is needed: authorization: Bearer KEY");
  }
  std::optional<KeyStore::Found> found = store_->Find(presented);
  if (!found) {
    return absl::UnauthenticatedError("the API key is unknown");
  }
  if (found->key->disabled) {
    return absl::UnauthenticatedError(
        absl::StrCat("the API key \"", found->key->name, "\" is revoked"));
  }
  if (wall_clock_() >= found->key->expires) {
    return absl::UnauthenticatedError(
        absl::StrCat("the API key \"", found->key->name, "\" has expired"));
  }
  return *std::move(found);
}

absl::StatusOr<KeyLease> Authenticator::Admit(absl::string_view authorization,
                                              CallKind kind) {
  KeyLease lease;
  if (store_ == nullptr) {
    lease.role_ = KeyRole::kAdmin;
    return lease;
  }
  absl::StatusOr<KeyStore::Found> found = Identify(authorization);
  if (!found.ok()) {
    ++counters_.unauthenticated;
    return found.status();
  }
  const ApiKey& key = *found->key;
  if (kind == CallKind::kAdmin && key.role != KeyRole::kAdmin) {
    ++counters_.denied;
    return absl::PermissionDeniedError(absl::StrCat(
        "the API key \"", key.name, "\" has not the role \"admin\""));
  }
  const SteadyTime now = clock_.Now();
  absl::Status status;
  if (kind == CallKind::kGenerate) status = found->limiter->Enter(now);
  if (kind == CallKind::kCompute) status = found->limiter->Count(now);
  if (!status.ok()) {
    ++counters_.limited;
    return status;
  }
  lease.name_ = key.name;
  lease.role_ = key.role;
  lease.priority_ = key.limits.priority;
  lease.limiter_ = found->limiter;
  lease.clock_ = &clock_;
  lease.entered_ = now;
  lease.holds_place_ = kind == CallKind::kGenerate;
  return lease;
}

}  // namespace troupe
