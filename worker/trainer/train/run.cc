#include "worker/trainer/train/run.h"

#include <memory>
#include <new>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "worker/trainer/export/conversion.h"
#include "worker/trainer/train/preparation.h"
#include "worker/trainer/train/trainer.h"

namespace luthier {
namespace {

absl::Status Attempt(const TrainerSpec& spec, const std::string& out_folder, const RankPlace& place,
                     EventWriter& events, RunControl& control) {
  if (spec.exports()) return RunExport(spec, out_folder, events, control);
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<Run> run, Prepare(spec, out_folder, Ranks(place)));
  return Train(*run, events, control);
}

absl::Status OutOfMemory(const TrainerSpec& spec) {
  const char* smaller = spec.exports() ? "" : "lower training.micro_batch_tokens or ";
  return absl::UnavailableError(absl::StrCat("out of memory; ", smaller, "use a node with more memory"));
}

}  // namespace

std::string FailureCause(const absl::Status& status) {
  if (IsUserDataError(status)) return "USER_DATA";
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition: return "CONFIG";
    case absl::StatusCode::kOutOfRange: return "NAN";
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kPermissionDenied: return "STORAGE";
    case absl::StatusCode::kUnavailable: return "OOM";
    default: return "INTERNAL";
  }
}

absl::Status RunAttempt(const TrainerSpec& spec, const std::string& out_folder, const RankPlace& place,
                        EventWriter& events, RunControl& control) {
  absl::Status status;
  try {
    status = Attempt(spec, out_folder, place, events, control);
  } catch (const std::bad_alloc&) {
    status = OutOfMemory(spec);
  } catch (const LostRank& error) {
    return absl::AbortedError(error.what());
  } catch (const std::exception& error) {  // LibTorch
    const std::string what = error.what();
    const bool memory =
        what.find("not enough memory") != std::string::npos || what.find("out of memory") != std::string::npos;
    status = memory ? OutOfMemory(spec) : absl::InternalError(what);
  }
  if (!status.ok()) {
    events.Write("failed", {{"cause", FailureCause(status)}, {"message", std::string(status.message())}});
  }
  return status;
}

}  // namespace luthier
