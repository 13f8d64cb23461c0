// ABSL_RETURN_IF_ERROR and ABSL_ASSIGN_OR_RETURN under the names of newer
// Abseil (absl/status/status_macros.h); delete on upgrade.
#ifndef TROUPE_COMMON_STATUS_MACROS_H_
#define TROUPE_COMMON_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define TROUPE_CONCAT_INNER(a, b) a##b
#define TROUPE_CONCAT(a, b) TROUPE_CONCAT_INNER(a, b)

#ifndef ABSL_RETURN_IF_ERROR
#define ABSL_RETURN_IF_ERROR(expression)           \
  do {                                             \
    absl::Status troupe_status = (expression);     \
    if (!troupe_status.ok()) return troupe_status; \
  } while (false)
#endif

#ifndef ABSL_ASSIGN_OR_RETURN
#define ABSL_ASSIGN_OR_RETURN(lhs, expression)                                 \
  TROUPE_ASSIGN_OR_RETURN_IMPL(TROUPE_CONCAT(troupe_statusor_, __LINE__), lhs, \
                               expression)
#define TROUPE_ASSIGN_OR_RETURN_IMPL(statusor, lhs, expression) \
  auto statusor = (expression);                                 \
  if (!statusor.ok()) return std::move(statusor).status();      \
  lhs = *std::move(statusor)
#endif

#endif  // TROUPE_COMMON_STATUS_MACROS_H_
