#include "worker/agent/server_files.h"

#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "grpcpp/client_context.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

// A quarter of gRPC's default limit of a message.
constexpr size_t kChunkBytes = 1 << 20;

// Codes of gRPC and Abseil have the same numbers.
absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

using Writer = grpc::ClientWriter<v1::UploadArtifactRequest>;

// False if the server does not take more; Finish() then says why.
absl::StatusOr<bool> SendFile(Writer& writer, const std::string& path, int index,
                              const std::function<void(int64_t)>& on_sent) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::DataLossError(absl::StrCat(path, ": cannot be opened"));
  std::vector<char> buffer(kChunkBytes);
  v1::UploadArtifactRequest request;
  request.mutable_chunk()->set_file_index(index);
  v1::FileChunk& chunk = *request.mutable_chunk()->mutable_chunk();
  int64_t offset = 0;
  // An empty file is one empty chunk.
  do {
    stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    if (stream.bad()) return absl::DataLossError(absl::StrCat(path, ": cannot be read"));
    chunk.set_offset(offset);
    chunk.set_data(buffer.data(), static_cast<size_t>(stream.gcount()));
    chunk.set_crc32c(Crc32c(chunk.data()));
    if (!writer.Write(request)) return false;
    on_sent(stream.gcount());
    offset += stream.gcount();
  } while (stream);
  return true;
}

}  // namespace

v1::ModelFile ToProto(const ManifestFile& file) {
  v1::ModelFile message;
  message.set_path(file.path);
  message.set_size_bytes(file.bytes);
  message.set_sha256(file.sha256);
  return message;
}

ServerFiles::ServerFiles(const std::shared_ptr<grpc::Channel>& channel) : stub_(v1::WorkerService::NewStub(channel)) {}

absl::Status ServerFiles::Fetch(const AttemptPass& pass, const std::string& sha256, int64_t offset,
                                const std::function<absl::Status(absl::string_view)>& sink,
                                Cancellation& cancellation) {
  grpc::ClientContext context;
  const Cancellation::Hook hook(cancellation, [&context] { context.TryCancel(); });
  v1::FetchBlobRequest request;
  request.set_sha256(sha256);
  request.set_offset(offset);
  request.set_attempt(pass.attempt);
  request.set_credential(pass.credential);
  const auto reader = stub_->FetchBlob(&context, request);
  v1::FetchBlobResponse response;
  absl::Status taken;
  while (taken.ok() && reader->Read(&response)) {
    const v1::FileChunk& chunk = response.chunk();
    if (chunk.offset() != offset || Crc32c(chunk.data()) != chunk.crc32c()) {
      taken = absl::UnavailableError(absl::StrCat("blob ", sha256, " was damaged on the way at byte ", offset));
    } else {
      taken = sink(chunk.data());
    }
    offset += static_cast<int64_t>(chunk.data().size());
  }
  if (!taken.ok()) context.TryCancel();
  const absl::Status finished = FromGrpc(reader->Finish());
  return taken.ok() ? finished : taken;
}

absl::Status ServerFiles::Upload(const ArtifactUpload& upload, Cancellation& cancellation) {
  grpc::ClientContext context;
  const Cancellation::Hook hook(cancellation, [&context] { context.TryCancel(); });
  v1::UploadArtifactResponse response;
  const auto writer = stub_->UploadArtifact(&context, &response);
  v1::UploadArtifactRequest request;
  request.mutable_header()->set_attempt(upload.pass.attempt);
  request.mutable_header()->set_credential(upload.pass.credential);
  request.mutable_header()->set_checkpoint(upload.checkpoint);
  const std::vector<ManifestFile>& files = upload.manifest.files;
  for (const ManifestFile& file : files) *request.mutable_header()->add_files() = ToProto(file);
  absl::StatusOr<bool> more = writer->Write(request);
  for (size_t i = 0; i < files.size() && more.ok() && *more; ++i) {
    if (upload.stored.count(files[i].sha256) > 0) continue;
    more = SendFile(*writer, upload.folder + "/" + files[i].path, static_cast<int>(i), upload.on_sent);
  }
  if (!more.ok()) context.TryCancel();
  writer->WritesDone();
  const absl::Status finished = FromGrpc(writer->Finish());
  return more.ok() ? finished : more.status();
}

}  // namespace luthier
