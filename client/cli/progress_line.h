// One line that says how far a job is.
#pragma once

#include <string>
#include <vector>

#include "luthier/v1/jobs.pb.h"

namespace luthier {

// `step 120/300  40% ████████░░░░░░░░░░░░  loss 1.234 █▆▅▃▂  5,120 tok/s  ETA 1m 20s`, in at most `width` columns: what
// does not fit is left out, the curve first. `losses`: of the steps so far, oldest first.
std::string ProgressLine(const v1::JobProgress& progress, const std::vector<double>& losses, int width);

// The same as a line of a log.
std::string PlainProgressLine(const v1::JobProgress& progress);

}  // namespace luthier
