// JSON whose objects keep the order of their keys. Chat templates print objects (`tojson`), and a
// model was trained on the order that the data set has: nlohmann::json would sort it.
#pragma once

#include <nlohmann/json.hpp>

namespace luthier {

using OrderedJson = nlohmann::ordered_json;

}  // namespace luthier
