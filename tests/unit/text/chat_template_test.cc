#include "lib/text/chat_template.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/text/template_source.h"
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

std::string RenderWithoutMessages(const std::string& folder) {
  const auto chat_template = ChatTemplate::OfJob(folder, {}, "").value();
  return chat_template ? chat_template->Render(OrderedJson::array(), {})->text : "none";
}

TEST(ChatTemplateTest, PrintsJsonAsPythonDoesAndKeepsTheOrderOfKeys) {
  const OrderedJson value = OrderedJson::parse(R"({"z": 1.0, "a": ["é", null, true, 1e-7, 1e16], "m": {}})");
  EXPECT_EQ(Render("{{ v | tojson }}", {{"v", value}}), R"({"z": 1.0, "a": ["é", null, true, 1e-07, 1e+16], "m": {}})");
  EXPECT_EQ(Render("{{ v }}", {{"v", value}}), "{'z': 1.0, 'a': ['é', None, True, 1e-07, 1e+16], 'm': {}}");
  EXPECT_EQ(Render("{{ [1, {'a': 2}] | tojson(indent=2) }}", nullptr), "[\n  1,\n  {\n    \"a\": 2\n  }\n]");
}

// As rows bring them: read and written in C++, read in Rust.
TEST(ChatTemplateTest, PrintsFractionsWithTheDigitsThatTheyWereReadWith) {
  for (const char* number : {"-949.8469399535061", "56.5244406152562", "5e-324", "1.7976931348623157e+308",
                             "0.30000000000000004", "2.2250738585072014e-308"}) {
    EXPECT_EQ(Render("{{ x | tojson }} {{ x }}", OrderedJson::parse(absl::StrCat(R"({"x": )", number, "}"))),
              absl::StrCat(number, " ", number));
  }
}

// Flags of England and Wales are spelt with characters that have no form of their own.
TEST(ChatTemplateTest, EscapesInAListWhatPythonDoesNotPrint) {
  const OrderedJson flag = OrderedJson::array({"\xF0\x9F\x8F\xB4\U000E0067", "\u2028", "\u0301"});
  EXPECT_EQ(Render("{{ v }}", {{"v", flag}}), "['\xF0\x9F\x8F\xB4\\U000e0067', '\\u2028', '\u0301']");
}

// minijinja's own slices take the element at 0 along and fail for an empty list.
TEST(ChatTemplateTest, SlicesWithAStepAsPythonDoes) {
  const OrderedJson numbers = OrderedJson::parse(R"({"v": [5, 3, 8, 1], "none_of_it": []})");
  EXPECT_EQ(Render("{{ v[2:0:-1] }} {{ v[::-1] }} {{ v[-2::-1] }} {{ v[::2][1:] }} {{ v[1:][::-1][0] }}", numbers),
            "[8, 3] [1, 8, 3, 5] [8, 3, 5] [8] 1");
  EXPECT_EQ(Render("{% for x in none_of_it[::-1] %}x{% else %}none{% endfor %}|{{ ''[::-1] }}|{{ 'héllo'[3:0:-1] }}",
                   numbers),
            "none||llé");
}

TEST(ChatTemplateTest, ReadsStringsAndRawBlocksAsPythonDoes) {
  EXPECT_EQ(Render("{{ 'a\\/b' }} {{ '\\U0001F600' }} {{ '\\a' | tojson }} {{ 'goes \\\non' }}", nullptr),
            "a\\/b 😀 \"\\u0007\" goes on");
  EXPECT_EQ(Render("{% raw %}\n{{ x }}{% endraw %}\n!", nullptr), "\n{{ x }}!");
}

TEST(ChatTemplateTest, KnowsTheMethodsOfPythonsTexts) {
  EXPECT_EQ(Render("{{ 'äöx'.find('x') }} {{ 'abc'.count('') }} {{ 'hello'.index('l', 3) }}", nullptr), "2 4 3");
  EXPECT_EQ(Render("{{ 'A B'.isupper() }} {{ ''.isspace() }} {{ 'ab'.startswith(('x', 'b'), 1) }}", nullptr),
            "True False True");
  EXPECT_EQ(Render("{{ '3rd don\\'t'.title() }} {{ 'doc_id (x)' | title }} {{ 'éA' | capitalize }}", nullptr),
            "3Rd Don'T Doc_id (X) Éa");
  EXPECT_EQ(
      Render("{{ ' a  b c '.split(none, 1) }} {{ 'a b c'.rsplit(maxsplit=1) }} {{ 'a\\x0bb'.splitlines() }}", nullptr),
      "['a', 'b c '] ['a b', 'c'] ['a', 'b']");
  EXPECT_EQ(Render("[{{ '\\x1fa '.strip() }}] [{{ 'x'.center(4) }}] {{ '-7'.zfill(4) }}", nullptr), "[a] [ x  ] -007");
}

