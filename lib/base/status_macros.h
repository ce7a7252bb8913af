// Early return on an absl::Status. Abseil ships such macros only from 20260526 on; Debian 12 has 20220623.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define LUTHIER_RETURN_IF_ERROR(expression)                                 \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

#define LUTHIER_CONCAT_INNER_(a, b) a##b
#define LUTHIER_CONCAT_(a, b) LUTHIER_CONCAT_INNER_(a, b)

// `LUTHIER_ASSIGN_OR_RETURN(auto rows, ReadRows(path));`
#define LUTHIER_ASSIGN_OR_RETURN(target, expression) \
  LUTHIER_ASSIGN_OR_RETURN_(LUTHIER_CONCAT_(status_or_, __LINE__), target, expression)
#define LUTHIER_ASSIGN_OR_RETURN_(status_or, target, expression) \
  auto status_or = (expression);                                 \
  if (!status_or.ok()) return std::move(status_or).status();     \
  target = *std::move(status_or)
