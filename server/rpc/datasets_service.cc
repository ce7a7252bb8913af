#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/validate.h"
#include "lib/wire/json_wire.h"
#include "luthier/v1/datasets.grpc.pb.h"
#include "server/core/reason.h"
#include "server/rpc/convert.h"
#include "server/rpc/handle.h"
#include "server/rpc/page.h"
#include "server/rpc/services.h"
#include "server/rpc/stored_files.h"
#include "server/rpc/validate.h"

namespace luthier {
namespace {

constexpr int kMostParts = 3;
constexpr int64_t kMostPartBytes = int64_t{1} << 46;  // 70 TB: the sum of all parts is a number

class DatasetsService final : public v1::DatasetService::Service {
 public:
  explicit DatasetsService(Backend& backend) : backend_(backend) {}

  grpc::Status UploadDataset(grpc::ServerContext* context, grpc::ServerReader<v1::UploadDatasetRequest>* reader,
                             v1::Dataset* response) override {
    return Handle(backend_, *context, "UploadDataset", [&](Call& call) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(const auto transfer, backend_.transfers.Begin(*context, call));
      return Upload(call, *transfer, *reader, *response);
    });
  }
  grpc::Status GetDataset(grpc::ServerContext* context, const v1::GetDatasetRequest* request,
                          v1::Dataset* response) override {
    return Handle(backend_, *context, "GetDataset", [&](Call& call) { return Get(call, request->name(), *response); });
  }
  grpc::Status ListDatasets(grpc::ServerContext* context, const v1::ListDatasetsRequest* request,
                            v1::ListDatasetsResponse* response) override {
    return Handle(backend_, *context, "ListDatasets", [&](Call& call) -> absl::Status {
      LUTHIER_ASSIGN_OR_RETURN(std::vector<Resource> all, backend_.store.ListResources(ResourceKind::kDataset));
      if (!call.tenant.empty())
        std::erase_if(all, [&](const Resource& dataset) { return !call.Sees(TenantOf(dataset)); });
      return AddPage("datasets", *request, *response, all, NewestFirst, [&](const Resource& resource) -> auto& {
        v1::Dataset& dataset = *response->add_datasets();
        dataset.ParseFromString(resource.payload);
        return dataset;
      });
    });
  }
  grpc::Status DeleteDataset(grpc::ServerContext* context, const v1::DeleteDatasetRequest* request,
                             google::protobuf::Empty*) override {
    return Handle(backend_, *context, "DeleteDataset", [&](Call& call) { return Delete(call, request->name()); });
  }

