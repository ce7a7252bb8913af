// Numbers, sizes and times as people read them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/map.h"
#include "google/protobuf/timestamp.pb.h"
#include "lib/base/bytes_text.h"

namespace luthier {

std::string FormatCount(int64_t count);             // 3,812,096
std::string DurationText(absl::Duration duration);  // 1h 02m, 2m 05s, 3.2s, 45ms (absl has a FormatDuration)
std::string FormatAge(absl::Duration age);          // 3d, 5h, 12m, 8s
std::string FormatPercent(double fraction);         // 96.5 %
std::string FormatFraction(double number);          // four significant digits: 0.0123, 1.235, 2e-05

absl::Duration ToDuration(const google::protobuf::Duration& duration);
absl::Time ToTime(const google::protobuf::Timestamp& timestamp);
std::string FormatTime(const google::protobuf::Timestamp& timestamp);  // 2026-01-02 15:04:05 CET: of this machine

// `background` of SERVICE_CLASS_BACKGROUND: an enum of the API as people write it.
std::string EnumWord(absl::string_view name, absl::string_view prefix);

// team=sales,zone=a: sorted by their names; - if there are none.
std::string LabelText(const google::protobuf::Map<std::string, std::string>& labels);

// Values as blocks of eight heights, newest last, scaled to their own range; the last `width` of them.
std::string Sparkline(const std::vector<double>& values, int width);

}  // namespace luthier
