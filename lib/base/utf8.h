// Texts of others, which may be no UTF-8.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace luthier {

// Bytes of the well-formed UTF-8 character at the start of `text`; 0 if there is none (Unicode 15, table 3-7: overlong
// forms, surrogates and numbers above U+10FFFF are not well-formed).
size_t CharacterBytes(std::string_view text);

// Where the first byte stands, counted from 0, that belongs to no character; npos if `text` is UTF-8.
size_t FirstIllFormed(std::string_view text);

// `text` with U+FFFD for each byte that belongs to no character: what protobuf takes as text.
std::string WellFormed(std::string_view text);

// What a program wrote, as a line of its log: WellFormed() up to 4 KiB, with U+FFFD for control characters (tabs stay)
// and without a carriage return at its end.
std::string LogLine(std::string_view text);

}  // namespace luthier
