#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/model_facts.h"
#include "lib/checkpoint/model_files.h"
#include "lib/text/template_source.h"
#include "lib/wire/json_wire.h"
#include "luthier/v1/models.grpc.pb.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/housekeeping.h"
#include "server/rpc/model_versions.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
constexpr size_t kChunkBytes = 1 << 20;
// The longest is what S3 signs.
constexpr absl::Duration kUrlLifetime = absl::Hours(1), kLongestUrlLifetime = absl::Hours(7 * 24);

// Paths inside `folder`; `error` is set if it cannot be listed.
std::vector<fs::path> FilesOfModel(const fs::path& folder, std::error_code& error) {
  std::vector<fs::path> paths;
  std::error_code none;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    if (entry.is_regular_file(none) && BelongsToModel(entry.path().filename().string()))
      paths.push_back(entry.path().filename());
  }
  for (const std::string& name : NamedTemplateFiles(folder)) paths.emplace_back(name);
  return paths;
}

// What the folder of a base model holds.
struct ModelFolder {
  std::vector<fs::path> files;  // inside it
  ModelFacts facts;
};

// It may be one that our user must not see: no call may throw for it. Errors: INVALID_ARGUMENT.
absl::StatusOr<ModelFolder> ReadModelFolder(const std::string& path) {
  std::error_code error;
  ModelFolder folder;
  folder.files = FilesOfModel(path, error);
  if (!absl::StartsWith(path, "/") || error) {
    return absl::InvalidArgumentError(absl::StrCat(
        "source_path: ", Shown(path, kMostPath), " is no folder on the server's machine that luthierd can read",
        error ? absl::StrCat(" (", error.message(), ")") : "",
        "; give the absolute path of one there, of which its user may read every file"));
  }
  absl::StatusOr<ModelFacts> facts = ReadModelFacts(path);
  if (!facts.ok()) return absl::InvalidArgumentError(absl::StrCat("source_path: ", facts.status().message()));
  if (!facts->has_tokenizer) {
    return absl::InvalidArgumentError(
        absl::StrCat("source_path: ", path, " has no tokenizer.json; put that of the model there"));
  }
  folder.facts = *std::move(facts);
  return folder;
}

absl::StatusOr<v1::ModelFile> StoreFile(ArtifactStore& artifacts, BlobPins& pins, const fs::path& folder,
                                        const fs::path& name) {
  const fs::path path = folder / name;
  v1::ModelFile file;
  file.set_path(name.string());
  // Read twice: a store that is far away has to know the name before the first byte.
  LUTHIER_ASSIGN_OR_RETURN(*file.mutable_sha256(), Sha256OfFile(path));
  const auto size = static_cast<int64_t>(fs::file_size(path));
  LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> blob, artifacts.PutBlob(file.sha256(), size, &pins));
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> buffer(kChunkBytes);
  while (stream.read(buffer.data(), kChunkBytes), stream.gcount() > 0) {
    LUTHIER_RETURN_IF_ERROR(blob->Append({buffer.data(), static_cast<size_t>(stream.gcount())}));
  }
  file.set_size_bytes(blob->bytes());
  LUTHIER_RETURN_IF_ERROR(blob->Commit());
  return file;
}

absl::StatusOr<absl::Duration> LifetimeOf(const v1::SignModelVersionUrlsRequest& request) {
  if (!request.has_lifetime()) return kUrlLifetime;
  const absl::Duration lifetime = FromProto(request.lifetime());
  if (lifetime >= absl::Seconds(1) && lifetime <= kLongestUrlLifetime) return lifetime;
  return absl::InvalidArgumentError(
      absl::StrCat("lifetime: ", absl::FormatDuration(lifetime), " is out of its range; give 1 second to 7 days"));
}

