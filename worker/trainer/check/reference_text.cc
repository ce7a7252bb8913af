#include "worker/trainer/check/reference_text.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <ostream>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/encode.h"
#include "lib/text/chat_template.h"
#include "lib/text/json_file.h"
#include "lib/text/tokenizer.h"
#include "lib/text/tokenizer_files.h"

namespace luthier {
namespace {

// Probes of Jinja2 on Python in which minijinja differs. No collected chat template needs any of them; docs/text.md has
// the same table with examples.
const std::map<std::string_view, std::string_view> kKnown = {
    {"tuple_print", "tuples"},
    {"set_tuple", "tuples"},
    {"sorted_keys", "tuples"},
    {"dict_methods", "tuples"},
    {"cmp_mixed", "tuples"},
    {"macro_attrs", "tuples"},
    {"str_methods4", "tuples"},
    {"dict_keys_print", "printing"},
    {"range_print", "printing"},
    {"filters_pprint", "printing"},
    {"gen_index", "printing"},
    {"cmp_str_int", "comparisons"},
    {"cmp_none_int", "comparisons"},
    {"in_int_str", "comparisons"},
    {"undef_lt", "comparisons"},
    {"dict_attr_method_shadow", "attributes"},
    {"filters_attr2", "attributes"},
    {"filters_safe_plus", "markup"},
    {"tojson2", "keys"},
    {"namespace_under", "namespace"},
    {"num_print", "refused"},
    {"str_percent", "refused"},
    {"str_percent1", "refused"},
    {"str_mult_format", "refused"},
    {"str_encode", "refused"},
    {"filters_str", "refused"},
    {"filters_wordwrap", "refused"},
    {"filters_xml", "refused"},
    {"filters_filesize", "refused"},
    {"macro_varargs", "refused"},
    {"cycler_joiner", "refused"},
    {"namespace_kwargs", "refused"},
    {"unicode_ident", "refused"},
};

std::vector<OrderedJson> ReadLines(const std::string& path) {
  std::vector<OrderedJson> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(OrderedJson::parse(line));
  return lines;
}

// Our spans count bytes, those of the reference code points.
class CodePoints {
 public:
  explicit CodePoints(const std::string& text) {
    int64_t count = -1;
    for (const char c : text) {
      count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
      index_.push_back(count);
    }
    index_.push_back(count + 1);
  }
  OrderedJson operator()(const std::vector<TextSpan>& spans) const {
    OrderedJson converted = OrderedJson::array();
    for (const TextSpan span : spans) {
      converted.push_back({index_.at(static_cast<size_t>(span.begin)), index_.at(static_cast<size_t>(span.end))});
    }
    return converted;
  }

 private:
  std::vector<int64_t> index_;
};

// Whether `rendered` is what the reference says: text and spans, the template's own error message, or any other error.
bool Agrees(const absl::StatusOr<RenderedChat>& rendered, const OrderedJson& expected) {
  if (expected.contains("error")) {
    if (rendered.ok()) return false;
    const OrderedJson& error = expected["error"];
    return !error.at("raised_by_template").get<bool>() ||
           rendered.status().message() == error.at("message").get<std::string>();
  }
  if (!rendered.ok() || rendered->text != expected.at("text").get<std::string>()) return false;
  return !expected.contains("generation_spans") ||
         CodePoints(rendered->text)(rendered->generation) == expected["generation_spans"];
}

std::vector<uint8_t> MaskOfRuns(const OrderedJson& runs, size_t tokens) {
  std::vector<uint8_t> mask(tokens, 0);
  for (const OrderedJson& run : runs) {
    const auto end = std::min(run.at(1).get<size_t>(), tokens), begin = std::min(run.at(0).get<size_t>(), end);
    std::fill(mask.begin() + static_cast<int64_t>(begin), mask.begin() + static_cast<int64_t>(end), uint8_t{1});
  }
  return mask;
}

class TextCheck {
 public:
  TextCheck(std::string folder, std::ostream& out) : folder_(std::move(folder)), out_(out) {}

  absl::StatusOr<bool> Run() {
    LUTHIER_RETURN_IF_ERROR(Open());
    NamedTokensOfFolders();
    Encodings();
    Renderings();
    Masks();
    Probes();
    if (records_ == 0)
      return absl::NotFoundError(folder_ + ": has no records in expected/; give a folder like shared/reference/text");
    return all_ok_;
  }