 private:
  absl::Status Get(Call& call, const std::string& name, v1::Dataset& response) {
    call.subject = name;
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "datasets", name));
    LUTHIER_ASSIGN_OR_RETURN(const Resource resource, backend_.store.GetResource(ResourceKind::kDataset, id));
    if (!call.Sees(TenantOf(resource))) return DoesNotExist("datasets/" + id);
    response.ParseFromString(resource.payload);
    return absl::OkStatus();
  }

  // Its blobs go with the next collection, if no other dataset has the same content.
  absl::Status Delete(Call& call, const std::string& name) {
    v1::Dataset dataset;
    LUTHIER_RETURN_IF_ERROR(Get(call, name, dataset));
    LUTHIER_ASSIGN_OR_RETURN(const std::string id, ParseName("name", "datasets", name));
    LUTHIER_RETURN_IF_ERROR(
        backend_.loop.Run([&](State& state, absl::Time) { return state.DeleteResource(ResourceKind::kDataset, id); }));
    backend_.planner.Forget();
    backend_.housekeeping.Soon();
    return absl::OkStatus();
  }

  absl::Status CheckHeader(const v1::UploadDatasetHeader& header) {
    std::vector<std::string> violations;
    if (const absl::Status id = CheckId("dataset_id", header.dataset_id()); !id.ok())
      violations.emplace_back(id.message());
    if (header.parts().empty()) violations.emplace_back("parts: none given; give at least `train`");
    if (header.parts_size() > kMostParts) {
      violations.push_back(
          absl::StrCat("parts: ", header.parts_size(), " given; give train, and validation and test if there are any"));
      return Refusal(violations);
    }
    std::set<std::string> seen;
    int64_t bytes = 0;
    for (const v1::DatasetPart& part : header.parts()) {
      const bool known = part.part() == "train" || part.part() == "validation" || part.part() == "test";
      const std::string name = known ? part.part() : Shown(part.part());
      if (!known) {
        violations.push_back(absl::StrCat("parts.part: ", name, " is unknown; give train, validation or test"));
      }
      if (part.size_bytes() < 0 || part.size_bytes() > kMostPartBytes) {
        violations.push_back(absl::StrCat("parts.size_bytes: ", part.size_bytes(), " of ", name,
                                          " is out of range; give the size of the content"));
      } else {
        bytes += part.size_bytes();
      }
      if (!IsSha256Hex(part.sha256())) {
        violations.push_back(
            absl::StrCat("parts.sha256: ", Shown(part.sha256()), " of ", name,
                         " is no SHA-256; give that of the content, 64 lower-case hexadecimal digits"));
      }
      if (!seen.insert(part.part()).second)
        violations.push_back(absl::StrCat("parts.part: ", name, " is given twice; give it once"));
    }
    if (bytes > backend_.max_dataset_bytes) {
      violations.push_back(absl::StrCat(
          "parts.size_bytes: the parts are larger than the ", backend_.max_dataset_bytes,
          " bytes that a dataset may have on this server (--max-dataset-size of luthierd); give it in several"));
    }
    return Refusal(violations);
  }

  // Chunks of one part, until as many bytes as announced are there.
  absl::Status ReceivePart(const Call& call, Transfers::Transfer& transfer,
                           grpc::ServerReader<v1::UploadDatasetRequest>& reader, BlobPins& pins,
                           const v1::DatasetPart& part) {
    ArtifactErrors& errors = backend_.artifact_errors;
    LUTHIER_ASSIGN_OR_RETURN(std::unique_ptr<BlobWriter> blob,
                             errors.Answer(backend_.artifacts.PutBlob(part.sha256(), part.size_bytes(), &pins)));
    v1::UploadDatasetRequest message;
    while (blob->bytes() < part.size_bytes()) {
      if (!transfer.Read(reader, message)) return absl::CancelledError("the upload broke off; upload again");
      LUTHIER_RETURN_IF_ERROR(backend_.access.StillAdmits(call));
      const v1::DatasetChunk& chunk = message.chunk();
      if (chunk.part() != part.part() || chunk.offset() != blob->bytes()) {
        return absl::InvalidArgumentError(absl::StrCat("chunk: expected ", part.part(), " at byte ", blob->bytes(),
                                                       ", got ", chunk.part(), " at byte ", chunk.offset(),
                                                       "; send the parts in the order of the header"));
      }
      // What was announced is what was allowed.
      if (static_cast<int64_t>(chunk.data().size()) > part.size_bytes() - blob->bytes()) {
        return absl::InvalidArgumentError(
            absl::StrCat("chunk.data: ", part.part(), " has more than the ", part.size_bytes(),
                         " bytes that parts.size_bytes says; give the size of the content"));
      }
      if (Crc32c(chunk.data()) != chunk.crc32c()) {
        return absl::InvalidArgumentError(absl::StrCat("chunk.crc32c: ", part.part(), " at byte ", chunk.offset(),
                                                       " was damaged on the way; upload again"));
      }
      LUTHIER_RETURN_IF_ERROR(errors.Answer(blob->Append(chunk.data())));
    }
    const absl::Status stored = errors.Commit(*blob);
    if (!absl::IsInvalidArgument(stored)) return stored;
    return absl::InvalidArgumentError(
        absl::StrCat("parts.sha256: the content of ", part.part(), " is another; upload again"));
  }

  static Resource ResourceOf(const std::string& id, const Call& call, const v1::Dataset& dataset) {
    return {.id = id, .tenant = call.tenant.empty() ? Job().tenant : call.tenant, .bytes = BytesOf(dataset)};
  }

  // Of all parts, so that whoever mends one hears of the others as well.
  absl::Status CheckRows(v1::Dataset& dataset) {
    ValidationReport all;
    for (v1::DatasetPart& part : *dataset.mutable_parts()) {
      LUTHIER_ASSIGN_OR_RETURN(const LocalBlob rows, backend_.artifacts.MakeLocal(part.sha256()));
      LUTHIER_ASSIGN_OR_RETURN(const ValidationReport report, CheckStructure(rows.path, part.part()));
      all.Merge(report);
      if (!all.ToStatus().ok()) continue;
      part.set_rows(report.rows);
      LUTHIER_ASSIGN_OR_RETURN(*part.mutable_validation(), JsonToStruct(nlohmann::json::parse(ToJson(report).dump())));
    }
    return all.ToStatus();
  }

  absl::Status Upload(Call& call, Transfers::Transfer& transfer, grpc::ServerReader<v1::UploadDatasetRequest>& reader,
                      v1::Dataset& response) {
    v1::UploadDatasetRequest message;
    if (!transfer.Read(reader, message) || !message.has_header()) {
      return absl::InvalidArgumentError("header: the first message of an upload must carry it");
    }
    const v1::UploadDatasetHeader header = message.header();
    call.subject = "datasets/" + header.dataset_id();
    LUTHIER_RETURN_IF_ERROR(CheckHeader(header));
    *response.mutable_parts() = header.parts();
    // Before anything is sent that could not be kept.
    const Resource announced = ResourceOf(header.dataset_id(), call, response);
    const absl::Status room = backend_.loop.Run(
        [&](State& state, absl::Time) { return state.CheckResource(ResourceKind::kDataset, announced); });
    if (!room.ok() && !absl::IsAlreadyExists(room)) return room;
    BlobPins pins(backend_.artifacts);
    for (const v1::DatasetPart& part : response.parts())
      LUTHIER_RETURN_IF_ERROR(ReceivePart(call, transfer, reader, pins, part));
    LUTHIER_RETURN_IF_ERROR(CheckRows(response));
    const absl::Time now = absl::Now();
    response.set_name(call.subject);
    response.set_tenant(call.tenant);
    *response.mutable_create_time() = ToProto(now);
    Resource resource = ResourceOf(header.dataset_id(), call, response);
    resource.create_time = now;
    resource.payload = response.SerializeAsString();
    const absl::Status added = backend_.loop.Run(
        [&](State& state, absl::Time) { return state.AddResource(ResourceKind::kDataset, std::move(resource)); });
    if (!absl::IsAlreadyExists(added)) return added;
    v1::Dataset stored;
    if (absl::IsNotFound(Get(call, response.name(), stored)))
      return absl::AlreadyExistsError(absl::StrCat("dataset_id: ", response.name(), " is taken; choose another id"));
    bool same = stored.parts_size() == response.parts_size();
    for (int i = 0; same && i < stored.parts_size(); ++i) {
      same =
          stored.parts(i).part() == response.parts(i).part() && stored.parts(i).sha256() == response.parts(i).sha256();
    }
    if (!same) {
      return absl::AlreadyExistsError(
          absl::StrCat("dataset_id: ", response.name(), " exists with other content; choose another id"));
    }
    response = stored;
    return absl::OkStatus();
  }

  Backend& backend_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeDatasetService(Backend& backend) {
  return std::make_unique<DatasetsService>(backend);
}

}  // namespace luthier
