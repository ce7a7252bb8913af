#include "client/lib/dataset_upload.h"

#include <filesystem>
#include <fstream>

#include "client/lib/grpc_status.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

constexpr size_t kChunkBytes = 1 << 20;  // the API's limit

absl::StatusOr<v1::UploadDatasetHeader> Describe(const std::string& id, const std::vector<DatasetFile>& files) {
  v1::UploadDatasetHeader header;
  header.set_dataset_id(id);
  for (const DatasetFile& file : files) {
    v1::DatasetPart& part = *header.add_parts();
    part.set_part(file.part);
    LUTHIER_ASSIGN_OR_RETURN(*part.mutable_sha256(), Sha256OfFile(file.path));
    part.set_size_bytes(static_cast<int64_t>(std::filesystem::file_size(file.path)));
  }
  return header;
}

// Sends chunk after chunk until the file ends or the server stops listening; its status says why.
bool SendFile(const DatasetFile& file, grpc::ClientWriter<v1::UploadDatasetRequest>& writer,
              const std::function<void(int64_t)>& on_sent) {
  std::ifstream stream(file.path, std::ios::binary);
  std::vector<char> buffer(kChunkBytes);
  v1::UploadDatasetRequest message;
  for (int64_t offset = 0; stream.read(buffer.data(), kChunkBytes), stream.gcount() > 0;) {
    v1::DatasetChunk& chunk = *message.mutable_chunk();
    chunk.set_part(file.part);
    chunk.set_offset(offset);
    chunk.set_data(buffer.data(), static_cast<size_t>(stream.gcount()));
    chunk.set_crc32c(Crc32c(chunk.data()));
    if (!writer.Write(message)) return false;
    offset += stream.gcount();
    on_sent(stream.gcount());
  }
  return true;
}

grpc::Status SendAll(Client& client, const v1::UploadDatasetHeader& header, const std::vector<DatasetFile>& files,
                     const TransferProgress& progress, v1::Dataset& dataset) {
  int64_t done = 0, total = 0;
  for (const v1::DatasetPart& part : header.parts()) total += part.size_bytes();
  grpc::ClientContext context;
  const auto writer = client.datasets().UploadDataset(&context, &dataset);
  v1::UploadDatasetRequest message;
  *message.mutable_header() = header;
  bool listening = writer->Write(message);
  for (size_t i = 0; listening && i < files.size(); ++i) {
    listening = SendFile(files[i], *writer, [&](int64_t bytes) {
      done += bytes;
      if (progress) progress(done, total);
    });
  }
  if (listening) writer->WritesDone();
  return writer->Finish();
}

}  // namespace

absl::StatusOr<v1::Dataset> UploadDataset(Client& client, const std::string& id, const std::vector<DatasetFile>& files,
                                          const TransferProgress& progress) {
  LUTHIER_ASSIGN_OR_RETURN(const v1::UploadDatasetHeader header, Describe(id, files));
  const RetryPolicy& retry = client.options().retry;
  for (int failures = 1;; ++failures) {
    v1::Dataset dataset;
    const grpc::Status status = SendAll(client, header, files, progress, dataset);
    if (status.ok()) return dataset;
    const absl::Status error = FromGrpc(status, client.options().server);
    if (!absl::IsUnavailable(error) || failures >= retry.attempts) return error;
    client.PauseWhileDialling(RetryPause(retry, failures, RandomFraction()));
  }
}

}  // namespace luthier