// What people wrote about where a model came from. Errors: INVALID_ARGUMENT.
absl::Status CheckOrigin(absl::string_view field, absl::string_view text) {
  constexpr size_t kMostBytes = 512;
  const bool plain = std::none_of(text.begin(), text.end(), [](unsigned char c) { return absl::ascii_iscntrl(c); });
  if (plain && text.size() <= kMostBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", Shown(text),
                                                 " is too long or has control characters; give "
                                                 "at most ",
                                                 kMostBytes, " bytes, or leave it out"));
}

absl::Status CheckAlias(const std::string& alias) {
  if (alias == "latest")
    return absl::InvalidArgumentError("alias: 'latest' is always the newest version; choose another");
  return CheckId("alias", alias);
}

// Errors: INVALID_ARGUMENT for a metric or a value that no version could have.
absl::Status CheckMinimum(const v1::PromotionMinimum& minimum) {
  std::vector<std::string> violations;
  if (!IsMetric(minimum.metric()) || minimum.metric() == "loss") {
    violations.push_back(absl::StrCat("minimum.metric: ", Shown(minimum.metric()),
                                      " is unknown; give token_accuracy, exact_match, json_equality or field_f1"));
  }
  if (!(minimum.value() >= 0 && minimum.value() <= 1)) {  // NaN is neither
    violations.push_back(
        absl::StrCat("minimum.value: ", minimum.value(), " is out of range; give a number from 0 to 1"));
  }
  return Refusal(violations);
}

// A record of before files for converters were kept has none of them.
bool SameFiles(const v1::BaseModel& a, const v1::BaseModel& b) {
  std::map<std::string, std::string> left, right;  // path → SHA-256
  for (const v1::ModelFile& file : a.files()) left[file.path()] = file.sha256();
  for (const v1::ModelFile& file : b.files()) right[file.path()] = file.sha256();
  const auto covers = [](const auto& files, const auto& others) {
    return absl::c_all_of(files, [&](const auto& file) {
      const auto other = others.find(file.first);
      return other == others.end() ? IsForConverters(file.first) : other->second == file.second;
    });
  };
  return covers(left, right) && covers(right, left);
}

class ModelsService final : public v1::ModelService::Service {
 public:
  explicit ModelsService(Backend& backend) : backend_(backend) {}

