// CHECK macros for our own bugs: they print the expression and abort.
//
// The caller's fault is absl::InvalidArgumentError, the environment's a
// retriable status; see docs/style.md. Abseil 20220623 has no absl/log/check.h:
// delete this header when Debian's Abseil has one. It has no dependency, so
// that kernels/ builds alone.
#ifndef TROUPE_COMMON_CHECK_H_
#define TROUPE_COMMON_CHECK_H_

#include <cstdio>
#include <cstdlib>

namespace troupe::internal {

[[noreturn]] inline void CheckFailed(const char* file, int line,
                                     const char* expression) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, expression);
  std::fflush(stderr);
  std::abort();
}

}  // namespace troupe::internal

#define TROUPE_CHECK_IMPL(condition, text) \
  (static_cast<bool>(condition)            \
       ? static_cast<void>(0)              \
       : ::troupe::internal::CheckFailed(__FILE__, __LINE__, text))

#define CHECK(condition) TROUPE_CHECK_IMPL(condition, #condition)
#define CHECK_EQ(a, b) TROUPE_CHECK_IMPL((a) == (b), #a " == " #b)
#define CHECK_NE(a, b) TROUPE_CHECK_IMPL((a) != (b), #a " != " #b)
#define CHECK_LE(a, b) TROUPE_CHECK_IMPL((a) <= (b), #a " <= " #b)
#define CHECK_LT(a, b) TROUPE_CHECK_IMPL((a) < (b), #a " < " #b)
#define CHECK_GE(a, b) TROUPE_CHECK_IMPL((a) >= (b), #a " >= " #b)
#define CHECK_GT(a, b) TROUPE_CHECK_IMPL((a) > (b), #a " > " #b)

#endif  // TROUPE_COMMON_CHECK_H_
