// Texts that are compared with a file.
#ifndef TROUPE_TESTS_FAKES_GOLDEN_TEXT_H_
#define TROUPE_TESTS_FAKES_GOLDEN_TEXT_H_

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"

namespace troupe {

// name: below tests/goldens. With TROUPE_WRITE_GOLDENS=1 in the environment the
// file is written, and the test fails all the same: look at the difference.
inline void ExpectGolden(const std::string& name, const std::string& text) {
  const std::string path = TROUPE_SOURCE_DIR "/tests/goldens/" + name;
  if (std::getenv("TROUPE_WRITE_GOLDENS") != nullptr) {
    std::ofstream(path) << text;
    ADD_FAILURE() << "wrote " << path;
    return;
  }
  std::ifstream file(path);
  const std::string golden((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(text, golden) << path;
}

}  // namespace troupe

#endif  // TROUPE_TESTS_FAKES_GOLDEN_TEXT_H_