TEST(ChatTemplateTest, IndentsAsJinja2Does) {
  EXPECT_EQ(Render("[{{ 'a\nb\n\n' | indent(2) }}]", nullptr), "[a\n  b\n\n]");
  EXPECT_EQ(Render("[{{ 'a\r\n\u2028b\n' | indent(width='> ', first=true, blank=true) }}]", nullptr),
            "[> a\n> \n> b\n> ]");
  EXPECT_EQ(Render("[{{ '' | indent(2, true) }}]", nullptr), "[  ]");
}

TEST(ChatTemplateTest, SortsAndJoinsByAttributesAsJinja2Does) {
  const OrderedJson rows = OrderedJson::parse(
      R"({"v": [{"k": "x", "n": 2, "o": [7]}, {"k": "", "n": 3, "o": [8]}, {"k": "X", "n": 1, "o": [9]}]})");
  EXPECT_EQ(
      Render("{{ v | sort(attribute='k,n') | join('', 'n') }} {{ v | sort(true, attribute='n') | join('', 'n') }}",
             rows),
      "312 321");
  EXPECT_EQ(Render("{{ v | join('-', attribute='o.0') }} {{ ['b', 'C', 'a'] | sort(true, true) }}", rows),
            "7-8-9 ['b', 'a', 'C']");
  EXPECT_EQ(
      Render("{% for k, v in {'b': 1, 'A': 2} | dictsort(true, 'value', reverse=true) %}{{ k }}{% endfor %}", rows),
      "Ab");
  EXPECT_EQ(Render("{{ [1.5, true, -1] | sort }}", nullptr), "[-1, True, 1.5]");
  EXPECT_THAT(Render("{{ [1, 'a'] | sort }}", nullptr), HasSubstr("cannot order a"));
  EXPECT_THAT(Render("{{ v | join('', 'nothing.p') }}", rows), HasSubstr("undefined"));
}

// vLLM's templates for Llama 3.2 and 4 write the arguments of calls so.
TEST(ChatTemplateTest, FormatsListsAndObjectsAsPythonPrintsThem) {
  const OrderedJson arguments = OrderedJson::parse(R"({"l": ["é", null], "a": {"b": [1]}})");
  EXPECT_EQ(Render("{{ '%s' | format(l) }} {{ '{}={v}'.format('k', v=a) }} {{ '{0[b][0]}'.format(a) }}", arguments),
            "['é', None] k={'b': [1]} 1");
}

TEST(ChatTemplateTest, JoinsListsAndObjectsAsPythonPrintsThem) {
  const OrderedJson arguments = OrderedJson::parse(R"({"a": {"city": "Ulm", "days": [1, null]}, "l": [true]})");
  EXPECT_EQ(Render("{{ 'f ' ~ a ~ '!' }} {{ l ~ [] }}{% if 'x' ~ l == 'x[True]' %} same{% endif %}", arguments),
            "f {'city': 'Ulm', 'days': [1, None]}! [True][] same");
  EXPECT_EQ(Render("{{ 'ab' * 2 ~ l }} {{ 'x' if a is string else l ~ -1 }} {{- 'a~' ~ l[::-1] -}} ", arguments),
            "abab[True] [True]-1a~[True]");
}

TEST(ChatTemplateTest, EscapesAsMarkupSafeDoes) {
  EXPECT_EQ(Render("{{ '<a href=\"/x\">\\'&' | e }} {{ '<' | e | escape }} {{ '<' | e | forceescape }}", nullptr),
            "&lt;a href=&#34;/x&#34;&gt;&#39;&amp; &lt; &amp;lt;");
}

