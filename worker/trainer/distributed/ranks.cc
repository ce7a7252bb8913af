#include "worker/trainer/distributed/ranks.h"

#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstring>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/trainer/distributed/connection_watch.h"
#include "worker/trainer/distributed/nccl.h"

namespace luthier {
namespace {

// Small gradients travel together: an adapter has hundreds, and each journey costs a tenth of a millisecond.
constexpr int64_t kBucketBytes = 16 << 20;

// Ranks wait while the leading one evaluates, which may take hours. A rank that dies is noticed at once by its closed
// connections, and a machine that is gone by a ConnectionWatch, so that this need not find them.
constexpr std::chrono::hours kPatience{24 * 30};

std::string TextOf(const Meeting& meeting) { return absl::StrCat(meeting.host, ":", meeting.port); }

c10::intrusive_ptr<c10d::Store> OpenStore(const RankPlace& place) {
  if (!place.meeting) {
    // A file in memory that every rank opens for itself, since its lock belongs to the opening.
    return c10::make_intrusive<c10d::FileStore>(absl::StrCat("/proc/self/fd/", place.rendezvous), -1);
  }
  const Meeting& meeting = *place.meeting;
  // The store would try again itself, at ever longer intervals, and twice as long as it should.
  if (place.rank != 0 && !WaitForMeeting(meeting, place.patience)) {
    throw LostRank(absl::StrCat("nobody listens at ", TextOf(meeting), ", or this node does not reach it"));
  }
  c10d::TCPStoreOptions options;
  options.port = meeting.port;
  options.isServer = place.rank == 0;
  if (options.isServer) options.masterListenFd = place.rendezvous;
  options.waitWorkers = false;
  options.timeout = place.patience;
  return c10::make_intrusive<c10d::PrefixStore>(meeting.run,
                                                c10::make_intrusive<c10d::TCPStore>(meeting.host, options));
}

// Gloo would wait for the last rank as long as for anything else that a rank has to say.
void Meet(c10d::Store& store, const RankPlace& place) {
  if (store.add("here", 1) == place.size) store.set("all here", std::vector<uint8_t>{1});
  try {
    store.wait({"all here"}, place.patience);
  } catch (const std::exception&) {
    const std::string where = place.meeting ? absl::StrCat("; their nodes have to reach ", TextOf(*place.meeting)) : "";
    throw LostRank(absl::StrCat("of ", place.size, " ranks ", store.add("here", 0), " have come within ",
                                place.patience.count(), " ms", where));
  }
}

}  // namespace

struct Ranks::Group {
  RankPlace place;
  std::unique_ptr<ConnectionWatch> watch;  // over several nodes
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  std::unique_ptr<Nccl> nccl;  // once something on a GPU is added up

  void Sum(const Tensor& tensor) {
    if (tensor.is_cuda()) return SumOnGpus(tensor);
    std::vector<Tensor> tensors{tensor};
    Wait([&] { gloo->allreduce(tensors)->wait(); });
  }

  void Share(const Tensor& tensor) {
    std::vector<Tensor> tensors{tensor};
    Wait([&] { gloo->broadcast(tensors)->wait(); });
  }

  void SumOnGpus(const Tensor& tensor) {
    if (nccl == nullptr) {
      const Tensor meeting = place.rank == 0 ? Nccl::NewMeeting() : at::zeros({Nccl::kMeetingBytes}, at::kByte);
      Sum(meeting);
      nccl = std::make_unique<Nccl>(place.rank, place.size, meeting);
    }
    nccl->Sum(tensor);
  }

  // A rank of this node is killed with any other that dies. That one of another node is gone NCCL has to be asked: the
  // GPU would wait for it for ever.
  void WaitFor(const at::Device& device) {
    if (device.is_cuda() && place.meeting) Wait([&] { nccl->Wait(device); });
  }

  template <typename Operation>
  void Wait(const Operation& operation) {
    try {
      operation();
    } catch (const std::exception& error) {
      throw LostRank(absl::StrCat("another rank cannot be reached any more: ", error.what()));
    }
  }
};

Ranks::Ranks(const RankPlace& place) : place_(place) {
  if (place.size == 1) return;
  try {
    auto watch = place.meeting ? std::make_unique<ConnectionWatch>() : nullptr;
    const c10::intrusive_ptr<c10d::Store> store = OpenStore(place);
    Meet(*store, place);
    auto options = c10d::ProcessGroupGloo::Options::create(kPatience);
    options->devices.push_back(
        c10d::ProcessGroupGloo::createDeviceForHostname(place.meeting ? place.meeting->address : "127.0.0.1"));
    group_ = std::make_shared<Group>(
        Group{place, std::move(watch),
              c10::make_intrusive<c10d::ProcessGroupGloo>(store, place.rank, place.size, std::move(options)), nullptr});
  } catch (const std::exception& error) {
    throw LostRank(absl::StrCat("the ranks do not find each other: ", error.what()));
  }
}

void Ranks::Sum(const std::vector<Tensor>& tensors) const {
  if (group_ == nullptr) return;
  at::NoGradGuard no_grad;
  for (size_t begin = 0; begin < tensors.size();) {
    size_t end = begin;
    std::vector<Tensor> flat;
    for (int64_t bytes = 0; end < tensors.size(); ++end) {
      bytes += static_cast<int64_t>(tensors[end].nbytes());
      if (end > begin && bytes > kBucketBytes) break;
      flat.push_back(tensors[end].flatten());
    }
    const Tensor bucket = flat.size() == 1 ? flat[0] : at::cat(flat);
    group_->Sum(bucket);
    for (int64_t offset = 0; begin < end; ++begin) {
      const Tensor& tensor = tensors[begin];
      if (!bucket.is_alias_of(tensor)) tensor.copy_(bucket.narrow(0, offset, tensor.numel()).view(tensor.sizes()));
      offset += tensor.numel();
    }
  }
  if (!tensors.empty()) group_->WaitFor(tensors.front().device());
}

int64_t Ranks::Agree(int64_t value) const {
  if (group_ == nullptr) return value;
  const Tensor said = at::full({1}, leads() ? value : 0, at::kLong);
  Sum({said});
  return said.item<int64_t>();
}

Tensor Ranks::Gather(const Tensor& mine) const {
  if (group_ == nullptr) return mine;
  const int64_t size = mine.numel();
  const Tensor all = at::zeros({this->size() * size}, mine.options());
  all.narrow(0, rank() * size, size).copy_(mine);
  Sum({all});
  return all;
}

Tensor Ranks::Share(const Tensor& tensor) const {
  if (group_ == nullptr || tensor.numel() == 0) return tensor;
  const Tensor shared = tensor.contiguous();
  group_->Share(shared);
  return shared;
}

std::string Ranks::Share(const std::string& text) const {
  const Tensor bytes = at::zeros({Agree(static_cast<int64_t>(text.size()))}, at::kByte);
  if (leads()) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  Share(bytes);
  return {static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes()};
}

}  // namespace luthier
