// What it would cost to parse a JSON text and to use what comes out, told without parsing it: such texts come from
// users.
#pragma once

#include <cstdint>
#include <string_view>

namespace luthier {

// Data is not nested deeper. Whoever copies, compares or prints a parsed value calls itself once a level, so that a
// megabyte of brackets ends the process.
inline constexpr int kMaxJsonDepth = 64;

struct JsonShape {
  int64_t depth = 0;  // of arrays and objects
  int64_t keys = 0;   // of all objects
  // The first whole number beyond 64 bits, of which a parser makes a fraction without a word; empty: there is none.
  std::string_view huge_integer;
};

// Of a text that need not be valid JSON, and has to outlive the answer.
JsonShape ShapeOfJson(std::string_view text);

}  // namespace luthier
