#include "common/descriptor_limit.h"

#include <sys/resource.h>

#include "gtest/gtest.h"

namespace troupe {
namespace {

TEST(RaiseDescriptorLimitTest, RaisesTheSoftLimitToTheHardOne) {
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max / 2;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(RaiseDescriptorLimit(), limit.rlim_max);
  rlimit after = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, limit.rlim_max);
  EXPECT_EQ(RaiseDescriptorLimit(), limit.rlim_max);
}

}  // namespace
}  // namespace troupe
