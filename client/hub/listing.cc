#include "client/hub/listing.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/artifact/hash.h"
#include "lib/artifact/manifest.h"
#include "lib/base/json_shape.h"
#include "lib/base/json_text.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/adapter_config.h"
#include "lib/checkpoint/model_files.h"
#include "lib/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"

namespace luthier {
namespace {

using nlohmann::json;

// Together they keep a sum of sizes far from the end of 64 bits.
constexpr int64_t kMostBytes = 100'000'000'000'000;
constexpr size_t kMostFiles = 20'000;
// torch.save's, TensorFlow's and Flax's.
constexpr std::array kPickles = {".bin", ".pt", ".pth", ".ckpt", ".pkl"};

bool IsGitId(absl::string_view text) {
  return text.size() == 40 && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isdigit(static_cast<unsigned char>(c)) || (c >= 'a' && c <= 'f');
         });
}

absl::StatusOr<int64_t> SizeOf(const json& object, const std::string& path) {
  const auto size = object.find("size");
  if (size == object.end() || !size->is_number_unsigned() || size->get<uint64_t>() > uint64_t{kMostBytes})
    return absl::DataLossError(absl::StrCat("'", path, "' has no size, or one that is out of range"));
  return size->get<int64_t>();
}

absl::StatusOr<HubFile> ParseFile(const json& sibling) {
  if (!sibling.is_object()) return absl::DataLossError("a file is no object");
  HubFile file{.path = TextOf(sibling, "rfilename")};
  // A path that climbs out of its folder is no mistake, so nothing of this answer is used.
  if (const absl::Status status = CheckRelativePath(file.path); !status.ok())
    return absl::DataLossError(status.message());
  if (!BelongsToModel(file.path)) return file;
  LUTHIER_ASSIGN_OR_RETURN(file.bytes, SizeOf(sibling, file.path));
  const auto lfs = sibling.find("lfs");
  if (lfs == sibling.end() || lfs->is_null()) {
    const std::string id = TextOf(sibling, "blobId");
    if (IsGitId(id)) file.blob_id = id;
    return file;
  }
  if (!lfs->is_object() || !IsSha256Hex(TextOf(*lfs, "sha256")))
    return absl::DataLossError(absl::StrCat("'", file.path, "' is a large file without a SHA-256"));
  file.sha256 = TextOf(*lfs, "sha256");
  LUTHIER_ASSIGN_OR_RETURN(const int64_t bytes, SizeOf(*lfs, file.path));
  if (bytes != file.bytes)
    return absl::DataLossError(absl::StrCat("'", file.path, "' has ", file.bytes, " bytes and ", bytes, " as well"));
  return file;
}

bool IsPickle(absl::string_view path) {
  return std::any_of(kPickles.begin(), kPickles.end(),
                     [&](const char* extension) { return absl::EndsWith(path, extension); });
}

bool IsWeights(absl::string_view path) { return absl::EndsWith(path, ".safetensors"); }

// What the repository has in place of weights that Luthier reads, with the remedy.
std::string WhatIsThere(const HubListing& listing) {
  const auto has = [&](const auto& matches) -> const HubFile* {
    const auto found = std::find_if(listing.files.begin(), listing.files.end(), matches);
    return found == listing.files.end() ? nullptr : &*found;
  };
  if (has([](const HubFile& file) { return file.path == kAdapterWeightsFile; }) != nullptr)
    return "it holds an adapter; name the model that this one adapts";
  if (const HubFile* file = has([](const HubFile& file) { return IsPickle(file.path); })) {
    return absl::StrCat(file->path,
                        " is a pickle, which can run code and is not read. Ask its owner for safetensors, or "
                        "convert it where you trust it (transformers: save_pretrained(FOLDER)), and import the folder");
  }
  if (const HubFile* file = has([](const HubFile& file) { return absl::EndsWith(file.path, ".gguf"); }))
    return absl::StrCat(file->path, " is for llama.cpp; name the model that it was made from");
  return "name one that holds a model for transformers";
}

}  // namespace

absl::StatusOr<HubListing> ParseHubListing(absl::string_view text) {
  if (ShapeOfJson({text.data(), text.size()}).depth > kMaxJsonDepth)
    return absl::DataLossError(absl::StrCat("it is nested deeper than ", kMaxJsonDepth, " levels"));
  const json parsed = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return absl::DataLossError("it is no JSON object");
  HubListing listing{.commit = TextOf(parsed, "sha")};
  if (!IsGitId(listing.commit)) return absl::DataLossError("it names no commit (sha)");
  const auto siblings = parsed.find("siblings");
  if (siblings == parsed.end() || !siblings->is_array() || siblings->size() > kMostFiles)
    return absl::DataLossError(absl::StrCat("it has no list of at most ", kMostFiles, " files (siblings)"));
  std::set<std::string> paths;
  for (const json& sibling : *siblings) {
    LUTHIER_ASSIGN_OR_RETURN(HubFile file, ParseFile(sibling));
    if (!paths.insert(file.path).second) return absl::DataLossError(absl::StrCat("'", file.path, "' is there twice"));
    listing.files.push_back(std::move(file));
  }
  return listing;
}

absl::Status CheckHasWeights(const HubListing& listing, const HubAddress& address) {
  const bool has = std::any_of(listing.files.begin(), listing.files.end(), [](const HubFile& file) {
    return file.path == kWeightsFile || file.path == kWeightsIndexFile;
  });
  if (has) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(address.Text(), " has neither ", kWeightsFile, " nor ",
                                                 kWeightsIndexFile, ": ", WhatIsThere(listing)));
}

std::vector<HubFile> DescribingFiles(const HubListing& listing) {
  std::vector<HubFile> files;
  std::copy_if(listing.files.begin(), listing.files.end(), std::back_inserter(files),
               [](const HubFile& file) { return BelongsToModel(file.path) && !IsWeights(file.path); });
  return files;
}

absl::StatusOr<std::vector<HubFile>> FilesNamed(const HubListing& listing, const std::set<std::string>& names) {
  std::vector<HubFile> files;
  for (const std::string& name : names) {
    const auto found = std::find_if(listing.files.begin(), listing.files.end(),
                                    [&](const HubFile& file) { return file.path == name && IsWeights(name); });
    if (found == listing.files.end())
      return absl::InvalidArgumentError(absl::StrCat("the repository has no safetensors by the name of ", name,
                                                     ", which ", kWeightsIndexFile, " gives"));
    files.push_back(*found);
  }
  return files;
}

}  // namespace luthier
