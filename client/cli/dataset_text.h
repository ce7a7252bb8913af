// What a check of a dataset found, in words and tables.
#pragma once

#include <string>
#include <vector>

#include "client/cli/terminal.h"
#include "lib/dataset/validate.h"

namespace luthier {

// The report of one part.
struct PartReport {
  std::string part;
  ValidationReport report;
};

// Rows, tokens, trained tokens, longest row, cut and repeated rows of each part.
std::string ReportTable(const std::vector<PartReport>& parts, const Terminal& terminal);

// The first rows that repeat an earlier one, each with both lines, and how many more there are; empty if there is none.
std::string RepeatedRows(const std::vector<PartReport>& parts);

// Bars of row lengths over all parts; empty if tokens were not counted.
std::string LengthHistogram(const std::vector<PartReport>& parts);

}  // namespace luthier
