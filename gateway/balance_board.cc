#include "gateway/balance_board.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace troupe {
namespace {

constexpr size_t kMaxName = 128;
constexpr size_t kMaxText = 1024;
constexpr double kMaxEverySeconds = 86400;
// A run that moves experts takes some time.
constexpr double kGraceSeconds = 30;

}  // namespace

absl::Status BalanceBoard::Report(const v1::BalanceReport& report,
                                  SteadyTime now) {
  if (report.name().size() > kMaxName) {
    return absl::InvalidArgumentError(
        absl::StrCat("BalanceReport.name: ", report.name().size(),
                     " bytes, at most ", kMaxName));
  }
  if (!(report.every_seconds() > 0 &&
        report.every_seconds() <= kMaxEverySeconds)) {
    return absl::InvalidArgumentError(
        absl::StrCat("BalanceReport.every_seconds: ", report.every_seconds(),
                     " is not in (0, ", kMaxEverySeconds, "]"));
  }
  if (!std::isfinite(report.imbalance_before()) ||
      !std::isfinite(report.imbalance_after())) {
    return absl::InvalidArgumentError(
        "BalanceReport.imbalance_before and imbalance_after: not finite");
  }
  absl::MutexLock lock(&mu_);
  report_ = report;
  for (std::string* text : {report_.mutable_verdict(), report_.mutable_detail(),
                            report_.mutable_last_error()}) {
    if (text->size() > kMaxText) {
      // Not in the middle of a UTF-8 character.
      size_t size = kMaxText;
      while (size > 0 && ((*text)[size] & 0xc0) == 0x80) --size;
      text->resize(size);
    }
  }
  at_ = now;
  reported_ = true;
  return absl::OkStatus();
}

void BalanceBoard::Describe(SteadyTime now, v1::ClusterStats& stats) const {
  absl::MutexLock lock(&mu_);
  if (!reported_) return;
  v1::BalancerStatus& status = *stats.mutable_balancer();
  *status.mutable_report() = report_;
  const double age = std::chrono::duration<double>(now - at_).count();
  status.set_age_seconds(age);
  status.set_overdue(age > 2 * report_.every_seconds() + kGraceSeconds);
}

}  // namespace troupe
