#include "server/rows/row_check.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <iterator>
#include <new>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lib/base/descriptor.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/dataset_facts.h"
#include "lib/dataset/validate.h"
#include "lib/text/chat_template.h"
#include "lib/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "server/rows/child_process.h"

namespace luthier {
namespace {

using nlohmann::json;

// A row of 15 MB (the longest that is read has 16) took 1.7 GB with Qwen3's tokenizer, and 3 GB where every byte is a
// token.
constexpr int64_t kMemoryBytes = int64_t{4} << 30;
// As threads have it, whatever our shell allows: what is deeper than this is refused on every machine.
constexpr rlim_t kStackBytes = rlim_t{8} << 20;
// Of reading a large tokenizer and rendering a few rows with a template that uses all of its instructions.
constexpr absl::Duration kLeastTime = absl::Seconds(30);
// A core encodes some megabytes a second; a compressed file has a fraction of its rows' bytes.
constexpr int64_t kBytesPerSecond = 50'000;
// How much longer a core may take that others use, too.
constexpr int kCrowded = 4;

constexpr size_t kMostMessageBytes = 64 << 10;  // more than a status takes to a client

json ToJson(const RowCheck& check, const RowCheckLimits& limits) {
  json files = json::array();
  for (const RowCheck::File& file : check.files) {
    files.push_back({{"part", file.part}, {"name", file.name}, {"path", file.path}, {"weight", file.weight}});
  }
  return {{"base_model", check.base_model},
          {"chat_template", check.chat_template},
          {"template_date", check.template_date},
          {"loss_on", static_cast<int>(check.encoding.loss_on)},
          {"too_long", static_cast<int>(check.encoding.too_long)},
          {"max_length", check.encoding.max_length},
          {"scored_rows", check.scored_rows},
          {"files", std::move(files)},
          {"memory_bytes", limits.memory_bytes},
          {"processor_seconds", absl::ToInt64Seconds(limits.processor_time)}};
}

// Throws for what ToJson() did not write.
RowCheck CheckFromJson(const json& request) {
  RowCheck check;
  check.base_model = request.at("base_model").get<std::string>();
  check.chat_template = request.at("chat_template").get<std::string>();
  check.template_date = request.at("template_date").get<std::string>();
  check.encoding.loss_on = static_cast<EncodeOptions::LossOn>(request.at("loss_on").get<int>());
  check.encoding.too_long = static_cast<EncodeOptions::TooLong>(request.at("too_long").get<int>());
  check.encoding.max_length = request.at("max_length").get<int64_t>();
  check.scored_rows = request.at("scored_rows").get<int64_t>();
  for (const json& file : request.at("files")) {
    check.files.push_back({.part = file.at("part").get<std::string>(),
                           .name = file.at("name").get<std::string>(),
                           .path = file.at("path").get<std::string>(),
                           .weight = file.at("weight").get<double>()});
  }
  return check;
}

json ToJson(const absl::StatusOr<DatasetFacts>& facts) {
  if (!facts.ok()) {
    return {{"code", static_cast<int>(facts.status().code())},
            {"message", std::string(facts.status().message().substr(0, kMostMessageBytes))}};
  }
  return {{"code", 0},
          {"rows", facts->rows},
          {"tokens", facts->tokens},
          {"trained_tokens", facts->trained_tokens},
          {"longest_row", facts->longest_row},
          {"format", facts->format},
          {"has_validation", facts->has_validation},
          {"truncated", facts->truncated},
          {"dropped", facts->dropped}};
}

absl::Status NoAnswer(absl::string_view why) {
  return absl::InternalError(
      absl::StrCat("the rows cannot be checked, by a fault of the server: ", why, "; tell who runs it"));
}

absl::StatusOr<DatasetFacts> FactsFromAnswer(const std::string& text) {
  try {
    const json answer = json::parse(text);
    const int code = answer.at("code").get<int>();
    if (code != 0) return absl::Status(static_cast<absl::StatusCode>(code), answer.at("message").get<std::string>());
    DatasetFacts facts;
    facts.rows = answer.at("rows").get<int64_t>();
    facts.tokens = answer.at("tokens").get<int64_t>();
    facts.trained_tokens = answer.at("trained_tokens").get<int64_t>();
    facts.longest_row = answer.at("longest_row").get<int64_t>();
    facts.format = answer.at("format").get<std::string>();
    facts.has_validation = answer.at("has_validation").get<bool>();
    facts.truncated = answer.at("truncated").get<int64_t>();
    facts.dropped = answer.at("dropped").get<int64_t>();
    return facts;
  } catch (const json::exception& error) {
    return NoAnswer(absl::StrCat("its answer is none (", error.what(), ")"));
  }
}

// Rows and tokenizer may take memory and time as well, but theirs is bounded, and what a template makes of them is not.
absl::Status BeyondLimits(const RowCheck& check, const std::string& needs) {
  return absl::InvalidArgumentError(absl::StrCat(
      "chat_template: checking the rows with ", check.chat_template.empty() ? "that of the base model" : "it",
      " needs ", needs, "; give a template that nests less and builds smaller values, or shorter rows"));
}

absl::Status StatusOfSignal(const RowCheck& check, const RowCheckLimits& limits, const ChildEnd& end) {
  if (end.out_of_time || end.signal == SIGXCPU) {
    const absl::Duration limit = end.out_of_time ? limits.time : limits.processor_time;
    return BeyondLimits(check, absl::StrCat("more than ", absl::FormatDuration(limit)));
  }
  switch (end.signal) {
    case SIGABRT:  // an allocation that failed
    case SIGBUS:
    case SIGSEGV:  // a stack that is too deep
    case SIGKILL:  // the kernel, for lack of memory
      return BeyondLimits(check, absl::StrFormat("more than %.1f GB of memory, or a deeper stack than there is",
                                                 static_cast<double>(limits.memory_bytes) / 1e9));
    default:
      return absl::UnavailableError(
          absl::StrCat("the check of the rows was ended by signal ", end.signal, "; try again"));
  }
}

bool Limit(__rlimit_resource resource, rlim_t most) {
  rlimit limit = {};
  if (getrlimit(resource, &limit) != 0) return false;
  limit.rlim_cur = std::min(limit.rlim_max, most);
  return setrlimit(resource, &limit) == 0;
}

bool LimitThisProcess(int64_t memory_bytes, int64_t processor_seconds) {
  // If memory is short all the same, this process goes and not luthierd.
  const Descriptor score(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  (void)!write(score.get(), "1000", 4);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  memory_bytes = 0;  // sanitizers take terabytes of addresses
#endif
  const rlim_t memory = memory_bytes > 0 ? static_cast<rlim_t>(memory_bytes) : RLIM_INFINITY;
  return Limit(RLIMIT_CORE, 0) && Limit(RLIMIT_CPU, static_cast<rlim_t>(processor_seconds)) &&
         Limit(RLIMIT_STACK, kStackBytes) && Limit(RLIMIT_AS, memory);
}

absl::StatusOr<DatasetFacts> CheckRowsWithoutExceptions(const RowCheck& check) {
  try {
    return CheckRows(check);
  } catch (const std::bad_alloc&) {
    std::abort();  // as Rust says it
  } catch (const std::exception& error) {
    return NoAnswer(error.what());
  }
}

}  // namespace

RowCheckLimits LimitsOf(int64_t bytes) {
  const absl::Duration processor_time = kLeastTime + absl::Seconds(bytes / kBytesPerSecond);
  return {.memory_bytes = kMemoryBytes, .processor_time = processor_time, .time = kCrowded * processor_time};
}

absl::StatusOr<DatasetFacts> CheckRows(const RowCheck& check) {
  LUTHIER_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::Load(check.base_model));
  LUTHIER_ASSIGN_OR_RETURN(const std::optional<ChatTemplate> chat_template,
                           ChatTemplate::OfJob(check.base_model, check.chat_template, check.template_date));
  const RowEncoder encoder(tokenizer, chat_template ? &*chat_template : nullptr, check.encoding);
  std::vector<ReportedFile> files;
  ValidationReport all;
  for (const RowCheck::File& file : check.files) {
    ReportedFile& reported =
        files.emplace_back(ReportedFile{.part = file.part, .name = file.name, .weight = file.weight});
    LUTHIER_ASSIGN_OR_RETURN(reported.report, Validate(file.path, encoder, file.name));
    all.Merge(reported.report);
  }
  LUTHIER_RETURN_IF_ERROR(all.ToStatus());
  // A prompt that a template refuses is one row that is not scored. One that ends this process would end a trainer.
  for (const RowCheck::File& file : check.files) {
    if (file.part == "train") continue;
    LUTHIER_RETURN_IF_ERROR(
        ForEachPrompt(file.path, encoder, check.scored_rows, [](const Row&, const absl::StatusOr<Prompt>&) {}));
  }
  return FactsOf(files);
}

absl::StatusOr<DatasetFacts> CheckRowsInChild(const std::string& program, const RowCheck& check,
                                              const RowCheckLimits& limits, const std::stop_token& stop) {
  const std::string request = ToJson(check, limits).dump();
  LUTHIER_ASSIGN_OR_RETURN(const ChildEnd end,
                           RunChild({program, "check-rows", absl::StrCat(getpid())}, request, limits.time, stop));
  if (end.signal != 0) return StatusOfSignal(check, limits, end);
  if (end.exit_code != 0) return NoAnswer(absl::StrCat("its process ended with code ", end.exit_code));
  return FactsFromAnswer(end.output);
}

int AnswerRowCheck(const std::string& parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (absl::StrCat(getppid()) != parent) return 2;  // it died before
  const std::string text((std::istreambuf_iterator<char>(std::cin)), {});
  const json request = json::parse(text);
  const RowCheck check = CheckFromJson(request);
  if (!LimitThisProcess(request.at("memory_bytes").get<int64_t>(), request.at("processor_seconds").get<int64_t>()))
    return 1;
  const absl::StatusOr<DatasetFacts> facts = CheckRowsWithoutExceptions(check);
  // Messages quote what users wrote, cut anywhere.
  std::cout << ToJson(facts).dump(-1, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace) << std::flush;
  return std::cout ? 0 : 1;
}

}  // namespace luthier
