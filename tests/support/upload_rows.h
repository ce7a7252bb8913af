// Uploads rows as the `train` part of a dataset through a real stub.
#pragma once

#include <cstdint>
#include <string>

#include "lib/artifact/hash.h"
#include "luthier/v1/datasets.grpc.pb.h"

namespace luthier {

// `crc_error` is added to the chunk's checksum, to send a damaged one.
inline grpc::Status UploadRows(v1::DatasetService::Stub& stub, grpc::ClientContext& context, const std::string& id,
                               const std::string& rows, v1::Dataset& dataset, uint32_t crc_error = 0) {
  const auto writer = stub.UploadDataset(&context, &dataset);
  v1::UploadDatasetRequest request;
  request.mutable_header()->set_dataset_id(id);
  v1::DatasetPart& part = *request.mutable_header()->add_parts();
  part.set_part("train");
  part.set_size_bytes(static_cast<int64_t>(rows.size()));
  part.set_sha256(Sha256Hex(rows));
  writer->Write(request);
  request.mutable_chunk()->set_part("train");
  request.mutable_chunk()->set_data(rows);
  request.mutable_chunk()->set_crc32c(Crc32c(rows) + crc_error);
  writer->Write(request);
  writer->WritesDone();
  return writer->Finish();
}

}  // namespace luthier