 private:
  absl::StatusOr<OrderedJson> Index(const std::string& name) const {
    const absl::StatusOr<std::string> text = ReadTextFile(folder_ + "/" + name);
    if (absl::IsNotFound(text.status())) return OrderedJson::array();  // a folder may hold some kinds only
    LUTHIER_RETURN_IF_ERROR(text.status());
    return OrderedJson::parse(*text);
  }

  absl::Status Open() {
    for (const OrderedJson& line : ReadLines(folder_ + "/conversations.jsonl")) {
      conversations_[line.at("id")] = line.dump();
    }
    LUTHIER_ASSIGN_OR_RETURN(const OrderedJson tokenizers, Index("tokenizers/index.json"));
    for (const OrderedJson& entry : tokenizers) {
      const std::string name = entry.at("name");
      tokenizers_.emplace(name, Tokenizer::Load(folder_ + "/tokenizers/" + name));
      if (entry.contains("named_tokens")) named_tokens_[name] = entry.at("named_tokens");
    }
    LUTHIER_ASSIGN_OR_RETURN(const OrderedJson templates, Index("templates/index.json"));
    for (const OrderedJson& entry : templates) {
      LUTHIER_ASSIGN_OR_RETURN(const std::string source,
                               ReadTextFile(folder_ + "/" + entry.at("file").get<std::string>()));
      templates_.emplace(entry.at("id"), ChatTemplate::Compile(source, entry.at("special_tokens")));
    }
    return absl::OkStatus();
  }

  // The variables that a model's folder gives to its chat template.
  void NamedTokensOfFolders() {
    for (const auto& [name, expected] : named_tokens_) {
      const absl::StatusOr<OrderedJson> files = ReadTokenizerFiles(folder_ + "/tokenizers/" + name);
      const absl::StatusOr<OrderedJson> named = files.ok() ? NamedTokens(*files) : files.status();
      Record("named/" + name, named.ok() && *named == expected, named.ok() ? named->dump() : Refused(named.status()));
    }
  }

  void Encodings() {
    std::map<std::string, std::string> texts;
    for (const OrderedJson& line : ReadLines(folder_ + "/strings.jsonl")) texts[line.at("id")] = line.at("text");
    for (const auto& [name, tokenizer] : tokenizers_) {
      for (const OrderedJson& expected : ReadLines(folder_ + "/expected/encode/" + name + ".jsonl")) {
        const std::string id = expected.at("string");
        const absl::StatusOr<bool> ok = Encodes(tokenizer, texts.at(id), expected);
        Record("encode/" + name + "/" + id, ok.ok() && *ok, ok.ok() ? "" : Refused(ok.status()));
      }
    }
  }

  static absl::StatusOr<bool> Encodes(const absl::StatusOr<Tokenizer>& tokenizer, const std::string& text,
                                      const OrderedJson& expected) {
    LUTHIER_RETURN_IF_ERROR(tokenizer.status());
    LUTHIER_ASSIGN_OR_RETURN(const Encoding plain, tokenizer->Encode(text, false));
    LUTHIER_ASSIGN_OR_RETURN(const Encoding with_special, tokenizer->Encode(text, true));
    LUTHIER_ASSIGN_OR_RETURN(const std::string decoded, tokenizer->Decode(plain.ids, false));
    LUTHIER_ASSIGN_OR_RETURN(const std::string without_special, tokenizer->Decode(with_special.ids, true));
    return OrderedJson(plain.ids) == expected.at("ids") && CodePoints(text)(plain.offsets) == expected.at("offsets") &&
           OrderedJson(with_special.ids) == expected.at("ids_with_special") &&
           decoded == expected.at("decoded").get<std::string>() &&
           without_special == expected.at("decoded_skip_special").get<std::string>();
  }

  absl::StatusOr<RenderedChat> Render(const OrderedJson& record) const {
    const absl::StatusOr<ChatTemplate>& compiled = templates_.at(record.at("template"));
    LUTHIER_RETURN_IF_ERROR(compiled.status());
    return compiled->RenderRequest(conversations_.at(record.at("conversation")));
  }

