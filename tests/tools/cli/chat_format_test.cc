#include "tools/cli/chat_format.h"

#include "gtest/gtest.h"

namespace troupe {
namespace {

TEST(PlainChatTest, TheTextGoesOn) {
  EXPECT_EQ(PlainChat({}), "");
  EXPECT_EQ(PlainChat({NewMessage("user", "Once upon")}), "Once upon");
  EXPECT_EQ(
      PlainChat(
          {NewMessage("system", "A story."), NewMessage("user", "Once upon"),
           NewMessage("assistant", " a time."), NewMessage("user", "Then")}),
      "A story.\nOnce upon a time.\nThen");
  EXPECT_EQ(PlainChat({NewMessage("user", "a"), NewMessage("assistant", "b\n"),
                       NewMessage("user", "c")}),
            "ab\nc");
}

}  // namespace
}  // namespace troupe
