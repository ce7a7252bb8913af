#include "lib/text/chat_template.h"

#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Render(const std::string& source, const OrderedJson& variables) {
  const absl::StatusOr<ChatTemplate> compiled = ChatTemplate::Compile(source, {{"eos_token", "</s>"}});
  if (!compiled.ok()) return compiled.status().ToString();
  const absl::StatusOr<RenderedChat> rendered =
      compiled->Render(OrderedJson::array(), ChatTemplate::RenderOptions{.variables = variables});
  return rendered.ok() ? rendered->text : rendered.status().ToString();
}

TEST(ChatTemplateTest, PrintsJsonAsPythonDoesAndKeepsTheOrderOfKeys) {
  const OrderedJson value = OrderedJson::parse(R"({"z": 1.0, "a": ["é", null, true, 1e-7, 1e16], "m": {}})");
  EXPECT_EQ(Render("{{ v | tojson }}", {{"v", value}}), R"({"z": 1.0, "a": ["é", null, true, 1e-07, 1e+16], "m": {}})");
  EXPECT_EQ(Render("{{ v }}", {{"v", value}}), "{'z': 1.0, 'a': ['é', None, True, 1e-07, 1e+16], 'm': {}}");
  EXPECT_EQ(Render("{{ [1, {'a': 2}] | tojson(indent=2) }}", nullptr), "[\n  1,\n  {\n    \"a\": 2\n  }\n]");
}

TEST(ChatTemplateTest, GivesSpecialTokensToTheTemplate) { EXPECT_EQ(Render("{{ eos_token }}!", nullptr), "</s>!"); }

TEST(ChatTemplateTest, PinsTheDate) {
  EXPECT_EQ(Render("{{ strftime_now('%A %d %b %Y') }}", nullptr), "Friday 26 Jul 2024");
}

TEST(ChatTemplateTest, ReportsTheSpansOfGenerationBlocks) {
  const ChatTemplate compiled =
      ChatTemplate::Compile(
          "{% for m in messages %}é{{ m.role }}:\n"
          "{%- if m.role == 'assistant' %}\n"
          "  {%- generation -%}\n  {{ m.content }}{% set role = 'x' %}\n  {%- endgeneration %}\n"
          "{%- endif %}|{% endfor %}{{ role }}",
          nullptr)
          .value();
  EXPECT_TRUE(compiled.has_generation_tag());
  const RenderedChat rendered = compiled
                                    .Render({{{"role", "assistant"}, {"content", "yes"}},
                                             {{"role", "user"}, {"content", "no"}},
                                             {{"role", "assistant"}, {"content", ""}}},
                                            {})
                                    .value();
  EXPECT_EQ(rendered.text, "éassistant:yes|éuser:|éassistant:|");
  EXPECT_THAT(rendered.generation, ElementsAre(TextSpan{12, 15}, TextSpan{36, 36}));
}

TEST(ChatTemplateTest, LeavesTagsInStringsCommentsAndRawBlocksAlone) {
  EXPECT_EQ(Render("{{ '{% generation %}' }}{# {% generation %} #}{% raw %}{% for x in y %}{% endraw %}", nullptr),
            "{% generation %}{% for x in y %}");
}

TEST(ChatTemplateTest, PassesOnWhatTheTemplateSays) {
  const absl::StatusOr<ChatTemplate> compiled =
      ChatTemplate::Compile("{{ raise_exception('roles must alternate') }}", nullptr);
  EXPECT_EQ(compiled->Render(OrderedJson::array(), {}).status(), absl::InvalidArgumentError("roles must alternate"));
}

TEST(ChatTemplateTest, ReportsTheLineOfASyntaxError) {
  const absl::Status status = ChatTemplate::Compile("fine\n{% if %}", nullptr).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("line 2"));
}

TEST(ChatTemplateTest, StopsATemplateThatNeverEnds) {
  EXPECT_THAT(Render("{% for i in range(9999) %}{% for j in range(99999) %}{% set x = i * j %}{% "
                     "endfor %}{% endfor %}",
                     nullptr),
              HasSubstr("fuel"));
}

TEST(ChatTemplateTest, StopsATemplateWhoseOutputHasNoEnd) {
  EXPECT_THAT(Render("{% set x = 'abcdefgh' * 1000000 %}{% for i in range(100) %}{{ x }}{% endfor %}", nullptr),
              HasSubstr("INVALID_ARGUMENT"));
}

TEST(ChatTemplateTest, PrefersTheFileToTheConfiguration) {
  const TempFolder folder;
  EXPECT_TRUE(absl::IsNotFound(ChatTemplate::Load(folder.path()).status()));
  std::ofstream(folder.path() + "/tokenizer_config.json")
      << R"({"bos_token": {"content": "<s>"}, "chat_template": [{"name": "tool_use", "template": "no"},)"
      << R"({"name": "default", "template": "{{ bos_token }}config"}]})";
  const auto render = [&] { return ChatTemplate::Load(folder.path())->Render(OrderedJson::array(), {})->text; };
  EXPECT_EQ(render(), "<s>config");
  std::ofstream(folder.path() + "/chat_template.jinja") << "{{ bos_token }}file\n";
  EXPECT_EQ(render(), "<s>file");
}

}  // namespace
}  // namespace luthier
