#include "server/rpc/model_versions.h"

#include "lib/base/status_macros.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"
#include "server/rpc/validate.h"

namespace luthier {

absl::StatusOr<std::vector<ModelVersion>> VersionsOf(Store& store, const Call& call, const std::string& model) {
  LUTHIER_ASSIGN_OR_RETURN(std::vector<ModelVersion> versions, store.Versions(model));
  std::erase_if(versions, [&](const ModelVersion& version) { return !call.Sees(version.tenant); });
  return versions;
}

absl::StatusOr<v1::ModelVersion> FindVersion(Store& store, const Call& call, absl::string_view name) {
  LUTHIER_ASSIGN_OR_RETURN(VersionName wanted, ParseVersionName(name));
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<Alias> aliases, store.Aliases(wanted.model));
  for (const Alias& alias : aliases) {
    if (alias.name == wanted.alias) wanted.number = alias.version;
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, VersionsOf(store, call, wanted.model));
  for (const ModelVersion& version : versions) {
    if (version.version == wanted.number || wanted.alias == "latest") return WithAliases(version, aliases);
  }
  return DoesNotExist(std::string(name));
}

v1::ModelVersion WithAliases(const ModelVersion& version, const std::vector<Alias>& aliases) {
  v1::ModelVersion message = ToProto(version);
  for (const Alias& alias : aliases) {
    if (alias.version == version.version) message.add_aliases(alias.name);
  }
  return message;
}

}  // namespace luthier