  grpc::Status RegisterBaseModel(grpc::ServerContext* context, const v1::RegisterBaseModelRequest* request,
                                 v1::BaseModel* response) override {
    return Handle(backend_, *context, "RegisterBaseModel",
                  [&](Call& call) { return RegisterModel(call, *request, *response); });
  }
  grpc::Status GetBaseModel(grpc::ServerContext* context, const v1::GetBaseModelRequest* request,
                            v1::BaseModel* response) override {
    return Handle(backend_, *context, "GetBaseModel", [&](Call&) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "baseModels", request->name()));
      return Load(id, *response);
    });
  }
  grpc::Status ListBaseModels(grpc::ServerContext* context, const v1::ListBaseModelsRequest* request,
                              v1::ListBaseModelsResponse* response) override {
    return Handle(backend_, *context, "ListBaseModels", [&](Call&) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const std::vector<Resource> all, backend_.store.ListResources(ResourceKind::kBaseModel));
      return AddPage("baseModels", *request, *response, all, NewestFirst, [&](const Resource& resource) -> auto& {
        v1::BaseModel& model = *response->add_base_models();
        model.ParseFromString(resource.payload);
        return model;
      });
    });
  }
  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override {
    return Handle(backend_, *context, "ListModels", [&](Call& call) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, VersionsOf(backend_.store, call, ""));
      std::vector<ModelVersion> newest;
      for (const ModelVersion& version : versions) {
        if (newest.empty() || newest.back().model != version.model) newest.push_back(version);
      }
      const auto position = [](const ModelVersion& version) {
        return Position(-absl::ToUnixMicros(version.create_time), version.model);
      };
      absl::c_sort(newest, [&](const ModelVersion& a, const ModelVersion& b) { return position(a) < position(b); });
      return AddPage("models", *request, *response, newest, position, [&](const ModelVersion& version) -> auto& {
        v1::Model& model = *response->add_models();
        model.set_name("models/" + version.model);
        model.set_latest_version(version.version);
        *model.mutable_create_time() = ToProto(version.create_time);
        return model;
      });
    });
  }
  grpc::Status ListModelVersions(grpc::ServerContext* context, const v1::ListModelVersionsRequest* request,
                                 v1::ListModelVersionsResponse* response) override {
    return Handle(backend_, *context, "ListModelVersions", [&](Call& call) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const std::string model, ParseName("parent", "models", request->parent()));
      LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, VersionsOf(backend_.store, call, model));
      if (versions.empty()) return DoesNotExist(request->parent());
      LUTHIER_ASSIGN_OR_RETURN(const std::vector<Alias> aliases, backend_.store.Aliases(model));
      const auto position = [](const ModelVersion& version) { return Position(-version.version, ""); };
      return AddPage(request->parent(), *request, *response, versions, position,
                     [&](const ModelVersion& version) -> auto& {
                       return *response->add_model_versions() = WithAliases(version, aliases);
                     });
    });
  }
  grpc::Status GetModelVersion(grpc::ServerContext* context, const v1::GetModelVersionRequest* request,
                               v1::ModelVersion* response) override {
    return Handle(backend_, *context, "GetModelVersion", [&](Call& call) -> absl::Status {
      call.subject = request->name();
      LUTHIER_ASSIGN_OR_RETURN(*response, FindVersion(backend_.store, call, request->name()));
      return absl::OkStatus();
    });
  }
  grpc::Status DownloadModelVersion(grpc::ServerContext* context, const v1::DownloadModelVersionRequest* request,
                                    grpc::ServerWriter<v1::DownloadModelVersionResponse>* writer) override {
    return Handle(backend_, *context, "DownloadModelVersion", [&](Call& call) -> absl::Status {
      call.subject = request->name();
      LUTHIER_ASSIGN_OR_RETURN(const v1::ModelVersion version, FindVersion(backend_.store, call, request->name()));
      LUTHIER_ASSIGN_OR_RETURN(const auto transfer, backend_.transfers.Begin(*context, call));
      return SendFiles(*transfer, *request, version.files(), *writer);
    });
  }
  grpc::Status SignModelVersionUrls(grpc::ServerContext* context, const v1::SignModelVersionUrlsRequest* request,
                                    v1::SignModelVersionUrlsResponse* response) override {
    return Handle(backend_, *context, "SignModelVersionUrls",
                  [&](Call& call) { return SignUrls(call, *request, *response); });
  }
  grpc::Status DownloadBaseModel(grpc::ServerContext* context, const v1::DownloadBaseModelRequest* request,
                                 grpc::ServerWriter<v1::DownloadBaseModelResponse>* writer) override {
    return Handle(backend_, *context, "DownloadBaseModel", [&](Call& call) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "baseModels", request->name()));
      v1::BaseModel model;
      LUTHIER_RETURN_IF_ERROR(Load(id, model));
      LUTHIER_ASSIGN_OR_RETURN(const auto transfer, backend_.transfers.Begin(*context, call));
      return SendFiles(*transfer, *request, model.files(), *writer);
    });
  }
  grpc::Status PromoteModelVersion(grpc::ServerContext* context, const v1::PromoteModelVersionRequest* request,
                                   v1::ModelVersion* response) override {
    return Handle(backend_, *context, "PromoteModelVersion",
                  [&](Call& call) { return Promote(call, *request, *response); });
  }
  grpc::Status DeleteModelAlias(grpc::ServerContext* context, const v1::DeleteModelAliasRequest* request,
                                google::protobuf::Empty*) override {
    return Handle(backend_, *context, "DeleteModelAlias",
                  [&](Call& call) { return DeleteAlias(call, request->name()); });
  }

  grpc::Status DeleteModelVersion(grpc::ServerContext* context, const v1::DeleteModelVersionRequest* request,
                                  google::protobuf::Empty*) override {
    return Handle(backend_, *context, "DeleteModelVersion",
                  [&](Call& call) { return DeleteVersion(call, request->name()); });
  }
  grpc::Status DeleteBaseModel(grpc::ServerContext* context, const v1::DeleteBaseModelRequest* request,
                               google::protobuf::Empty*) override {
    return Handle(backend_, *context, "DeleteBaseModel", [&](Call& call) { return DeleteBase(call, request->name()); });
  }

 private:
  absl::Status Load(const std::string& id, v1::BaseModel& response) {
    LUTHIER_ASSIGN_OR_RETURN(const Resource resource, backend_.store.GetResource(ResourceKind::kBaseModel, id));
    response.ParseFromString(resource.payload);
    return absl::OkStatus();
  }

  absl::Status RegisterModel(Call& call, const v1::RegisterBaseModelRequest& request, v1::BaseModel& response) {
    call.subject = "baseModels/" + request.base_model_id();
    const absl::StatusOr<ModelFolder> folder = ReadModelFolder(request.source_path());
    LUTHIER_RETURN_IF_ERROR(
        AllOf({CheckId("base_model_id", request.base_model_id(), /*dots=*/true),
               CheckOrigin("source", request.source()), CheckOrigin("revision", request.revision()), folder.status()}));
    const ModelFacts& facts = folder->facts;
    response.set_name("baseModels/" + request.base_model_id());
    response.set_model_type(facts.config_json.value("model_type", "llama"));
    response.set_parameters(facts.parameters);
    response.set_dtype(facts.dtype);
    response.set_context_length(static_cast<int32_t>(facts.config.max_position_embeddings));
    response.set_source(request.source());
    response.set_revision(request.revision());
    LUTHIER_ASSIGN_OR_RETURN(*response.mutable_facts(), JsonToStruct(ToJson(facts)));
    BlobPins pins(backend_.artifacts);
    for (const fs::path& name : folder->files) {
      LUTHIER_ASSIGN_OR_RETURN(*response.add_files(), StoreFile(backend_.artifacts, pins, request.source_path(), name));
    }
    v1::BaseModel stored;
    if (Load(request.base_model_id(), stored).ok()) {
      if (!SameFiles(stored, response)) {
        return absl::AlreadyExistsError(
            absl::StrCat("base_model_id: ", response.name(), " exists with other content; choose another id"));
      }
      response = stored;
      return absl::OkStatus();
    }
    LUTHIER_RETURN_IF_ERROR(CheckAdaptersAreOf(request.base_model_id(), response));
    const absl::Time now = absl::Now();
    *response.mutable_create_time() = ToProto(now);
    return backend_.loop.Run([&](State& state, absl::Time) {
      return state.AddResource(ResourceKind::kBaseModel, {request.base_model_id(), now, response.SerializeAsString()});
    });
  }

  // An adapter names its base. On another one of that name it would answer nonsense, and nothing would say why.
  absl::Status CheckAdaptersAreOf(const std::string& id, const v1::BaseModel& model) {
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<ModelVersion> versions, backend_.store.Versions(""));
    for (const ModelVersion& version : versions) {
      if (version.base_model != id) continue;
      const v1::ModelVersion published = ToProto(version);
      if (published.kind() != v1::ModelVersion::ADAPTER && published.kind() != v1::ModelVersion::GGUF_ADAPTER) continue;
      LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, backend_.store.GetJob(version.job));
      const StoredSpec spec = ParseStoredSpec(job.spec);
      for (const v1::AttemptInput& input : spec.start.inputs()) {
        v1::BaseModel before;
        *before.mutable_files() = input.files();
        if (input.role() != "base_model" || SameFiles(before, model)) continue;
        return WithReason(absl::AlreadyExistsError(absl::StrCat(
                              "base_model_id: ", published.name(), " is an adapter of other content that was ",
                              model.name(), "; choose another id, or delete what was tuned from that one")),
                          "HAS_ADAPTERS");
      }
    }
    return absl::OkStatus();
  }

  // By what the job measured of the tuned model on the test part. Requires: CheckMinimum() found nothing.
  absl::Status CheckReaches(const v1::PromotionMinimum& minimum, const v1::ModelVersion& version) {
    const std::string& metric = minimum.metric();
    LUTHIER_ASSIGN_OR_RETURN(const RecordedJob job, backend_.store.GetJob(version.job().substr(5)));  // after "jobs/"
    const v1::FineTuningJob measured = ToProto(job);
    if (measured.spec().has_model_export()) {
      return WithReason(absl::FailedPreconditionError(absl::StrCat(
                            "minimum: ", version.name(), " is an export, of which nothing was measured; ask ",
                            measured.spec().model_export().model_version(), ", from which it was made, for it")),
                        "NOT_EVALUATED");
    }
    for (const v1::Evaluation& evaluation : measured.evaluations()) {
      if (evaluation.split() != "test" || evaluation.model() != "tuned") continue;
      const std::optional<double> value = MetricOf(evaluation, metric);
      if (!value) {
        return WithReason(absl::FailedPreconditionError(absl::StrCat("minimum.metric: ", version.job(), " measured no ",
                                                                     metric, "; give a metric that it has")),
                          "NOT_EVALUATED");
      }
      if (*value >= minimum.value()) return absl::OkStatus();
      return WithReason(
          absl::FailedPreconditionError(absl::StrCat("minimum.value: ", version.name(), " has ", metric, " ", *value,
                                                     " on the test part, below ", minimum.value(),
                                                     "; promote a better version, or give a lower minimum")),
          "BELOW_MINIMUM");
    }
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "minimum: ", version.job(), " has no evaluation of a test part; train with one, or leave the minimum out")),
        "NOT_EVALUATED");
  }

  absl::Status Promote(Call& call, const v1::PromoteModelVersionRequest& request, v1::ModelVersion& response) {
    call.subject = request.name();
    const absl::StatusOr<v1::ModelVersion> version = FindVersion(backend_.store, call, request.name());
    LUTHIER_RETURN_IF_ERROR(AllOf({CheckAlias(request.alias()), InField("name", version.status()),
                                   request.has_minimum() ? CheckMinimum(request.minimum()) : absl::OkStatus()}));
    if (request.has_minimum()) LUTHIER_RETURN_IF_ERROR(CheckReaches(request.minimum(), *version));
    LUTHIER_ASSIGN_OR_RETURN(const VersionName name, ParseVersionName(version->name()));
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run(
        [&](State& state, absl::Time) { return state.SetAlias({name.model, request.alias(), name.number}); }));
    LUTHIER_ASSIGN_OR_RETURN(response, FindVersion(backend_.store, call, version->name()));
    return absl::OkStatus();
  }

  absl::Status DeleteAlias(Call& call, const std::string& name) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const VersionName wanted, ParseVersionName(name));
    LUTHIER_RETURN_IF_ERROR(FindVersion(backend_.store, call, name).status());
    LUTHIER_ASSIGN_OR_RETURN(const std::vector<Alias> aliases, backend_.store.Aliases(wanted.model));
    const bool there =
        std::any_of(aliases.begin(), aliases.end(), [&](const Alias& alias) { return alias.name == wanted.alias; });
    if (!there)
      return absl::NotFoundError(absl::StrCat("name: ", name, " is no alias; give one that ListModelVersions shows"));
    return backend_.loop.Run([&](State& state, absl::Time) { return state.SetAlias({wanted.model, wanted.alias, 0}); });
  }

  absl::Status DeleteVersion(Call& call, const std::string& name) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const VersionName version, ParseVersionName(name));
    if (version.number == 0) {
      return absl::InvalidArgumentError(absl::StrCat("name: ", Shown(name),
                                                     " has no number; name the version by its number, "
                                                     "since an alias may point to another one by now"));
    }
    LUTHIER_RETURN_IF_ERROR(FindVersion(backend_.store, call, name).status());
    LUTHIER_RETURN_IF_ERROR(RemoveVersion(backend_.loop, backend_.store, version.model, version.number));
    backend_.planner.Forget();
    backend_.housekeeping.Soon();
    return absl::OkStatus();
  }

  // Its blobs go with the next collection.
  absl::Status DeleteBase(Call& call, const std::string& name) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "baseModels", name));
    LUTHIER_RETURN_IF_ERROR(backend_.loop.Run(
        [&](State& state, absl::Time) { return state.DeleteResource(ResourceKind::kBaseModel, id); }));
    backend_.planner.Forget();
    backend_.housekeeping.Soon();
    return absl::OkStatus();
  }

  absl::Status SignUrls(Call& call, const v1::SignModelVersionUrlsRequest& request,
                        v1::SignModelVersionUrlsResponse& response) {
    call.subject = request.name();
    LUTHIER_ASSIGN_OR_RETURN(const absl::Duration lifetime, LifetimeOf(request));
    LUTHIER_ASSIGN_OR_RETURN(const v1::ModelVersion version, FindVersion(backend_.store, call, request.name()));
    response.set_name(version.name());
    *response.mutable_expire_time() = ToProto(absl::Now() + lifetime);
    for (const v1::ModelFile& file : version.files()) {
      v1::SignedFile& signed_file = *response.add_files();
      *signed_file.mutable_file() = file;
      LUTHIER_ASSIGN_OR_RETURN(*signed_file.mutable_url(), backend_.artifacts.SignBlob(file.sha256(), lifetime));
    }
    return absl::OkStatus();
  }

  // The files that the request asks for: all, or one of them from a byte on.
  template <typename Request, typename Files, typename Message>
  absl::Status SendFiles(Transfers::Transfer& transfer, const Request& request, const Files& files,
                         grpc::ServerWriter<Message>& writer) {
    if (request.path().empty() && request.offset() != 0) {
      return absl::InvalidArgumentError("offset: is a position in one file; give `path` too");
    }
    bool found = false;
    for (const v1::ModelFile& file : files) {
      if (!request.path().empty() && file.path() != request.path()) continue;
      found = true;
      LUTHIER_RETURN_IF_ERROR(SendFile(transfer, file, request.offset(), writer));
    }
    if (found) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat("path: ", Shown(request.path()), " is no file of ", request.name(),
                                            "; give one that it has, or leave it out for all"));
  }

  // The record knows the file: content that is gone, or shorter than that, is damage and not the caller's mistake.
  absl::StatusOr<std::unique_ptr<BlobReader>> OpenFile(const v1::ModelFile& file, int64_t offset) {
    if (offset < 0 || offset > file.size_bytes()) {
      return absl::OutOfRangeError(
          absl::StrCat("offset: ", offset, " is no position in ", file.path(), "; give 0 to ", file.size_bytes()));
    }
    absl::StatusOr<std::unique_ptr<BlobReader>> blob = backend_.artifacts.OpenBlob(file.sha256(), offset);
    if (!absl::IsNotFound(blob.status()) && !absl::IsOutOfRange(blob.status())) return blob;
    return absl::DataLossError(absl::StrCat(file.path(), ": what the server stored of it is damaged (",
                                            blob.status().message(), "); restore it from a backup"));
  }

  template <typename Message>
  absl::Status SendFile(Transfers::Transfer& transfer, const v1::ModelFile& file, int64_t offset,
                        grpc::ServerWriter<Message>& writer) {
    LUTHIER_ASSIGN_OR_RETURN(const std::unique_ptr<BlobReader> blob, OpenFile(file, offset));
    Message message;
    *message.mutable_file() = file;
    if (!transfer.Write(writer, message)) return transfer.WentAway();
    return transfer.WriteBlob(*blob, offset, writer, message);
  }

  Backend& backend_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeModelService(Backend& backend) { return std::make_unique<ModelsService>(backend); }

}  // namespace luthier
