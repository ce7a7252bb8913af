// Uploads and downloads under way. Each has a thread of gRPC's, so there are only so many; where the other side neither
// sends nor reads, the thread stands still and cannot look at token or clock itself.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "lib/artifact/artifact_store.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "lib/base/steady_now.h"
#include "server/rpc/access.h"

namespace luthier {

class Transfers {
  struct Open {
    const grpc::ServerContextBase& context;
    const Call& call;
    bool refused = false;                             // at the last look
    absl::Time waits_since = absl::InfiniteFuture();  // for the other side; else it is our turn
  };

 public:
  struct Options {
    // Of users; agents have as many for themselves, so that nobody keeps them from publishing. Each is a thread, an
    // open file, and with a bucket up to 24 MB.
    size_t most = 256;
    size_t most_of_tenant = 64;
    absl::Duration longest_silence = absl::Minutes(5);
  };
  // `access` must outlive it.
  Transfers(Access& access, Options options);
  ~Transfers();

  // One transfer, from its first byte to its last.
  class Transfer {
   public:
    Transfer(Transfers& transfers, std::list<Open>::iterator open) : transfers_(transfers), open_(open) {}
    Transfer(const Transfer&) = delete;
    ~Transfer();

    // As the reader's and the writer's own; the call is cancelled if that takes longer than it may.
    template <typename Reader, typename Message>
    bool Read(Reader& reader, Message& message) {
      return Await([&] { return reader.Read(&message); });
    }
    template <typename Writer, typename Message>
    bool Write(Writer& writer, const Message& message) {
      return Await([&] { return writer.Write(message); });
    }
    // The rest of `blob`, which stands at `offset`, a piece in each `message`, for as long as the caller is admitted.
    // Errors: those of the blob and of the token; WentAway().
    template <typename Writer, typename Message>
    absl::Status WriteBlob(BlobReader& blob, int64_t offset, Writer& writer, Message& message) {
      std::vector<char> buffer(kPieceBytes);
      while (true) {
        LUTHIER_RETURN_IF_ERROR(transfers_.access_.StillAdmits(open_->call));
        LUTHIER_ASSIGN_OR_RETURN(const size_t size, blob.Read(std::span<char>(buffer)));
        if (size == 0) return absl::OkStatus();
        auto& chunk = *message.mutable_chunk();
        chunk.set_offset(offset);
        chunk.set_data(buffer.data(), size);
        chunk.set_crc32c(Crc32c(chunk.data()));
        if (!Write(writer, message)) return WentAway();
        offset += static_cast<int64_t>(size);
      }
    }
    // Why nothing more can be written. CANCELLED.
    absl::Status WentAway() const;

   private:
    // A quarter of gRPC's default limit of a message.
    static constexpr size_t kPieceBytes = 1 << 20;

    template <typename Step>
    bool Await(Step step) {
      SetWaitsSince(SteadyNow());
      const bool done = step();
      SetWaitsSince(absl::InfiniteFuture());
      return done;
    }
    void SetWaitsSince(absl::Time time);

    Transfers& transfers_;
    const std::list<Open>::iterator open_;
  };

  // Context and call must outlive what it returns. Errors: RESOURCE_EXHAUSTED if too many are under way, in all or of
  // the caller's tenant; UNAVAILABLE in its place for agents, which try that again.
  absl::StatusOr<std::unique_ptr<Transfer>> Begin(const grpc::ServerContextBase& context, const Call& call);

  size_t open();

 private:
  void Work();

  Access& access_;
  const Options options_;
  std::mutex mutex_;  // of what follows
  std::condition_variable work_;
  std::list<Open> open_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace luthier
