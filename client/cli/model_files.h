// The files of a published version, and what a base model is, for the commands that show or download them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "client/cli/command.h"
#include "client/lib/client.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "luthier/v1/models.pb.h"

namespace luthier {

int64_t BytesOf(const google::protobuf::RepeatedPtrField<v1::ModelFile>& files);

// What they are, for people.
std::string KindWord(v1::ModelVersion::Kind kind);

// What a base model is, for people, in a line.
std::string FactsText(const v1::BaseModel& model);

// `status` of a call for a version of the model `given`; where that is no model but a base model, one that says so.
absl::Status WithBaseModelNamed(const absl::Status& status, Client& client, const std::string& given,
                                const std::string& remedy = "name one of: luthier model list --tuned");

// Downloads a version (`name` as VersionName() writes it) into `wanted_folder`, or one with the model's name if that is
// empty, and prints where.
absl::Status DownloadVersion(CommandContext& context, Client& client, const std::string& name,
                             const std::string& wanted_folder);

}  // namespace luthier
