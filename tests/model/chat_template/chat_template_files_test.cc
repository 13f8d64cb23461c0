// Where a checkpoint's chat template comes from.
#include "model/chat_template/chat_template_files.h"

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fakes/temp_dir.h"

namespace troupe {
namespace {

using ::testing::EndsWith;
using ::testing::StartsWith;

class ChatTemplateFilesTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(dir_.File(name), std::ios::binary) << text;
  }

  // What the template makes of nothing; "none" when there is no template.
  std::string Rendered() {
    const auto loaded = LoadChatTemplate(dir_.path());
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (!loaded.ok() || !*loaded) return "none";
    return *(*loaded)->compiled.Render(nlohmann::json::array(), true,
                                       nlohmann::json());
  }

  // Less the folder.
  std::string Error() {
    const absl::Status status = LoadChatTemplate(dir_.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), StartsWith(dir_.path() + "/"));
    return std::string(status.message()).substr(dir_.path().size() + 1);
  }

  TempDir dir_;
};

TEST_F(ChatTemplateFilesTest, NoTemplate) {
  EXPECT_EQ(Rendered(), "none");
  Write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_EQ(Rendered(), "none");
  Write("tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_EQ(Rendered(), "none");
  Write("tokenizer_config.json",
        R"({"chat_template": [{"name": "rag", "template": "x"}]})");
  EXPECT_EQ(Rendered(), "none");
}

TEST_F(ChatTemplateFilesTest, ItsOwnFileWins) {
  Write("chat_template.json", R"({"chat_template": "third"})");
  EXPECT_EQ(Rendered(), "third");
  Write("tokenizer_config.json", R"({"chat_template": "second"})");
  EXPECT_EQ(Rendered(), "second");
  Write("chat_template.jinja", "first\n");
  EXPECT_EQ(Rendered(), "first");
  const auto loaded = LoadChatTemplate(dir_.path());
  EXPECT_EQ((*loaded)->source, "first\n");
}

TEST_F(ChatTemplateFilesTest, TheDefaultOfSeveral) {
  Write("tokenizer_config.json", R"({"chat_template": [
      {"name": "tool_use", "template": "{{ not checked }"},
      {"name": "default", "template": "this one"}]})");
  EXPECT_EQ(Rendered(), "this one");
}

TEST_F(ChatTemplateFilesTest, SpecialTokens) {
  Write("chat_template.jinja",
        "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}");
  Write("tokenizer_config.json",
        R"({"bos_token": "<s>", "eos_token": {"content": "</s>"},
            "pad_token": null})");
  EXPECT_EQ(Rendered(), "<s></s>");
  Write("special_tokens_map.json",
        R"({"bos_token": "other", "unk_token": {"content": "<unk>"}})");
  EXPECT_EQ(Rendered(), "<s></s><unk>");
}

TEST_F(ChatTemplateFilesTest, ErrorsNameTheFile) {
  Write("chat_template.jinja", "\n{{ x | nope }}");
  EXPECT_EQ(Error(),
            "chat_template.jinja: line 2: the filter 'nope' is not supported");
  std::filesystem::remove(dir_.File("chat_template.jinja"));
  Write("tokenizer_config.json", R"({"chat_template": "{% do x %}"})");
  EXPECT_EQ(Error(),
            "tokenizer_config.json: chat_template: line 1: the statement 'do' "
            "is not supported");
  Write("tokenizer_config.json",
        R"({"chat_template": [{"name": "default", "template": "{{"}]})");
  EXPECT_EQ(Error(),
            "tokenizer_config.json: chat_template \"default\": line 1: a tag "
            "without an end");
  Write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_EQ(Error(),
            "tokenizer_config.json: chat_template is neither a text nor a "
            "list");
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "a"}]})");
  EXPECT_EQ(Error(),
            "tokenizer_config.json: chat_template[0] has no name and template");
  Write("tokenizer_config.json",
        R"({"chat_template": "x", "eos_token": ["</s>"]})");
  EXPECT_EQ(Error(), "tokenizer_config.json: eos_token is no text");
  Write("tokenizer_config.json", "[]");
  EXPECT_EQ(Error(), "tokenizer_config.json: not a JSON object");
  Write("tokenizer_config.json", "{");
  EXPECT_THAT(Error(), StartsWith("tokenizer_config.json"));
}

TEST_F(ChatTemplateFilesTest, LargeFilesAreRefused) {
  Write("chat_template.jinja", std::string((1 << 20) + 1, 'x'));
  EXPECT_THAT(Error(), EndsWith("at most 1048576 allowed"));
}

}  // namespace
}  // namespace troupe