TEST(ChatTemplateTest, TakesSignsAndFiltersWithDotsWherePythonDoes) {
  EXPECT_EQ(Render("{{ +1 }}{{ [3 - +1, 'a' ~ +2] }}{{+ 3 }}", nullptr), "1[2, 'a2']3");
  EXPECT_EQ(Render("{% set x | replace('.', '=') %}a.b{% endset %}{{ x }}", nullptr), "a=b");
}

// minijinja stays in the block that the loop is left from: it would lose what follows, or end the render.
TEST(ChatTemplateTest, RefusesToLeaveALoopFromWithinABlock) {
  const auto loop = [](const std::string& begin, const std::string& end) {
    return Render("{% for i in [1, 2] %}" + begin + "{% if i == 2 %}{% break %}{% endif %}" + end + "{% endfor %}!",
                  {});
  };
  EXPECT_THAT(loop("{% with %}", "{% endwith %}"), HasSubstr("line 1: `break` inside `with` is not supported"));
  EXPECT_THAT(loop("{% filter upper %}a", "{% endfilter %}"), HasSubstr("inside `filter`"));
  EXPECT_THAT(loop("{% set x | trim %}a", "{% endset %}"), HasSubstr("inside `set`"));
  EXPECT_EQ(loop("{% set x = 1 %}{% with %}{% endwith %}{{ i }}", ""), "12!");
  EXPECT_EQ(loop("{% with %}{% for j in [i] %}{% continue %}{% endfor %}{% endwith %}{{ i }}", ""), "12!");
}

TEST(ChatTemplateTest, CountsAsJinja2OnPythonDoes) {
  EXPECT_EQ(Render("{{ 2.5 | round }} {{ 2.675 | round(2) }} {{ 2.1 | round(method='ceil') }}", nullptr),
            "2.0 2.67 3.0");
  EXPECT_EQ(Render("{{ 'x' | int }} {{ ' 1_000 ' | int }} {{ '3.9' | int }} {{ 'x' | float(1.5) }}", nullptr),
            "0 1000 3 1.5");
  EXPECT_EQ(Render("{{ v | sum(attribute='n', start=1) }} {{ (v | max(attribute='n')).n }} {{ ['b', 'A'] | min }}",
                   OrderedJson::parse(R"({"v": [{"n": 2}, {"n": 3}]})")),
            "6 3 A");
  EXPECT_EQ(Render("{{ nothing | items | list }} {{ dict([('a', 1)], b=2) }}", nullptr), "[] {'a': 1, 'b': 2}");
  EXPECT_EQ(Render("{{ strftime_now('%c|%D|%V') }}", nullptr), "Fri Jul 26 12:34:56 2024|07/26/24|30");
}

TEST(ChatTemplateTest, GivesSpecialTokensToTheTemplate) { EXPECT_EQ(Render("{{ eos_token }}!", nullptr), "</s>!"); }

TEST(ChatTemplateTest, PinsTheDate) {
  EXPECT_EQ(Render("{{ strftime_now('%A %d %b %Y') }}", nullptr), "Friday 26 Jul 2024");
}

TEST(ChatTemplateTest, AJobsOwnTemplateHasTheFoldersTokensAndItsDate) {
  const TempFolder folder;
  const auto render = [&](const std::string& source, const std::string& date) {
    const auto compiled = ChatTemplate::OfJob(folder.path(), source, date).value();
    return compiled ? compiled->Render(OrderedJson::array(), {})->text : "none";
  };
  EXPECT_EQ(render("", ""), "none");
  std::ofstream(folder.path() + "/tokenizer_config.json")
      << R"({"bos_token": "<s>", "chat_template": "base {{ strftime_now('%F') }}"})";
  EXPECT_EQ(render("", ""), "base 2024-07-26");
  EXPECT_EQ(render("", "2026-11-25"), "base 2026-11-25");
  EXPECT_EQ(render("{{ bos_token }}own {{ strftime_now('%A') }}", "2026-11-25"), "<s>own Wednesday");
  EXPECT_THAT(std::string(ChatTemplate::OfJob(folder.path(), {"{% if %}"}, "").status().message()),
              HasSubstr("chat_template: "));
}