  static std::string NameOf(const OrderedJson& record) {
    return absl::StrCat(record.at("template").get<std::string>(), "/", record.at("conversation").get<std::string>());
  }

  void Renderings() {
    for (const OrderedJson& expected : ReadLines(folder_ + "/expected/render.jsonl")) {
      const absl::StatusOr<RenderedChat> rendered = Render(expected);
      Record("render/" + NameOf(expected), Agrees(rendered, expected), Words(rendered));
    }
  }

  void Masks() {
    for (const OrderedJson& expected : ReadLines(folder_ + "/expected/masks.jsonl")) {
      const std::string tokenizer = expected.at("tokenizer");
      const absl::StatusOr<bool> ok = Masks(tokenizers_.at(tokenizer), expected);
      Record("mask/" + tokenizer + "/" + NameOf(expected), ok.ok() && *ok, ok.ok() ? "" : Refused(ok.status()));
    }
  }

  absl::StatusOr<bool> Masks(const absl::StatusOr<Tokenizer>& tokenizer, const OrderedJson& expected) const {
    LUTHIER_RETURN_IF_ERROR(tokenizer.status());
    LUTHIER_ASSIGN_OR_RETURN(const RenderedChat rendered, Render(expected));
    LUTHIER_ASSIGN_OR_RETURN(const Encoding encoding, tokenizer->Encode(rendered.text, false));
    return OrderedJson(encoding.ids) == expected.at("input_ids") &&
           MaskOfSpans(encoding, rendered.generation) == MaskOfRuns(expected.at("mask_runs"), encoding.ids.size());
  }

  // Small templates, each for one behaviour of Jinja2 on Python.
  void Probes() {
    const std::vector<OrderedJson> records = ReadLines(folder_ + "/expected/probes.jsonl");
    if (records.empty()) return;
    const OrderedJson probes = OrderedJson::parse(std::ifstream(folder_ + "/probes.json"));
    std::map<std::string, std::string> sources;
    for (const OrderedJson& probe : probes.at("probes")) sources[probe.at("id")] = probe.at("template");
    // What render_fixtures.py renders them with.
    const OrderedJson messages = OrderedJson::array({{{"role", "user"}, {"content", "hi"}}});
    const std::string request = OrderedJson({{"messages", messages}, {"kwargs", probes.at("vars")}}).dump();
    for (const OrderedJson& expected : records) {
      const std::string id = expected.at("probe");
      const absl::StatusOr<ChatTemplate> compiled = ChatTemplate::Compile(sources.at(id), OrderedJson::object());
      const absl::StatusOr<RenderedChat> rendered =
          compiled.ok() ? compiled->RenderRequest(request) : absl::StatusOr<RenderedChat>(compiled.status());
      const auto known = kKnown.find(id);
      Record("probe/" + id, Agrees(rendered, expected), Words(rendered), known == kKnown.end() ? "" : known->second);
    }
  }

  static std::string Words(const absl::StatusOr<RenderedChat>& rendered) {
    return rendered.ok() ? rendered->text : Refused(rendered.status());
  }

  static std::string Refused(const absl::Status& status) { return absl::StrCat("refused: ", status.message()); }

  // `ours`: what a difference is shown with.
  void Record(const std::string& name, bool ok, const std::string& ours = "", std::string_view known = "") {
    OrderedJson line = {{"case", folder_}, {"check", name}, {"ok", ok}};
    if (!ok && !ours.empty()) line["ours"] = ours;
    if (!ok && !known.empty()) line["known"] = known;
    out_ << line.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) << "\n";
    all_ok_ = all_ok_ && (ok || !known.empty());
    ++records_;
  }

  const std::string folder_;
  std::ostream& out_;
  std::map<std::string, std::string> conversations_;
  // What a file cannot be read as counts for its own records only.
  std::map<std::string, absl::StatusOr<Tokenizer>> tokenizers_;
  std::map<std::string, OrderedJson> named_tokens_;
  std::map<std::string, absl::StatusOr<ChatTemplate>> templates_;
  int64_t records_ = 0;
  bool all_ok_ = true;
};

}  // namespace

absl::StatusOr<bool> CheckText(const std::string& folder, std::ostream& out) { return TextCheck(folder, out).Run(); }

}  // namespace luthier