// What is exported renders as it was trained, for us with its date and for everybody with the same text around it.
TEST(ChatTemplateTest, APinnedDateGoesWithTheSource) {
  for (const std::string source : {"{{ strftime_now('%F') }}", "\n  text {{ strftime_now('%F') }}\n"}) {
    const auto text = [](const std::string& of) {
      return ChatTemplate::Compile(of, nullptr)->Render(OrderedJson::array(), {})->text;
    };
    const std::string pinned = WithPinnedDate(source, "2026-11-25");
    EXPECT_EQ(pinned, "{# template_date: 2026-11-25 #}\n" + source);
    std::string expected = text(source);
    expected.replace(expected.find("2024-07-26"), 10, "2026-11-25");
    EXPECT_EQ(text(pinned), expected);
    EXPECT_EQ(text(WithPinnedDate(pinned, "2027-01-01")), text(WithPinnedDate(source, "2027-01-01")));
  }
  EXPECT_EQ(ChatTemplate::Compile("{# template_date: ", nullptr).ok(), false);
}

// Where the words of a block end up is known only if nothing captures them on their way.
TEST(ChatTemplateTest, SaysWhetherTheSpansHoldWhatTheBlocksWrote) {
  const auto in_place = [](const std::string& source) {
    return ChatTemplate::Compile(source, nullptr)->Render(OrderedJson::array(), {})->generation_in_place;
  };
  EXPECT_TRUE(in_place("a{% generation %}b{% endgeneration %}c"));
  EXPECT_FALSE(in_place("{% macro m() %}x{% generation %}b{% endgeneration %}{% endmacro %}a{{ m() }}"));
  EXPECT_FALSE(in_place("{% set t %}{% generation %}b{% endgeneration %}{% endset %}a{{ t }}"));
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

std::string Repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

// Each of these ended the process that read it.
TEST(ChatTemplateTest, RefusesATemplateThatTheParserCouldNotComeBackFrom) {
  for (const std::string& source : {"{{ " + Repeated("not ", 50'000) + "1 }}", "{{ " + Repeated("-", 200'000) + "1 }}",
                                    "{{ " + Repeated("1+", 100'000) + "1 }}", "{{ " + Repeated("a~", 100'000) + "a }}",
                                    "{{ a" + Repeated("[0]", 80'000) + " }}", "{{ a" + Repeated("()", 100'000) + " }}",
                                    "{{ " + Repeated("1 if 1 else ", 15'000) + "1 }}",
                                    "{% if a %}" + Repeated("{% elif a %}", 20'000) + "{% endif %}"}) {
    EXPECT_THAT(Render(source, nullptr), HasSubstr("line 1: has more than 1000 ")) << source.substr(0, 20);
  }
  EXPECT_EQ(Render("{{ " + Repeated("1+", 400) + "1 }}", nullptr), "401");
}

TEST(ChatTemplateTest, ANamespaceKeepsNothingThatIsNestedWithoutEnd) {
  const std::string deep = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ";
  const std::string end = " %}{% endfor %}{{ ns.x }}";
  for (const char* value : {"[ns.x]", "{'a': ns.x}", "[1, [ns.x]]"}) {
    EXPECT_THAT(Render(deep + value + end, nullptr), HasSubstr("nested deeper than 100 levels")) << value;
  }
  for (const char* value : {"ns", "[ns]", "{'a': ns}"}) {
    EXPECT_THAT(Render(deep + value + end, nullptr), HasSubstr("no namespace")) << value;
  }
  EXPECT_THAT(Render("{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
                     nullptr),
              HasSubstr("more than 1000000 items"));
  EXPECT_EQ(Render("{% set ns = namespace(x=[]) %}{% for i in range(3) %}{% set ns.x = ns.x + [[i]] %}{% endfor %}"
                   "{{ ns.x | tojson }}",
                   nullptr),
            "[[0], [1], [2]]");
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

TEST(ChatTemplateTest, AConfigurationWithoutTextsHasNoTemplate) {
  for (const char* entries : {R"([5, {}, {"name": 5, "template": "x"}])", R"([{"name": "default", "template": 7}])",
                              R"({"default": "x"})", "7", "null"}) {
    const TempFolder folder;
    std::ofstream(folder.path() + "/tokenizer_config.json") << R"({"chat_template": )" << entries << "}";
    EXPECT_FALSE(ChatTemplate::OfJob(folder.path(), {}, "").value().has_value()) << entries;
  }
}

// Without it a template would put no BOS where the tokenizer knows one. As in transformers it goes before
// tokenizer_config.json, and does not count beside one that lists its tokens itself.
TEST(ChatTemplateTest, SpecialTokensMayStandInAFileOfTheirOwn) {
  const TempFolder folder;
  std::ofstream(folder.path() + "/chat_template.jinja") << "{{ bos_token }}{{ eos_token }}";
  std::ofstream(folder.path() + "/special_tokens_map.json")
      << R"({"bos_token": {"content": "<s>"}, "eos_token": "no"})";
  const auto render = [&] { return RenderWithoutMessages(folder.path()); };
  EXPECT_EQ(render(), "<s>no");
  std::ofstream(folder.path() + "/tokenizer_config.json") << R"({"eos_token": "</s>"})";
  EXPECT_EQ(render(), "<s>no");
  std::ofstream(folder.path() + "/tokenizer_config.json") << R"({"eos_token": "</s>", "added_tokens_decoder": {}})";
  EXPECT_EQ(render(), "</s>");
}

// As transformers chooses; the default of such a list often leaves the tools out.
TEST(ChatTemplateTest, AConversationWithToolsIsRenderedByTheTemplateForThem) {
  const TempFolder folder;
  std::ofstream(folder.path() + "/tokenizer_config.json")
      << R"({"chat_template": [{"name": "default", "template": "plain"},)"
      << R"({"name": "tool_use", "template": "{{ tools | length }} tools, {{ strftime_now('%F') }}"}]})";
  const auto render = [&](const OrderedJson& tools) {
    const auto chat_template = ChatTemplate::OfJob(folder.path(), {}, "2026-11-29").value();
    return chat_template->Render(OrderedJson::array(), ChatTemplate::RenderOptions{.tools = tools})->text;
  };
  const OrderedJson one_tool = OrderedJson::array({OrderedJson::object()});
  EXPECT_EQ(render(nullptr), "plain");
  EXPECT_EQ(render(one_tool), "1 tools, 2026-11-29");
  EXPECT_TRUE(AsksForDate(*ReadTemplateSources(folder.path())));
  // Files take the place of the whole list; those with another name are for who asks by it.
  std::ofstream(folder.path() + "/chat_template.jinja") << "file";
  EXPECT_EQ(render(one_tool), "file");
  EXPECT_FALSE(AsksForDate(*ReadTemplateSources(folder.path())));
  std::filesystem::create_directory(folder.path() + "/additional_chat_templates");
  std::ofstream(folder.path() + "/additional_chat_templates/rag.jinja") << "rag";
  EXPECT_EQ(render(one_tool), "file");
  std::ofstream(folder.path() + "/additional_chat_templates/tool_use.jinja") << "{{ strftime_now('%d') }}th";
  EXPECT_EQ(render(one_tool), "29th");
  EXPECT_EQ(render(nullptr), "file");
  EXPECT_TRUE(AsksForDate(*ReadTemplateSources(folder.path())));
}

TEST(ChatTemplateTest, AFileThatIsTooLongForATemplateIsRefusedAndNotCut) {
  const TempFolder folder;
  const std::string path = folder.path() + "/long.jinja";
  std::ofstream(path) << "{{ messages }}" << std::string(size_t{1} << 20, 'x');
  for (const std::string& endless : {path, std::string("/dev/zero")})
    EXPECT_THAT(std::string(TemplateSource(endless).status().message()), HasSubstr(endless + " holds no template"));
}

TEST(ChatTemplateTest, PrefersTheFileToTheConfiguration) {
  const TempFolder folder;
  EXPECT_FALSE(ChatTemplate::OfJob(folder.path(), {}, "").value().has_value());
  std::ofstream(folder.path() + "/tokenizer_config.json")
      << R"({"bos_token": {"content": "<s>"}, "chat_template": [{"name": "tool_use", "template": "no"},)"
      << R"({"name": "default", "template": "{{ bos_token }}config"}]})";
  const auto render = [&] { return RenderWithoutMessages(folder.path()); };
  EXPECT_EQ(render(), "<s>config");
  std::ofstream(folder.path() + "/chat_template.jinja") << "{{ bos_token }}file\n";
  EXPECT_EQ(render(), "<s>file");
}

}  // namespace
}  // namespace luthier
